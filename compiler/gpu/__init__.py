"""Kernels for CUDA: tensor cores in float16 or bfloat16, sums in float32."""
