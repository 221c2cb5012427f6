"""Who is measured: nbprop, its peers and the machine's own limits, and how each does a row of dense layers."""
