"""The packages with the compilers of the accelerators."""

PLUGINS = {"v5e": "libtpu", "v5p": "libtpu", "v6e": "libtpu", "h100": "jax_cuda12_plugin"}
