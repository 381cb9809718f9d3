"""The losses of `jaxce.keras` survive saving, loading and copying of a model, and any order of imports."""

import copy
import os
import pickle
import subprocess
import sys

os.environ["KERAS_BACKEND"] = "jax"

import jax
import keras
import numpy as np
import pytest

from jaxce.keras import backend, losses, metrics
from tests.support.paths import ROOT

pytestmark = [
    pytest.mark.usefixtures("fast_compilation"),
    # Saving a model converts Keras variables to arrays, which raises this warning in Keras.
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]

OBJECTS = {
    "categorical": lambda: losses.CategoricalCrossentropy(True, 0.1, -1, "sum", "mine"),
    "sparse": lambda: losses.SparseCategoricalCrossentropy(True, -1, "mean_with_sample_weight", -1, "mine"),
    "binary": lambda: losses.BinaryCrossentropy(True, 0.2, 1, None, "mine", "float64"),
    "binary focal": lambda: losses.BinaryFocalCrossentropy(True, 0.5, 1.5, True, 0.2, 1, None, "mine", "float64"),
    "categorical focal": lambda: losses.CategoricalFocalCrossentropy([0.2, 0.8], 1.5, True, 0.1, -1, "sum", "mine"),
    "generalized": lambda: losses.CategoricalGeneralizedCrossEntropy(0.7, "sum", "mine", "float64"),
    "divergence": lambda: losses.KLDivergence("mean", "mine", "float64"),
}
NOT_FOR_COMPILE = {"categorical_generalized_cross_entropy"}  # needs a third argument
FUNCTIONS = {
    f"{module.__name__.rpartition('.')[2]}.{name}": getattr(module, name)
    for module in (losses, backend)
    for name in module.__all__
    if name.islower() and name not in NOT_FOR_COMPILE
}


@pytest.fixture(autouse=True)
def _standard_promotion():
    """Allow implicit promotion, because the code of Keras needs it."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def compiled_model(loss, **options):
    inputs = keras.Input((4,))
    outputs = keras.layers.Dense(3, "softmax")(inputs)
    model = keras.Model(inputs, [outputs] * len(loss) if isinstance(loss, list) else outputs)
    model.compile("sgd", loss, **options)
    return model


def saved_and_loaded(extension):
    def load(model, folder):
        model.save(folder / f"model.{extension}")
        return keras.models.load_model(folder / f"model.{extension}")

    return load


def compiled_from_config(model, folder):
    restored = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, "softmax")])
    restored.compile_from_config(model.get_compile_config())
    return restored


WAYS = {
    ".keras": saved_and_loaded("keras"),
    ".h5": saved_and_loaded("h5"),
    "compile_from_config": compiled_from_config,
    "clone_model": lambda model, folder: keras.models.clone_model(model),
    "copy": lambda model, folder: copy.copy(model),
    "deepcopy": lambda model, folder: copy.deepcopy(model),
    "pickle": lambda model, folder: pickle.loads(pickle.dumps(model)),
}


def state(loss):
    return type(loss), loss.get_config(), loss.dtype


@pytest.mark.covering(1)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", OBJECTS)
def test_restored_model_has_the_loss_object(name, way, tmp_path):
    loss = OBJECTS[name]()
    restored = WAYS[way](compiled_model(loss), tmp_path).loss
    assert state(restored) == state(loss)


@pytest.mark.covering(1)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_restored_model_has_the_function(name, way, tmp_path):
    """Keras has functions with the same names. Without registration it would silently load its own function."""
    assert WAYS[way](compiled_model(FUNCTIONS[name]), tmp_path).loss is FUNCTIONS[name]


@pytest.mark.parametrize("way", [".keras", ".h5"])
def test_restored_model_has_the_losses_and_metrics_of_each_output(way, tmp_path):
    both = [losses.sparse_categorical_crossentropy, OBJECTS["sparse"]()]
    model = compiled_model(both, metrics=[[metrics.sparse_categorical_crossentropy], [backend.binary_crossentropy]])
    restored = WAYS[way](model, tmp_path)
    assert restored.loss[0] is both[0] and state(restored.loss[1]) == state(both[1])
    config = keras.saving.deserialize_keras_object(restored.get_compile_config())
    assert config["metrics"] == [[metrics.sparse_categorical_crossentropy], [backend.binary_crossentropy]]


def test_restored_keras_metric_has_the_function():
    metric = keras.metrics.MeanMetricWrapper(losses.categorical_crossentropy, name="mine", from_logits=True)
    restored = keras.metrics.deserialize(keras.metrics.serialize(metric))
    assert restored.get_config() == metric.get_config()
    assert keras.metrics.deserialize(metric.get_config()["fn"]) is losses.categorical_crossentropy


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda loss: pickle.loads(pickle.dumps(loss))])
@pytest.mark.parametrize("name", OBJECTS)
def test_object_is_copied_with_its_options_and_attributes(name, copied):
    loss = OBJECTS[name]()
    loss.note = ["a subclass may have more"]
    other = copied(loss)
    assert other is not loss and state(other) == state(loss) and other.note == loss.note
    y_true = [1, 0] if name in ("sparse", "generalized") else np.eye(2)
    y_pred = np.float32([[0.0, 1.0], [2.0, 0.0]]) if name == "sparse" else np.eye(2)
    if jax.config.jax_enable_x64 or loss.dtype != "float64":
        np.testing.assert_array_equal(other(y_true, y_pred), loss(y_true, y_pred))


class SubclassOfLoss(losses.CategoricalCrossentropy):
    """A loss of a user, with another constructor."""

    def __init__(self, scale):
        super().__init__(from_logits=True)
        self.scale = scale

    def call(self, y_true, y_pred):
        return self.scale * super().call(y_true, y_pred)


def test_subclass_with_another_constructor_is_copied():
    loss = SubclassOfLoss(3.0)
    assert copy.deepcopy(loss).scale == pickle.loads(pickle.dumps(loss)).scale == 3.0
    assert isinstance(loss, keras.losses.Loss)


def test_class_is_public_and_registered_under_its_name():
    loss = losses.BinaryCrossentropy()
    assert type(loss) is losses.BinaryCrossentropy and isinstance(loss, keras.losses.Loss)
    assert keras.saving.get_registered_name(losses.BinaryCrossentropy) == "jaxce>BinaryCrossentropy"
    assert keras.saving.get_registered_name(backend.binary_crossentropy) == "jaxce.backend>binary_crossentropy"


LOAD = """
        import os, sys
        for name in sys.argv[1].split(","):
            __import__(name)
        assert "keras" in sys.modules
        import keras
        assert [f for f in sys.meta_path if "jaxce" in type(f).__module__] == []
        assert "jaxce" not in type(keras.__loader__).__module__ and keras.__spec__.loader is keras.__loader__
        for extension in ("keras", "h5"):
            loaded = [keras.models.load_model(f"{sys.argv[2]}/{form}.{extension}") for form in ("object", "function")]
            from jaxce.keras import losses
            assert type(loaded[0].loss) is losses.SparseCategoricalCrossentropy, loaded[0].loss
            assert loaded[0].loss.get_config()["ignore_class"] == -1
            assert loaded[1].loss is losses.sparse_categorical_crossentropy, loaded[1].loss
"""
MADE_BEFORE_KERAS = """
        import sys, jaxce
        loss = jaxce.keras.losses.CategoricalCrossentropy(from_logits=True)
        assert "keras" not in sys.modules
        import keras, numpy as np
        assert isinstance(loss, keras.losses.Loss)
        x, y, weights = np.eye(4, dtype="float32"), np.eye(4, dtype="float32")[::-1], np.arange(4, dtype="float32")
        values = []
        for each in (loss, keras.losses.CategoricalCrossentropy(from_logits=True)):
            keras.utils.set_random_seed(0)
            model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4)])
            model.compile(loss=each)
            values.append(model.evaluate(x, y, sample_weight=weights, verbose=0))
        np.testing.assert_allclose(*values, rtol=1e-5)
"""
JAXCE_ALONE = """
        import sys, jaxce
        assert not {"keras", "jaxce.keras", "jaxce.keras.losses"} & sys.modules.keys()
        assert [type(f).__module__ for f in sys.meta_path].count("jaxce._keras_hook") == 1
        from jaxce import _keras_hook
        _keras_hook.install()
        assert [type(f).__module__ for f in sys.meta_path].count("jaxce._keras_hook") == 1
        assert callable(jaxce.keras.losses.binary_crossentropy) and "keras" not in sys.modules
        try:
            jaxce.kears
        except AttributeError as error:
            assert "module 'jaxce' has no attribute 'kears'" in str(error)
        else:
            raise AssertionError
"""
FAKE_KERAS = """
import sys, time, types
sys.attempts = getattr(sys, "attempts", 0) + 1
if getattr(sys, "fail", False):
    raise RuntimeError("no")
if getattr(sys, "slow", False):
    end = time.monotonic() + 60
    while "jaxce._keras_hook" not in sys.modules and time.monotonic() < end:
        time.sleep(0.01)
    time.sleep(0.5)
class losses:
    class Loss:
        pass
config = types.SimpleNamespace(floatx=lambda: "float32", backend=lambda: "jax")
registered = []
def register_keras_serializable(package):
    return lambda thing: registered.append((package, thing.__name__)) or thing
saving = types.SimpleNamespace(register_keras_serializable=register_keras_serializable)
"""
HOOK = """
        import importlib.util, sys, warnings
        sys.modules["keras"] = None  # this makes an import of keras raise an error
        import jaxce
        from jaxce import _keras_hook
        del sys.modules["keras"]

        def finders():
            return sum(type(f).__module__ == "jaxce._keras_hook" for f in sys.meta_path)

        assert importlib.util.find_spec("keras").loader.get_filename("keras") == importlib.util.find_spec("keras").origin
        assert "keras" not in sys.modules and finders() == 1
        sys.fail = True
        for _ in range(2):
            try:
                import keras
            except RuntimeError:
                assert "keras" not in sys.modules and finders() == 1
            else:
                raise AssertionError
        sys.fail = False

        class Other:  # another hook, which calls every other finder
            def find_spec(self, name, path=None, target=None):
                if name == "keras":
                    return next(filter(None, (f.find_spec(name, path, target) for f in sys.meta_path if f is not self)))

        sys.meta_path.insert(0, Other())
        before = sys.meta_path
        import keras
        assert finders() == 0 and sys.attempts == 3 and before is not sys.meta_path
        assert ("jaxce", "BinaryCrossentropy") in keras.registered and len(set(keras.registered)) == 17
        assert issubclass(jaxce.keras.losses.BinaryCrossentropy, keras.losses.Loss)
        assert keras.__loader__ is keras.__spec__.loader and "jaxce" not in type(keras.__loader__).__module__
        importlib.reload(keras)
        assert sys.attempts == 4

        # If jaxce cannot register with Keras, the import of Keras still works.
        keras.losses.Loss = int
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            _keras_hook.install()
        assert len(caught) == 1 and "Keras does not know jaxce's losses" in str(caught[0].message)
        keras.losses.Loss = object()  # not a Keras that jaxce knows
        _keras_hook.install()
"""
THREAD = """
        import sys, threading
        sys.slow = True
        thread = threading.Thread(target=__import__, args=("keras",))
        thread.start()
        import jaxce
        keras = sys.modules["keras"]
        assert ("jaxce.backend", "binary_crossentropy") in keras.registered and sys.attempts == 1
        thread.join()
"""


def run(script, *arguments, path=()):
    code = "\n".join(line.removeprefix(" " * 8) for line in script.splitlines())
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (*path, ROOT)))}
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    function = losses.sparse_categorical_crossentropy
    for form, loss in {"object": OBJECTS["sparse"](), "function": function}.items():
        for extension in ("keras", "h5"):
            compiled_model(loss).save(folder / f"{form}.{extension}")
    return folder


@pytest.mark.parametrize("imports", ["jaxce,keras", pytest.param("keras,jaxce", marks=pytest.mark.nightly)])
def test_model_is_loaded_in_a_new_process(imports, models):
    run(LOAD, imports, models)


def test_object_created_before_the_import_of_keras_applies_sample_weights():
    run(MADE_BEFORE_KERAS)


def test_importing_jaxce_imports_neither_keras_nor_jaxce_keras():
    run(JAXCE_ALONE)


@pytest.mark.parametrize("script", [HOOK, THREAD], ids=["hook", "thread"])
def test_hook_survives_failures_other_hooks_and_threads(script, tmp_path):
    (tmp_path / "keras.py").write_text(FAKE_KERAS)
    run(script, path=[tmp_path])
