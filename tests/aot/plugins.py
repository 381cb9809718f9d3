"""The packages in which the compilers of accelerators are."""

PLUGINS = {"v5e": "libtpu", "v5p": "libtpu", "v6e": "libtpu", "h100": "jax_cuda12_plugin"}
