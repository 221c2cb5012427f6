"""Dense (fully connected) layers."""
