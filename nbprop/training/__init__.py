"""`fit`: epochs in compiled code, checkpoints, history."""
