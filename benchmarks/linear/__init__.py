"""Times of the linear losses, value and gradients, beside the bare matmuls and beside others: `python -m benchmarks.linear`."""
