"""The targets, with the packages that have their compilers."""

import os

# Whether every program is compiled for every target: once a week.
EVERY = bool(os.environ.get("JAXCE_EVERY_PROGRAM"))
# All TPUs have one compiler, so one of them is enough on every run.
PLUGINS = {"v5e": "libtpu", "h100": "jax_cuda12_plugin"}
if EVERY:
    PLUGINS |= {"v5p": "libtpu", "v6e": "libtpu"}
