"""From a kernel to machine code: traced, compiled by LLVM, kept on disk, called by its address."""
