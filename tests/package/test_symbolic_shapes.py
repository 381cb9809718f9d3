"""`jax.export` with symbolic shapes: one exported program per loss is correct on every platform, for any number of rows and of classes."""

import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxce
from jaxce import Chunked
from tests.support import cases, covering, divergences, linear_cases, oracle, row_losses
from tests.support.cases import INTEGER, SOFT
from tests.support.closeness import assert_within
from tests.support.oracle import Quantity

pytestmark = pytest.mark.usefixtures("fast_compilation")

PLATFORMS = ("cpu", "cuda", "tpu")
DTYPES = (jnp.float32, jnp.bfloat16)
# The coefficients of `loss_from_statistics`, which tests the statistics.
S, ZETA = np.float32(0.1), np.float32(0.03)
DENSE_SIZES = [(1, 1), (1, 7), (3, 10), (2, 1027)]
FEATURES = 3


def exported(function, arguments, shapes):
    """Export `function` for a dictionary of arguments. `shapes` has the symbolic shapes by name; other arguments keep their shape."""
    scope = jax.export.SymbolicScope()

    def symbolic(name, x):
        shape = jax.export.symbolic_shape(shapes[name], scope=scope) if name in shapes else np.shape(x)
        return jax.ShapeDtypeStruct(shape, x.dtype)

    structs = {name: symbolic(name, x) for name, x in arguments.items()}
    return jax.export.export(jax.jit(function), platforms=PLATFORMS)(structs)


def value_and_gradients(function, arguments, names, cotangent):
    """Return `function(**arguments)`, and its gradients under the cotangent with respect to the arguments in `names`."""

    def value_of(differentiable):
        return function(**{**arguments, **differentiable})

    value, pull = jax.vjp(value_of, {name: arguments[name] for name in names if name in arguments})
    return value, pull(cotangent)[0]


def loss_from_statistics(stats):
    return (1 - S) * stats.nll + S * stats.smooth_nll + ZETA * stats.log_z**2


DENSE_SHAPES = {
    "logits": "b, v",
    "where": "b, v",
    "class_weights": "v",
    **dict.fromkeys(("mask", "temperature", "cotangent"), "b"),
}


def dense_problem(loss, options, dtype, shape):
    rng = np.random.default_rng(0)
    logits, labels = cases.make_logits(rng, shape, dtype), loss.make_labels(rng, shape, -1)
    chosen = cases.make_options(rng, options, loss, shape, labels)
    return {"logits": logits, "labels": labels, **chosen, "cotangent": np.linspace(-1, 2, shape[0], dtype=np.float32)}


@pytest.mark.covering(1, at_most=1)
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: d.__name__)
@pytest.mark.parametrize("options", [(), cases.SOFTMAX_OPTIONS], ids=cases.name_of)
@pytest.mark.parametrize("loss", cases.SOFTMAX_LOSSES)
def test_dense_losses_of_any_rows_and_classes(loss, options, dtype):
    def run(arguments):
        cotangent = arguments.pop("cotangent")
        some = {n: x for n, x in arguments.items() if n in ("logits", "labels", "where")}
        stats = value_and_gradients(
            lambda **a: loss_from_statistics(jaxce.logit_stats(**a)), some, ["logits"], cotangent
        )
        return value_and_gradients(loss.function, arguments, ["logits", "class_weights"], cotangent), stats

    shapes = {**DENSE_SHAPES, "labels": "b" if loss is INTEGER else "b, v"}
    export = exported(run, dense_problem(loss, options, dtype, (2, 5)), shapes)
    for size in DENSE_SIZES:
        arguments = dense_problem(loss, options, dtype, size)
        answers = export.call(dict(arguments))
        cotangent = arguments.pop("cotangent")
        stats_options = {"where": arguments.get("where"), "label_smoothing": S, "z_loss": ZETA}
        logits, labels, *_ = arguments.values()
        chosen = {n: arguments[n] for n in options}
        for (value, gradients), kept in zip(answers, (chosen, stats_options), strict=True):
            answer = loss.oracle(logits, labels, cotangent=cotangent, **kept)
            assert_within(value, answer.loss, 8)
            for name, gradient in gradients.items():
                assert_within(gradient, getattr(answer, name), 8, working=jnp.float32)


def test_sigmoid_losses_of_any_shape():
    def run(arguments):
        return value_and_gradients(
            jaxce.sigmoid_binary_cross_entropy, arguments, ["logits"], jnp.ones_like(arguments["logits"])
        )

    shapes = {"logits": "b, v", "labels": "b, v"}
    rng = np.random.default_rng(0)
    makes = lambda shape: {"logits": cases.make_logits(rng, shape), "labels": rng.random(shape).astype(np.float32)}  # noqa: E731
    export = exported(run, makes((2, 5)), shapes)
    for size in DENSE_SIZES:
        arguments = makes(size)
        value, gradients = export.call(arguments)
        answer = oracle.sigmoid(*arguments.values())
        assert_within(value, answer.loss, 8)
        assert_within(gradients["logits"], answer.logits, 8)


def test_labels_of_more_than_65536_classes():
    """The classes 3 and 2**16 + 3 have the same lower 16 bits."""

    def run(arguments):
        return jax.value_and_grad(lambda z: INTEGER.function(z, arguments["labels"]).sum())(arguments["logits"])

    logits = cases.make_logits(np.random.default_rng(0), (3, 2**16 + 9))
    arguments = {"logits": logits, "labels": np.int32([3, 2**16 + 3, 2**16 - 1])}
    value, gradient = exported(run, arguments, {"logits": "b, v", "labels": "b"}).call(arguments)
    z, rows = logits.astype(np.float64), np.arange(3)
    p = np.exp(z) / np.exp(z).sum(-1, keepdims=True)
    np.testing.assert_allclose(value, -np.log(p[rows, arguments["labels"]]).sum(), rtol=1e-6)
    p[rows, arguments["labels"]] -= 1
    np.testing.assert_allclose(gradient, p, rtol=1e-5, atol=1e-12)


LINEAR_OPTIONS = ("bias", "mask", "label_smoothing", "class_weights", "z_loss", "soft_cap", "temperature")
DIFFERENTIATED = ["hidden", "classifier", "bias", "class_weights", "soft_cap", "temperature"]
IMPLEMENTATIONS = (None, "chunked", "reference", Chunked(3), Chunked(None, 5), Chunked(3, 5))
LINEAR_SHAPES = {
    "b, 3": {"hidden": "b, 3", "labels": "b", "mask": "b", "temperature": "b", "cotangent": "b"},
    "b, t, 3": {"hidden": "b, t, 3", "labels": "b, t", "mask": "b, t", "temperature": "b, t", "cotangent": "b, t"},
}
SYMBOLIC_CLASSES = {"classifier": "f, v", "bias": "v", "class_weights": "v", "hidden": "b, f"}


def linear_problem(options, dtype, shape, num_classes, features=FEATURES):
    rng, tokens = np.random.default_rng(0), int(np.prod(shape))
    hidden, classifier, labels = linear_cases.make(rng, tokens, features, num_classes, dtype)
    everything = {
        **linear_cases.OPTIONS,
        "bias": (np.arange(num_classes, dtype=np.float32) % 7) / 8 - 0.5,
        "mask": (np.arange(tokens) % 3 != 1).reshape(shape),
        "class_weights": np.linspace(0.5, 2, num_classes, dtype=np.float32),
        "temperature": np.linspace(0.5, 2, tokens, dtype=np.float32).reshape(shape),
    }
    return {
        "hidden": hidden.reshape(*shape, features),
        "classifier": classifier,
        "labels": labels.reshape(shape),
        **{name: everything[name] for name in options},
        "cotangent": np.linspace(-1, 2, tokens, dtype=np.float32).reshape(shape),
    }


def linear_run(implementation):
    """Return a function that computes the losses, their sum and a loss from the statistics, each with its gradients."""

    def stats(mask=None, label_smoothing=None, z_loss=None, class_weights=None, **arguments):
        return loss_from_statistics(jaxce.linear_logit_stats(**arguments, implementation=implementation))

    def losses(**arguments):
        return jaxce.linear_softmax_cross_entropy(**arguments, implementation=implementation)

    def loss_sum(**arguments):
        return jaxce.linear_softmax_cross_entropy_sum(**arguments, implementation=implementation)

    def run(arguments):
        cotangent = arguments.pop("cotangent")
        ones = jaxce.LossSum(jnp.float32(1), jnp.float32(0))
        answers = {f.__name__: value_and_gradients(f, arguments, DIFFERENTIATED, cotangent) for f in (losses, stats)}
        return {**answers, "loss_sum": value_and_gradients(loss_sum, arguments, DIFFERENTIATED, ones)}

    return run


def assert_linear_answers(answers, arguments):
    cotangent = arguments.pop("cotangent").reshape(-1)
    hidden = arguments.pop("hidden")
    hidden = hidden.reshape(-1, hidden.shape[-1])
    classifier, labels = arguments.pop("classifier"), arguments.pop("labels").reshape(-1)
    options = {n: x.reshape(-1) if n in ("mask", "temperature") else x for n, x in arguments.items()}
    stats_options = {n: options[n] for n in options if n in ("bias", "soft_cap", "temperature")} | {
        "label_smoothing": S,
        "z_loss": ZETA,
    }
    for name, (value, gradients) in answers.items():
        kept, ct = stats_options if name == "stats" else options, cotangent
        if name == "loss_sum":
            ct = np.ones_like(cotangent)
        loss, want_gradients = linear_cases.expected(hidden, classifier, labels, ct, **kept)
        if name == "loss_sum":
            assert float(value.weight) == options.get("mask", ct).sum()
            value, loss = value.total[None], Quantity(*(x.sum(keepdims=True) for x in loss))
        assert_within(np.asarray(value).reshape(loss.value.shape), loss, 8)
        for argument, gradient in gradients.items():
            if name == "stats" and argument == "class_weights":
                continue
            # Matmuls of bfloat16 round the gradient with respect to the logits.
            ulps = 2 if gradient.dtype == jnp.bfloat16 else 8
            assert_within(
                np.asarray(gradient).reshape(want_gradients[argument].value.shape), want_gradients[argument], ulps
            )


def id_of(value):
    return cases.name_of(value) if type(value) is tuple else getattr(value, "__name__", str(value))


TOKEN_CASES = [*itertools.product(IMPLEMENTATIONS, [(), LINEAR_OPTIONS], DTYPES, LINEAR_SHAPES)]
QUICK_TOKEN_CASES = [
    (None, (), jnp.float32, "b, 3"),
    ("chunked", LINEAR_OPTIONS, jnp.bfloat16, "b, t, 3"),
    ("reference", (), jnp.float32, "b, 3"),
]


@pytest.mark.covering(1, at_most=1)
@pytest.mark.parametrize(
    ("implementation", "options", "dtype", "rank"), covering.quick(TOKEN_CASES, QUICK_TOKEN_CASES), ids=id_of
)
def test_linear_losses_of_any_number_of_tokens(implementation, options, dtype, rank):
    sizes = [(1,), (3,), (7,)] if rank == "b, 3" else [(1, 1), (2, 4)]
    export = exported(linear_run(implementation), linear_problem(options, dtype, sizes[-1], 13), LINEAR_SHAPES[rank])
    for size in sizes:
        arguments = linear_problem(options, dtype, size, 13)
        assert_linear_answers(export.call(dict(arguments)), arguments)


@pytest.mark.nightly
@pytest.mark.parametrize("implementation", [None, Chunked(3)], ids=str)
def test_linear_losses_of_many_classes(implementation):
    """There is more than one block of classes, or the rows are long enough to be cut into parts."""
    export = exported(linear_run(implementation), linear_problem((), np.float32, (2,), 1027), LINEAR_SHAPES["b, 3"])
    for tokens in (1, 5):
        arguments = linear_problem((), np.float32, (tokens,), 1027)
        assert_linear_answers(export.call(dict(arguments)), arguments)


def test_large_logits_with_a_padded_block():
    """The exponentials of the padding of the last block do not overflow. Otherwise 0 times infinity would make every gradient NaN."""

    def problem(tokens):
        arguments = linear_problem(("bias",), np.float32, (tokens,), 13)
        return {**arguments, "bias": arguments["bias"] + 200}

    export = exported(linear_run(Chunked(3)), problem(2), LINEAR_SHAPES["b, 3"])
    for tokens in (1, 4):
        arguments = problem(tokens)
        assert_linear_answers(export.call(dict(arguments)), arguments)


def test_logits_of_all_classes_are_not_stored():
    """With an unknown number of tokens, a block has all tokens and some of the classes."""
    arguments = linear_problem((), np.float32, (2,), 5003)
    program = exported(linear_run(None), arguments, LINEAR_SHAPES["b, 3"]).mlir_module()
    assert re.search(r"tensor<\?x\d+xf32>", program) and not re.search(r"tensor<\?x5003x", program)


CLASS_CASES = [*itertools.product([None, "chunked", "reference", Chunked(3)], [(), LINEAR_OPTIONS], DTYPES)]
QUICK_CLASS_CASES = [(None, (), jnp.float32), ("reference", (), jnp.bfloat16)]


@pytest.mark.covering(1, at_most=1)
@pytest.mark.parametrize(
    ("implementation", "options", "dtype"), covering.quick(CLASS_CASES, QUICK_CLASS_CASES), ids=id_of
)
def test_linear_losses_of_any_tokens_features_and_classes(implementation, options, dtype):
    shapes = {**LINEAR_SHAPES["b, 3"], **SYMBOLIC_CLASSES}
    export = exported(linear_run(implementation), linear_problem(options, dtype, (2,), 5), shapes)
    for tokens, features, num_classes in [(1, 1, 1), (7, 4, 13), (2, 3, 1027)]:
        arguments = linear_problem(options, dtype, (tokens,), num_classes, features)
        assert_linear_answers(export.call(dict(arguments)), arguments)


@pytest.mark.parametrize("implementation", [Chunked(None, 5), Chunked(3, 5)], ids=str)
def test_blocks_of_an_unknown_number_of_classes_are_refused(implementation):
    arguments, shapes = linear_problem((), np.float32, (2,), 5), {**LINEAR_SHAPES["b, 3"], **SYMBOLIC_CLASSES}
    with pytest.raises(ValueError, match=r"`block_classes` .* got v, .* Leave it out: Chunked\(block_tokens=\.\.\.\)"):
        exported(linear_run(implementation), arguments, shapes)


@pytest.mark.parametrize("implementation", [None, pytest.param(Chunked(3, 5), marks=pytest.mark.nightly)], ids=str)
def test_vmap_of_grad(implementation):
    """Compute per-example gradients, with unknown numbers of examples and of tokens."""

    def per_example(arguments):
        def layer_loss(h, w, y):
            loss = jaxce.linear_softmax_cross_entropy_sum(h, w, y, implementation=implementation).total
            return loss + jaxce.linear_softmax_cross_entropy(h, w, y, implementation=implementation).sum()

        def logits_loss(z, y):
            return INTEGER.function(z, y).sum() + SOFT.function(z, jax.nn.one_hot(y, z.shape[-1])).sum()

        hidden, classifier, labels, logits = (arguments[n] for n in ("hidden", "classifier", "labels", "logits"))
        layer_gradients = jax.vmap(jax.grad(layer_loss, (0, 1)), (0, None, 0))(hidden, classifier, labels)
        return (*layer_gradients, jax.vmap(jax.grad(logits_loss))(logits, labels))

    def problem(shape):
        arguments = linear_problem((), np.float32, shape, 13)
        del arguments["cotangent"]
        return {**arguments, "logits": cases.make_logits(np.random.default_rng(1), (*shape, 13))}

    export = exported(per_example, problem((2, 2)), {**LINEAR_SHAPES["b, t, 3"], "logits": "b, t, v"})
    for shape in [(1, 1), (3, 4)]:
        arguments = problem(shape)
        by_hidden, by_classifier, by_logits = export.call(arguments)
        for i in range(shape[0]):
            hidden, labels = arguments["hidden"][i], arguments["labels"][i]
            _, want = linear_cases.expected(hidden, arguments["classifier"], labels, np.full(shape[1], 2))
            assert_within(by_hidden[i], want["hidden"], 8)
            assert_within(by_classifier[i], want["classifier"], 8)
            answer = oracle.integer_softmax(arguments["logits"][i], labels, cotangent=np.full(shape[1], 2))
            assert_within(by_logits[i], answer.logits, 8)


def test_program_that_returns_our_result_types_can_be_serialized(rng):
    pytest.importorskip("flatbuffers")  # JAX needs flatbuffers to serialize

    def results(logits, labels):
        return jaxce.LossSum.of(jaxce.softmax_cross_entropy(logits, labels)), jaxce.logit_stats(logits, labels)

    logits, labels = cases.make_logits(rng, (4, 5)), SOFT.make_labels(rng, (4, 5), -1)
    saved = jax.export.export(jax.jit(results))(logits, labels).serialize()
    loss_sum, stats = jax.export.deserialize(saved).call(logits, labels)
    want = oracle.softmax(logits, labels).loss
    assert_within(stats.nll, want, 6)
    assert_within(loss_sum.total, Quantity(want.value.sum(), want.scale.sum()), 6)
    assert stats.integer_labels is False


@pytest.mark.parametrize("implementation", [Chunked(3), *covering.nightly_values(None, "dense")], ids=str)
def test_losses_of_a_row_and_entropy_of_any_sizes(implementation):
    def run(arguments):
        given = row_losses.Problem(**arguments)
        by_name, replaced = row_losses.split(given)

        def total(moving):
            problem = replaced(moving)
            layer = problem.hidden, problem.classifier
            dense = implementation == "dense"
            logits = jnp.matmul(*layer) if dense else jaxce.LinearLogits(*layer, implementation=implementation)
            return row_losses.ours(problem, logits).total, jaxce.logit_stats(logits).prediction

        return jax.value_and_grad(total, has_aux=True)(by_name)

    rng = np.random.default_rng(0)
    rows = dict.fromkeys(("labels", "mask", "advantages", "old", "weights"), "b")
    shapes = {"hidden": "b, f", "classifier": "f, v", **rows}
    export = exported(run, row_losses.make(rng)._asdict(), shapes)
    for size, classes in ((1, 1), (3, 10), (11, 13)):
        problem = row_losses.make(rng, (size,), classes=classes)
        (value, prediction), found = export.call(problem._asdict())
        with jax.enable_x64(True):
            want_value, wanted = row_losses.gradients(row_losses.naive, row_losses.as_float64(problem))
        row_losses.assert_near((value, found), (want_value, wanted), 1e-5)
        np.testing.assert_array_equal(prediction, (problem.hidden @ problem.classifier).argmax(-1))


WAYS_OF_DIVERGENCES = {
    "dense": ("dense", "dense"),
    "lazy": (None, None),
    "in blocks": (Chunked(3), Chunked(3)),
    "dense target": ("dense", "chunked"),
}


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("way", "name"),
    covering.quick(itertools.product(WAYS_OF_DIVERGENCES, divergences.FUNCTIONS), [("in blocks", "kl sum")]),
)
def test_divergences_of_any_sizes(way, name):
    def run(arguments):
        by_name, replaced = divergences.split(divergences.Problem(**arguments))
        ways = WAYS_OF_DIVERGENCES[way]
        return jax.value_and_grad(lambda x: divergences.total(name, replaced(x), ways))(by_name)

    rng = np.random.default_rng(0)
    shapes = dict.fromkeys(("temperature", "weights", "mask"), "b") | dict.fromkeys(
        ("target_bias", "bias", "where"), "v"
    )
    shapes |= {"target_hidden": "b, e", "target_classifier": "e, v", "hidden": "b, f", "classifier": "f, v"}
    export = exported(run, divergences.make(rng)._asdict(), shapes)
    for size, classes in ((1, 2), (3, 10), (11, 13)):
        problem = divergences.make(rng, (size,), classes=classes)
        value, found = export.call(problem._asdict())
        with jax.enable_x64(True):
            want_value, wanted = divergences.gradients(
                lambda x: divergences.plain_total(name, x), divergences.as_float64(problem)
            )
        # The dense logits of the test are capped by plain code, whose derivative with respect to the cap cancels.
        row_losses.assert_near((value, found), (want_value, wanted), 3e-5 if way == "dense" else 1e-5)
