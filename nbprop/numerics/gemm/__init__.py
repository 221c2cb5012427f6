"""The matrix product that carries the arithmetic."""
