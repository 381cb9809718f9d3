"""Every invalid argument raises under tracing, with a message that names the argument and shows the received value."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxce
from tests.support import bad_inputs, keras_bad_inputs
from tests.support.bad_inputs import INTEGER, SHAPES_AND_DTYPES, SIGMOID, SOFT, STATS, VALUES, Q, Y, Z

CALLS = {**bad_inputs.dense_calls(), **bad_inputs.divergence_calls(), **keras_bad_inputs.calls()}


def named(table):
    return [pytest.param(*row, id=name) for name, row in table.items()]


@pytest.mark.parametrize("name", CALLS)
def test_invalid_call_raises_under_tracing(name):
    assert bad_inputs.refusal_fault(CALLS[name]) is None


def test_every_message_has_the_argument_the_rule_and_the_received_value():
    """Except for a string, which JAX refuses before the function is called, with a message of JAX."""
    for name, call in CALLS.items():
        if isinstance(call.arguments.get("class_weights"), str):
            continue
        with pytest.raises(call.error, match=r"(?s)`\w+`.* (must|selects).*; .+") as raised:
            call.traced()
        assert any(f"`{n}`" in str(raised.value) for n in call.arguments), name


def test_tables_have_at_least_200_calls_and_20_portable_ones():
    assert len(CALLS) >= 200
    assert len(list(bad_inputs.portable_calls())) >= 20


def call(function, arguments):
    arguments = dict(arguments)
    first = [arguments.pop(name) for name in ("logits", "labels", "losses") if name in arguments]
    return function(*first, **arguments)


@pytest.mark.parametrize("way", ["eager", "jit", "eval_shape", "grad"])
@pytest.mark.parametrize(("function", "arrays", "error", "message"), named(SHAPES_AND_DTYPES))
def test_invalid_array_raises_at_trace_time(way, function, arrays, error, message):
    run = {
        "eager": lambda: call(function, arrays),
        "jit": lambda: jax.jit(lambda arrays: call(function, arrays)).trace(arrays),
        "eval_shape": lambda: jax.eval_shape(lambda arrays: call(function, arrays), arrays),
        "grad": lambda: jax.eval_shape(
            jax.grad(lambda x: jnp.sum(jax.tree.leaves(call(function, arrays))[0]) * x), 1.0
        ),
    }[way]
    with pytest.raises(error, match=message):
        run()


@pytest.mark.parametrize("function", [INTEGER, SOFT], ids=["integer", "soft"])
@pytest.mark.parametrize("way", ["eager", "jit"])
@pytest.mark.parametrize(("values", "error", "message"), named(VALUES))
def test_invalid_python_value_is_refused(values, error, message, way, function):
    arguments = {"logits": Z, "labels": Y if function is INTEGER else Q, **values}
    with pytest.raises(error, match=message):
        call(function, arguments) if way == "eager" else jax.eval_shape(lambda: call(function, arguments))


@pytest.mark.parametrize(("values", "error", "message"), [row for row in named(VALUES) if "smoothing" in row.id])
def test_sigmoid_refuses_the_same_smoothing(values, error, message):
    with pytest.raises(error, match=message):
        SIGMOID(Z, Q, **values)


@pytest.mark.parametrize("function", [INTEGER, STATS])
def test_traced_axis_is_refused(function):
    with pytest.raises(TypeError, match="`axis` must be a Python integer, not traced; got a traced int32"):
        jax.eval_shape(lambda axis: function(Z, Y, axis=axis), 1)


@pytest.mark.parametrize("value", [np.array(["a", "b"]), np.array([None, None]), np.zeros(2, "M8[s]")], ids=str)
@pytest.mark.parametrize("name", ["logits", "labels", "class_weights", "mask"])
def test_array_without_numbers_is_refused(name, value):
    with pytest.raises(TypeError, match=name):
        call(INTEGER, {"logits": Z, "labels": Y, name: value})


@pytest.mark.parametrize("function", [INTEGER, SOFT, SIGMOID])
def test_options_are_keyword_only(function):
    with pytest.raises(TypeError, match="positional"):
        function(Z, Q, -1)


@pytest.mark.parametrize("option", ["ignore_index", "reduction", "return_z", "from_logits", "weight"])
def test_options_of_other_libraries_are_refused_by_name(option):
    with pytest.raises(TypeError, match=option):
        INTEGER(Z, Y, **{option: 0})


@pytest.mark.parametrize("axis", [1, -1, np.int64(1), np.array(1)])
def test_axis_may_be_any_type_of_integer(axis):
    assert INTEGER(Z, Y, axis=axis).shape == (4,)


@pytest.mark.parametrize(
    ("function", "way"),
    [
        (jaxce.keras.losses.categorical_crossentropy, "use sparse_categorical_crossentropy"),
        (jaxce.keras.backend.categorical_crossentropy, "use sparse_categorical_crossentropy"),
        (jaxce.keras.losses.categorical_focal_crossentropy, "pass jax.nn.one_hot"),
    ],
)
def test_class_indices_for_class_probabilities_are_refused_with_the_way_out(function, way):
    with pytest.raises(ValueError, match=f"For class indices {way}"):
        function(Y, Q)
