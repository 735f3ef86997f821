"""What `modules.py` and `nnx.py` are made of."""
