"""What `python -m benchmarks.device` measures on the accelerator that it finds, each part a module."""
