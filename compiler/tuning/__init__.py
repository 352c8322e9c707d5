"""Which tilings of the kernels are fastest: what was measured, and how more of it is."""
