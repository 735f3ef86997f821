"""From a kernel to machine code."""
