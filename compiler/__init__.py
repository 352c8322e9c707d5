"""How a checkpoint becomes native code: trace, passes, kernels, schedules, export, verification."""
