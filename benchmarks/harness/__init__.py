"""How it is measured: processes that take turns, ratios formed within a turn, results kept for each commit."""
