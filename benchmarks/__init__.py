"""Benchmarks: one command per question.

python -m benchmarks               time, memory and errors on a CPU, compared with other libraries (__main__.py, curves.py)
python -m benchmarks.linear        the losses of a linear layer, compared with three bare matmuls and other libraries
python -m benchmarks.device        numerics, time and memory on an accelerator (device.py, numerics.py)
python -m benchmarks.aot           memory and passes reported by the compilers of accelerators, without the accelerators
python -m benchmarks.scoreboard    accuracy against results of 50 digits, and the rules for hard values, labels and bad input
python -m benchmarks.others        the answers of other libraries to questions whose right answer is arithmetic
python -m benchmarks.compare       jaxce and another copy of jaxce, call by call

All commands share problems.py (the problems), peers/ (jaxce and the other libraries), measure.py (the clock), report.py (the rows of the CSV files
in results/), markdown.py and plots.py (pages and plots of these rows), and machine.py (the machine and the versions).
"""
