"""Networks as C source: a plan's programs written down, with a readable C function for each kernel."""
