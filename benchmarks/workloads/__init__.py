"""What is measured: the rows, and for rows of kind "own" a module with a function of (row, threads) per contender."""
