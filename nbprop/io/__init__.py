"""Files: networks, tables of data, pictures, and how all of them are written."""
