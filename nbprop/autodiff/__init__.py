"""The public functions that walk a plan: gradients, and derivatives beyond them."""
