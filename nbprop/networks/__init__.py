"""What a network is: layers, shapes, and where each parameter lies in the flat array."""
