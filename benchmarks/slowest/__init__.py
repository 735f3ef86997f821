"""A search for calls that are slower than the plain expression."""
