"""The dashboard: results in, one folder of plain pages out, which opens from a file without a network."""
