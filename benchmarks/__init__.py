"""What is measured, each subject a module: `python -m benchmarks.scoreboard`."""
