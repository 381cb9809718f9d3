"""Programs of one file. The benchmarks import `examples.progress`; the programs import each other's modules by their short names."""
