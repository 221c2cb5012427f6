"""The device kernels of layers, in files named as the layers' own."""
