"""What is compiled: checkpoints and their components, on the PyTorch side. Knows nothing of TVM."""
