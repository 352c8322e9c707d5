"""What runs a compiled artifact: NumPy, TVM and tokenizers, never torch."""
