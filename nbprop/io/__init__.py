"""Files: networks, tables of data, pictures, and writing them atomically."""
