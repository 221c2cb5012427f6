"""Optimizers on flat vectors: update rules, the checked step, clipping."""
