"""When XLA can ask how to partition a function: where it can, and where the persistent compilation cache does not lose the program."""

import warnings

import jax

_FLAG = "remove_custom_partitioning_ptr_from_cache_key"


def can_be_asked_for(module, platforms: tuple[str, ...]) -> bool:
    """Return whether a function may be one that XLA asks how to partition, in a module that JAX lowers for the platforms."""
    devices = getattr(module.axis_context, "device_assignment", None)  # None inside of `jax.shard_map`
    is_partitioned = devices is not None and len(devices) > 1 and _setting("use_shardy_partitioner")
    is_exported = module.lowering_parameters.for_export
    return is_partitioned and not is_exported and platforms in (("cpu",), ("cuda",)) and _keeps_compilation_cache()


def _keeps_compilation_cache():
    """Return whether the persistent compilation cache would find the program again, or is not used. Warn if it would not."""
    uses_cache = _setting("enable_compilation_cache") and _setting("compilation_cache_dir") is not None
    if not uses_cache or _setting(_FLAG):
        return True
    warnings.warn(
        "jaxce: on this mesh of `AxisType.Auto` a loss of `LinearLogits` stores each device's logits whole, because the persistent compilation "
        f'cache could not find a program that saves this memory. Set `jax.config.update("jax_{_FLAG}", True)` before compiling, '
        "or pass `split=jaxce.Split(...)` to `LinearLogits`.",
        stacklevel=2,
    )
    return False


def _setting(name):
    return getattr(jax.config, f"jax_{name}")
