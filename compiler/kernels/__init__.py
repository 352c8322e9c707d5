"""Kernels of ours: one file a kernel, and the registry that says which operator and shape each one takes."""
