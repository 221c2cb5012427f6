"""The device kernels of losses, in files named as the losses' own."""
