"""Schedules for TensorIR functions that are no kernels of ours."""
