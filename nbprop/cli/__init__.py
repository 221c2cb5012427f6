"""The command `nbprop`."""
