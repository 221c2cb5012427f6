"""What a network does and how exactly: contributions, rounding errors, checks of gradients, tables."""
