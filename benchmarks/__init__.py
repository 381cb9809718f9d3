"""Benchmarks: one command per question.

python -m benchmarks               how fast, small and exact on a CPU, beside other libraries (__main__.py, curves.py)
python -m benchmarks.linear        the losses of a linear layer, beside three bare matmuls and other libraries
python -m benchmarks.device        numerics, time and memory on an accelerator (device.py, numerics.py)
python -m benchmarks.aot           what compilers of accelerators say, without the accelerators
python -m benchmarks.scoreboard    how exact and how safe, against 50 digits and the rules
python -m benchmarks.others        what other libraries answer where the right answer is arithmetic
python -m benchmarks.compare       jaxce and another copy of it, call by call

All share problems.py (what is timed), peers/ (who is timed), measure.py (the clock), report.py (the rows of the CSV files in results/),
markdown.py and plots.py (what is made from the rows), machine.py (what it ran on).
"""
