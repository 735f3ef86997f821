"""The formats of files: how each is read in blocks, and written."""
