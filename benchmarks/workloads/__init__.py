"""What rows with kind="own" do, a module each: a function of (row, threads) for every contender."""
