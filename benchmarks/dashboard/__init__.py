"""The dashboard: turns results into a folder of plain pages, which open from a file without a network."""
