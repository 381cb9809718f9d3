"""The oracle of the divergences, from the textbook formulas in 160 decimal digits, and the rows of logits that the tests share."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import mpmath
import numpy as np

import jaxce
from tests.support.oracle import EXTENDED, Quantity

_exp, _log = (np.frompyfunc(f, 1, 1) for f in (mpmath.exp, mpmath.log))
WEIGHT = np.float32(0.3)  # of the target, in the Jensen-Shannon divergence


class Answer(NamedTuple):
    """The divergence of each row, and the gradients of the sum of the divergences."""

    value: Quantity
    target: Quantity
    logits: Quantity
    temperature: Quantity
    weight: Quantity


class _Errors(NamedTuple):
    """Bounds of the errors of the logarithms, for an error of each difference of logits in its last place, in units of that place."""

    gap: np.ndarray  # of y_k - max y
    difference: np.ndarray  # of (z_k - y_k) - (max z - max y)
    log_q: np.ndarray
    log_ratio: np.ndarray  # of log p - log q


def exact(target, logits, temperature=None, weight=None) -> Answer:
    """Return the Kullback-Leibler divergences of rows of finite logits; with a weight those of Jensen and Shannon.

    The scale of a value, or of the gradient `p - q`, is its magnitude, plus an eighth of the first-order effect of an error in the last place of each
    difference of logits: of `y_k - max y`, and of `(z_k - y_k) - (max z - max y)`. So 8 ulps of the scale are 8 ulps of the result, plus what this
    rounding must cost. In the other gradients something is subtracted from a logarithm of probabilities; their scale has these two magnitudes too.
    A probability that underflows in the working dtype may count as 0.
    """
    rows = np.shape(logits)[:-1]
    temperature = np.broadcast_to(1 if temperature is None else temperature, rows)
    working = np.finfo(np.float64 if np.float64 in (np.asarray(target).dtype, np.asarray(logits).dtype) else np.float32)
    answers = [_of_row(target[i], logits[i], temperature[i], weight, working) for i in np.ndindex(rows)]
    results = [
        [np.array([answer[j][k] for answer in answers], EXTENDED) for k in range(2)] for j in range(len(Answer._fields))
    ]
    shapes = rows, np.shape(logits), np.shape(logits), rows, rows
    return Answer(*(Quantity(*(x.reshape(s) for x in pair)) for pair, s in zip(results, shapes, strict=True)))


class _Row(NamedTuple):
    q: np.ndarray
    p: np.ndarray
    terms: np.ndarray  # of the divergence, not negative
    logs: tuple  # log(q / p); or log(q / m) and log(p / m)
    value: np.ndarray
    target: np.ndarray  # gradient
    logits: np.ndarray
    weight: np.ndarray


def _of_row(target, logits, temperature, weight, working):
    """Return (result, scale) of each field of an `Answer`."""
    with mpmath.workdps(160):
        t = mpmath.mpf(float(temperature))
        y, z = (np.array([mpmath.mpf(float(v)) for v in row], object) / t for row in (target, logits))
        gap, gap_z = y - y.max(), z - z.max()
        q, p = (_exp(g) / _exp(g).sum() for g in (gap, gap_z))
        row = _kl(q, p) if weight is None else _js(q, p, mpmath.mpf(float(weight)))
        of_temperature = -(row.target * gap).sum() / t - (row.logits * gap_z).sum() / t
        row = jax.tree.map(_to_extended, row, is_leaf=lambda x: not isinstance(x, tuple))
        of_temperature, d, gap, gap_z = (np.asarray(x, EXTENDED) for x in (of_temperature, gap_z - gap, gap, gap_z))
    errors = _errors(row.q, row.p, abs(gap), abs(d))
    effects = _kl_effects(row, errors) if weight is None else _js_effects(row, EXTENDED(weight), errors)
    underflow = EXTENDED(working.tiny) / EXTENDED(working.eps) * (sum(map(abs, row.logs)) + row.value)
    results = row.value, row.target, row.logits, row.weight
    scales = [abs(x) + e for x, e in zip(results, effects, strict=True)]
    scales[1:3] = (x + underflow for x in scales[1:3])
    t = EXTENDED(temperature)
    of_temperature = of_temperature, ((scales[1] * abs(gap)).sum() + (scales[2] * abs(gap_z)).sum()) / t
    pairs = [(x / s, scale / s) for x, scale, s in zip(results, scales, (1, t, t, 1), strict=True)]
    return [*pairs[:3], of_temperature, pairs[3]]


def _to_extended(x):
    """Return the numbers, and 0 for the rounding errors of a 0."""
    x = np.asarray(x, EXTENDED)
    return np.where(abs(x) < 1e-140, 0, x)


def _kl(q, p) -> _Row:
    log_ratio = _log(q) - _log(p)
    value = (q * log_ratio).sum()
    return _Row(q, p, p - q + q * log_ratio, (log_ratio,), value, q * (log_ratio - value), p - q, mpmath.mpf(0))


def _js(q, p, w) -> _Row:
    log_m = _log(w * q + (1 - w) * p)
    logs = _log(q) - log_m, _log(p) - log_m
    of_q, of_p = ((x * log).sum() for x, log in zip((q, p), logs, strict=True))
    gradients = w * q * (logs[0] - of_q), (1 - w) * p * (logs[1] - of_p)
    terms = w * q * logs[0] + (1 - w) * p * logs[1]
    return _Row(q, p, terms, logs, w * of_q + (1 - w) * of_p, *gradients, of_q - of_p)


def _errors(q, p, gap, d) -> _Errors:
    return _Errors(gap, d, gap + (q * gap).sum(), d + (p * d).sum() + (abs(p - q) * gap).sum())


def _kl_effects(row: _Row, errors: _Errors):
    """Return bounds of the effects on the results of `_kl`."""
    q, p, value, (log,) = row.q, row.p, row.value, row.logs
    on_value = (abs(row.terms - q * value) * errors.gap).sum() + (abs(p - q) * errors.difference).sum()
    on_target = abs(row.target) * errors.log_q + q * (errors.log_ratio + on_value)
    on_logits = abs(row.logits) * errors.log_q + p * errors.log_ratio
    return on_value / 8, on_target / 8 + q * (abs(log) + value), on_logits / 8, EXTENDED(0)


def _js_effects(row: _Row, w, errors: _Errors):
    q, p, (log_q, log_p) = row.q, row.p, row.logs
    of_q, of_p, m = (q * log_q).sum(), (p * log_p).sum(), w * q + (1 - w) * p
    on_log_q, on_log_p = (1 - w) * p / m * errors.log_ratio, w * q / m * errors.log_ratio
    on_q = (q * (abs(log_q) * errors.log_q + on_log_q)).sum()
    on_p = (p * (abs(log_p) * (errors.log_q + errors.log_ratio) + on_log_p)).sum()
    on_value = (abs(row.terms - q * row.value) * errors.gap).sum() + (1 - w) * (
        (p * abs(log_p - of_p) * errors.difference).sum() + abs(of_p) * (abs(p - q) * errors.gap).sum()
    )
    on_target = abs(row.target) * errors.log_q + w * q * (on_log_q + on_q)
    on_logits = abs(row.logits) * (errors.log_q + errors.log_ratio) + (1 - w) * p * (on_log_p + on_p)
    subtracted = w * q * (abs(log_q) + of_q), (1 - w) * p * (abs(log_p) + of_p), of_q + of_p
    effects = on_target, on_logits, on_q + on_p
    return on_value / 8, *(effect / 8 + x for effect, x in zip(effects, subtracted, strict=True))


def rows_of_any_divergence(rng, num_classes, dtype):
    """Return the logits of targets and students: flat, usual and sharp rows in both roles, whose divergences are from 1e-14 to over 10."""
    sizes, distances = np.array([1e-3, 1, 8, 40]), np.array([2e-7, 1e-3, 0.1, 1, 6, 30])
    shape = (sizes.size, distances.size, num_classes)
    target = (sizes[:, None, None] * rng.standard_normal(shape)).astype(dtype)
    # The logits of the first rows are tiny, so that they can be near each other in every dtype.
    target[0, 0] = (distances[0] * rng.standard_normal(num_classes)).astype(dtype)
    logits = target.astype(np.float64) + distances[:, None] * rng.standard_normal(shape)
    target, logits = target.reshape(-1, num_classes), logits.astype(dtype).reshape(-1, num_classes)
    # The last rows are sharp targets of flat students.
    return np.concatenate([target, logits[3:6]]), np.concatenate([logits, target[3:6]])


def as_layer(logits, implementation):
    """Return a linear layer with exactly these logits."""
    logits = jnp.asarray(logits)
    eye = jnp.eye(logits.shape[-1], dtype=logits.dtype)
    return jaxce.LinearLogits(logits, eye, implementation=implementation)


def layer_of_bias(bias, implementation):
    """Return a linear layer with one token, whose logits are its bias."""
    zeros = jnp.zeros((1, bias.size), bias.dtype)
    return jaxce.LinearLogits(zeros[:, :1], zeros, bias=bias, implementation=implementation)


def layers_with_bias(target, bias, implementation):
    """Return the layer with these logits, and the layer whose logits have a bias added."""
    layer = as_layer(target, implementation)
    return layer, jaxce.LinearLogits(layer.hidden, layer.classifier, bias=bias, implementation=implementation)


class Problem(NamedTuple):
    """Two layers with different numbers of features over the same classes, and every option."""

    target_hidden: np.ndarray
    target_classifier: np.ndarray
    target_bias: np.ndarray
    target_cap: np.ndarray
    hidden: np.ndarray
    classifier: np.ndarray
    bias: np.ndarray
    soft_cap: np.ndarray
    temperature: np.ndarray
    weights: np.ndarray
    weight: np.ndarray
    mask: np.ndarray
    where: np.ndarray


CLASSES = 13
FIXED = ("mask", "where")
DIFFERENTIABLE = tuple(name for name in Problem._fields if name not in FIXED)
FUNCTIONS = {
    "kl": jaxce.softmax_kl_divergence,
    "js": jaxce.softmax_js_divergence,
    "kl sum": jaxce.softmax_kl_divergence_sum,
    "js sum": jaxce.softmax_js_divergence_sum,
}
DENSE = "dense"


def make(rng, rows=(11,), dtypes=(np.float32, np.float32), classes=CLASSES) -> Problem:
    """Return a problem for a target and a student in these dtypes. Masked rows hold NaN in `temperature` and `weights`."""
    layers = []
    for dtype, features in zip(dtypes, (3, 4), strict=True):
        hidden, classifier = rng.integers(-8, 9, (*rows, features)) / 8, rng.integers(-8, 9, (features, classes)) / 4
        bias = rng.integers(-4, 5, classes) / 4
        layers += [hidden.astype(dtype), classifier.astype(dtype), bias.astype(dtype), np.float32(2 + features / 2)]
    mask = np.arange(np.prod(rows)).reshape(rows) % 3 != 1
    temperature, weights = rng.uniform(0.5, 2, rows), rng.standard_normal(rows)
    temperature, weights = (np.where(mask, x, np.nan).astype(np.float32) for x in (temperature, weights))
    return Problem(*layers, temperature, weights, WEIGHT, mask, np.arange(classes) % 5 != 2)


def as_float64(problem: Problem) -> Problem:
    return Problem(*(x.astype(np.float64) if x.dtype != bool else x for x in map(np.asarray, problem)))


def split(problem: Problem):
    """Return the arguments with gradients by name, and a function that puts others in their place."""
    by_name = {name: jnp.asarray(getattr(problem, name)) for name in DIFFERENTIABLE}
    return by_name, lambda others: problem._replace(**others)


def arguments_of(name, problem: Problem, ways):
    """Return the logits, each dense or those of a layer with an implementation, and the options of a function."""
    target = problem.target_hidden, problem.target_classifier, problem.target_bias, problem.target_cap
    student = problem.hidden, problem.classifier, problem.bias, problem.soft_cap
    logits = [_logits(*layer, way) for layer, way in zip((target, student), ways, strict=True)]
    where = jnp.asarray(problem.where).reshape((1,) * (logits[0].ndim - 1) + (-1,))
    options = {"temperature": problem.temperature, "mask": problem.mask, "where": where}
    options |= {"weight": jnp.asarray(problem.weight)} if name.startswith("js") else {}
    options |= {"weights": problem.weights} if name.endswith("sum") else {}
    return logits, options


def _logits(hidden, classifier, bias, soft_cap, way):
    if way != DENSE:
        return jaxce.LinearLogits(hidden, classifier, bias=bias, soft_cap=soft_cap, implementation=way)
    raw = jnp.asarray(hidden) @ jnp.asarray(classifier) + jnp.asarray(bias).reshape((1,) * (hidden.ndim - 1) + (-1,))
    soft_cap = jnp.asarray(soft_cap).astype(raw.dtype)
    return soft_cap * jnp.tanh(raw / soft_cap)


def total(name, problem: Problem, ways=(None, None), **options):
    """Return the weighted sum of the divergences. A function of divergences per row has its cotangents."""
    logits, others = arguments_of(name, problem, ways)
    result = FUNCTIONS[name](*logits, **others, **options)
    if isinstance(result, jaxce.LossSum):
        return result.total
    weights = jnp.where(problem.mask, jnp.asarray(problem.weights), 0)
    return jnp.sum(weights.astype(result.dtype) * result)


def plain_total(name, problem: Problem):
    """Return the same by the textbook formulas."""
    logits, options = arguments_of(name, problem, (DENSE, DENSE))
    options.pop("weights", None)
    weights = jnp.where(problem.mask, jnp.asarray(problem.weights), 0)
    return jnp.sum(weights * plain(*logits, **options))


def gradients(function, problem: Problem):
    """Return `function(problem)` and its gradients by name, compiled."""
    by_name, replaced = split(problem)
    return jax.jit(jax.value_and_grad(lambda x: function(replaced(x))))(by_name)


def plain(target, logits, *, where=None, mask=None, temperature=None, weight=None):
    """Return the divergences by the textbook formulas in plain `jnp`, for logits of any dtype, with the class axis last."""
    if mask is not None:
        target, logits = (jnp.where(mask[..., None], x, 0) for x in (target, logits))
        temperature = None if temperature is None else jnp.where(mask, temperature, 1)
    if temperature is not None:
        target, logits = (x / jnp.expand_dims(temperature, -1) for x in (target, logits))
    where = jnp.ones(logits.shape, bool) if where is None else jnp.broadcast_to(where, logits.shape)
    log_q, log_p = (jnp.where(where, jax.nn.log_softmax(x, where=where), 0) for x in (target, logits))
    q, p = (jnp.where(where, jnp.exp(x), 0) for x in (log_q, log_p))
    if weight is None:
        losses = jnp.sum(q * (log_q - log_p), -1)
    else:
        log_m = jnp.logaddexp(jnp.log(weight) + log_q, jnp.log1p(-weight) + log_p)
        losses = weight * jnp.sum(q * (log_q - log_m), -1) + (1 - weight) * jnp.sum(p * (log_p - log_m), -1)
    return losses if mask is None else jnp.where(mask, losses, 0)
