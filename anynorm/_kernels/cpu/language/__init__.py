"""What the kernels are written in: vectors of numbers, and memory by its address."""
