"""The losses on this machine's CPU, beside other libraries and the floors: `python -m benchmarks`."""
