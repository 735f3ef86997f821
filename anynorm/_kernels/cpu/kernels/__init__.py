"""The kernels, written in `language`."""
