"""More rows of the table of compositions: loops, branches, checkpoint, shard_map, export and checks around a loss and its derivatives."""

import functools
import gc
import importlib.util

import jax
import jax.numpy as jnp
from jax import checkpoint_policies as policies
from jax import export, lax
from jax.experimental import checkify
from jax.sharding import PartitionSpec as P

from tests.support.compositions import ROWS, TABLE, grad_along, jvp_along, rows, stacked


# Loops and branches.
def by_scan(p, z, **options):
    return lax.scan(lambda n, x: (n + 1, p.f(*x)), 0, (z, p.y), **options)[1]


def by_map(p, z, **options):
    return lax.map(lambda x: p.f(*x), (z, p.y), **options)


def descent(p, z, _):
    return z - 0.1 * jax.grad(p.total)(z)


def by_fori_loop(p, z):
    return lax.fori_loop(0, 2, lambda i, z: descent(p, z, i), z)


def by_while_loop(p, z):
    step = lambda state: (state[0] + 1, state[1] + p.losses(state[1][:, None].astype(z.dtype) + z))  # noqa: E731
    return lax.while_loop(lambda state: state[0] < 2, step, (0, jnp.zeros_like(p.w)))[1]


def by_cond(p, z):
    return lax.cond(z[0, 0] < 100, p.losses, lambda z: p.w * 0, z)


def by_switch(p, z, i):
    return lax.switch(i, [lambda z: p.w * 0, p.losses, lambda z: 2 * p.losses(z)], z)


def cotangent(p, losses):
    return lambda z: jnp.vdot(p.w, losses(p, z))


rows(
    scan=lambda p: by_scan(p, p.z),
    scan_reversed_and_unrolled=lambda p: by_scan(p, p.z, reverse=True, unroll=2),
    grad_of_scan=lambda p: jax.grad(cotangent(p, by_scan))(p.z),
    hvp_of_scan=lambda p: jvp_along(p, jax.grad(cotangent(p, by_scan)))(p.z),
    hvp_of_scan_in_reverse=lambda p: grad_along(p, jax.grad(cotangent(p, by_scan)))(p.z),
    vmap_of_scan=lambda p: jax.vmap(functools.partial(by_scan, p))(stacked(p.z)),
    descent_in_a_scan=lambda p: lax.scan(lambda z, x: (descent(p, z, x), p.total(z)), p.z, None, 2),
    grad_of_descent_in_a_scan=lambda p: jax.grad(
        lambda z: p.total(lax.scan(lambda z, x: (descent(p, z, x), None), z, None, 2)[0])
    )(p.z),
    fori_loop=lambda p: by_fori_loop(p, p.z),
    grad_of_fori_loop=lambda p: jax.grad(lambda z: p.total(by_fori_loop(p, z)))(p.z),
    while_loop=lambda p: by_while_loop(p, p.z),
    jvp_of_while_loop=lambda p: jvp_along(p, functools.partial(by_while_loop, p))(p.z),
    cond=lambda p: by_cond(p, p.z),
    grad_of_cond=lambda p: jax.grad(cotangent(p, by_cond))(p.z),
    hvp_of_cond=lambda p: jvp_along(p, jax.grad(cotangent(p, by_cond)))(p.z),
    vmap_of_grad_of_switch=lambda p: jax.vmap(jax.grad(lambda z, i: jnp.vdot(p.w, by_switch(p, z, i))), (None, 0))(
        p.z, jnp.arange(3)
    ),
    map=lambda p: by_map(p, p.z),
    map_in_batches=lambda p: by_map(p, p.z, batch_size=3),
    grad_of_map_in_batches=lambda p: jax.grad(cotangent(p, functools.partial(by_map, batch_size=3)))(p.z),
)


# Checkpoint, with three policies that are functions, and one that a function returns.
def checkpointed(p, **options):
    return jax.checkpoint(p.total, **options)


POLICIES = {n: getattr(policies, n) for n in ("everything_saveable", "nothing_saveable", "dots_saveable")}
POLICIES |= {"names": policies.save_only_these_names("no name of ours")}
rows(
    grad_of_checkpoint=lambda p: jax.grad(checkpointed(p))(p.z),
    jvp_of_checkpoint=lambda p: jvp_along(p, checkpointed(p))(p.z),
    hvp_of_checkpoint=lambda p: jvp_along(p, jax.grad(checkpointed(p)))(p.z),
    hvp_of_checkpoint_in_reverse=lambda p: grad_along(p, jax.grad(checkpointed(p)))(p.z),
    grad_of_scan_of_checkpoint=lambda p: jax.grad(cotangent(p._replace(f=jax.checkpoint(p.f)), by_scan))(p.z),
)
for name, policy in POLICIES.items():
    TABLE[f"grad_of_checkpoint_with_{name}"] = lambda p, policy=policy: jax.grad(checkpointed(p, policy=policy))(p.z)


# shard_map over rows.
def over_rows(p, g, outs=None, **options):
    outs = P("rows") if outs is None else outs
    mesh = jax.make_mesh((2,), ("rows",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:2])
    return jax.jit(jax.shard_map(g, mesh=mesh, in_specs=(P("rows"), P("rows")), out_specs=outs, **options))


def local_mean(p):
    return lambda z, y: lax.pmean(jnp.mean(p.f(z, y)), "rows")


for name, options in {"": {}, "_unchecked": {"check_vma": False}}.items():
    rows(
        **{
            f"shard_map{name}": lambda p, o=options: over_rows(p, p.f, **o)(p.z, p.y),
            f"grad_of_shard_map{name}": lambda p, o=options: jax.grad(
                lambda z: jnp.vdot(over_rows(p, p.f, **o)(z, p.y), p.w)
            )(p.z),
            f"shard_map_of_grad{name}": lambda p, o=options: over_rows(
                p, jax.grad(lambda z, y: jnp.sum(p.f(z, y))), **o
            )(p.z, p.y),
            f"hvp_of_shard_map{name}": lambda p, o=options: jvp_along(
                p, jax.grad(lambda z: jnp.vdot(over_rows(p, p.f, **o)(z, p.y), p.w))
            )(p.z),
            f"grad_of_mean_in_shard_map{name}": lambda p, o=options: jax.grad(
                lambda z: over_rows(p, local_mean(p), P(), **o)(z, p.y)
            )(p.z),
        }
    )


# Export, checks, and everything around a function.
def exported(p, g, symbolic):
    rows = export.symbolic_shape("rows")[0] if symbolic else ROWS
    specs = jax.tree.map(lambda x: jax.ShapeDtypeStruct((rows, *x.shape[1:]), x.dtype), (p.z, p.y))
    out = export.export(jax.jit(g))(*specs)
    if importlib.util.find_spec("flatbuffers") is None:  # JAX needs flatbuffers to serialize
        return out
    return export.deserialize(out.serialize(vjp_order=2))


def checked(g, errors, *arguments):
    error, out = checkify.checkify(jax.jit(g), errors=errors)(*arguments)
    error.throw()
    return out


def with_custom_vjp(p, z):
    @jax.custom_vjp
    def f(z):
        return p.total(z)

    f.defvjp(lambda z: jax.vjp(p.total, z), lambda vjp, w: vjp(w))
    return f(z)


def without_jit(p):
    with jax.disable_jit():
        return jax.value_and_grad(p.total)(p.z)


def with_leak_checking(p):
    gc.freeze()  # each check collects garbage; the objects of other tests would make this slow
    try:
        with jax.checking_leaks():
            return jax.jit(jax.value_and_grad(p.total))(p.z), jax.jit(jax.vmap(jax.grad(p.f)))(p.z, p.y)
    finally:
        gc.unfreeze()


rows(
    disable_jit=without_jit,
    leak_checking=with_leak_checking,
    export=lambda p: exported(p, p.f, False).call(p.z, p.y),
    export_with_symbolic_rows=lambda p: exported(p, p.f, True).call(p.z, p.y),
    export_of_grad_with_symbolic_rows=lambda p: exported(p, jax.vmap(jax.grad(p.f)), True).call(p.z, p.y),
    grad_of_export=lambda p: jax.grad(lambda z: jnp.vdot(exported(p, p.f, True).call(z, p.y), p.w))(p.z),
    checkify_floats=lambda p: checked(p.f, checkify.float_checks, p.z, p.y),
    checkify_floats_of_grad=lambda p: checked(jax.grad(p.total), checkify.float_checks, p.z),
    checkify_index_of_grad=lambda p: checked(jax.grad(p.total), checkify.index_checks, p.z),
    grad_of_custom_vjp=lambda p: jax.grad(functools.partial(with_custom_vjp, p))(p.z),
    closure_convert=lambda p: (lambda f, consts: f(p.z, *consts))(*jax.closure_convert(p.losses, p.z)),
    eval_shape=lambda p: jnp.zeros(jax.eval_shape(jax.grad(p.total), p.z).shape),
    stopped_gradient=lambda p: jax.grad(lambda z: p.total(z) + p.total(lax.stop_gradient(z)))(p.z),
)
