"""From a Python function to machine code, found again by its fingerprint in every later process."""
