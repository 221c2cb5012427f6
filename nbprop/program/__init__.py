"""The format of a program: ops in a table, the frame they run in, kernels and their arguments. Nothing runs here."""
