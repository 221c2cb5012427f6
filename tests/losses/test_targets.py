"""Targets lie where their loss takes them; what a network does itself its loss does not do again."""

import warnings
from dataclasses import dataclass

import numba
import numpy as np
import pytest

import nbprop
from nbprop.compiler.fingerprint import is_ours
from nbprop.losses import LOSSES
from nbprop.losses.mse import MeanSquaredError
from support import cases


@dataclass(frozen=True)
class AboveOne(MeanSquaredError):
    """A user's loss, whose targets lie in 1..2."""

    kind = "above_one"
    target_range = (1.0, 2.0)


LOSSES.pop("above_one")  # the tests of every loss are not about this one
N, NET = 4, cases.REGRESSOR
RANGES = {"binary_cross_entropy": (0.0, 1.0), "above one": (1.0, 2.0)}
PLANS = {name: nbprop.plan(NET, AboveOne() if name == "above one" else name, batch=6) for name in RANGES}
WITH_GRADIENT = ("value_and_grad", "hvp", "gauss_newton_product", "fisher_product", "per_sample_grads")


def call(function, plan, target):
    """One of the functions that take a target, on data that fits."""
    x, params, work = np.ones((N, 3)), nbprop.init(NET), nbprop.workspace(plan)
    v, out = np.ones(plan.n_params), np.zeros(plan.n_params)
    if function == "value":
        nbprop.value(plan, params, x, target, work)
    elif function == "value_and_grad":
        nbprop.value_and_grad(plan, params, x, target, out, work)
    elif function == "per_sample_grads":
        nbprop.per_sample_grads(plan, params, x, target, np.zeros((N, plan.n_params)), work)
    elif function in WITH_GRADIENT:
        getattr(nbprop, function)(plan, params, v, x, target, out, work)
    elif function == "fit":
        nbprop.fit(NET, params, x, target, plan.loss, epochs=1)
    elif function == "fit, validation":
        good = np.full_like(target, sum(plan.target_range) / 2)
        nbprop.fit(NET, params, x, good, plan.loss, epochs=1, validation=(x, target))
    elif function == "objective":
        nbprop.objective(plan, x, target)
    else:
        getattr(nbprop, function)(plan, params, x, target)


EVERYWHERE = ("value", *WITH_GRADIENT, "fit", "fit, validation", "objective", "minimize", "rounding_error")


@pytest.mark.parametrize("function", [*EVERYWHERE, "hessian_operator", "gauss_newton_operator"])
@pytest.mark.parametrize("name", RANGES)
def test_targets_outside_the_losss_range_are_refused(name, function):
    plan, (low, high) = PLANS[name], RANGES[name]
    for wrong in (np.nextafter(low, -1), np.nextafter(high, 9), -7.0, 4.0):
        target = np.full((N, 2), high)
        target[2, 1] = wrong
        with pytest.raises(ValueError, match=rf"target must lie in {low:g}\.\.{high:g} for .* at .*target\[2, 1\]"):
            call(function, plan, target)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_ends_of_the_range_and_nan_pass(dtype):
    """At every size of a vector and its tail; NaN makes the loss NaN."""
    for n in (1, 5, 33):
        plan = nbprop.plan(NET, "binary_cross_entropy", batch=33, dtype=dtype)
        x, params, work = np.ones((n, 3), dtype), nbprop.init(NET, dtype=dtype), nbprop.workspace(plan)
        for place in range(2 * n):
            target = np.ones((n, 2), dtype)
            target.flat[place] = 0.0
            assert np.isfinite(nbprop.value(plan, params, x, target, work))
            target.flat[place] = np.nan
            assert np.isnan(nbprop.value(plan, params, x, target, work))
            target.flat[place] = -0.5
            with pytest.raises(ValueError, match=rf"got -0.5 at target\[{place // 2}, {place % 2}\]"):
                nbprop.value(plan, params, x, target, work)


@numba.njit
def compiled(plan, params, x, target, work):
    return nbprop.value(plan, params, x, target, work)


def test_compiled_code_refuses_them():
    plan = PLANS["binary_cross_entropy"]
    with pytest.raises(ValueError, match="target must lie in the range"):
        compiled(plan, nbprop.init(NET), np.ones((N, 3)), np.full((N, 2), 2.0), nbprop.workspace(plan))


def test_every_loss_says_where_its_targets_lie():
    for kind in (kind for kind, cls in LOSSES.items() if is_ours(cls)):
        text = getattr(nbprop, kind).__doc__
        assert "Targets" in text or "target" in text, kind
        assert any(word in text for word in ("finite numbers", "refused")), kind


ONE_HOT = {
    "float": (np.eye(4), TypeError),
    "integer": (np.eye(4, dtype=np.int64), ValueError),
}


@pytest.mark.parametrize("what", ONE_HOT)
def test_one_hot_targets_are_told_of_argmax(what, classifier):
    target, kind = ONE_HOT[what]
    x, params = np.ones((4, 3)), nbprop.init(classifier.net)
    with pytest.raises(kind, match=r"value: target must hold integers.*argmax\(-1\)"):
        nbprop.value(classifier, params, x, target, nbprop.workspace(classifier))
    with pytest.raises(kind, match=r"fit: target must hold integers.*argmax\(-1\)"):
        nbprop.fit(classifier.net, params, x, target, "softmax_cross_entropy")


def test_one_convention_of_places():
    """The place of a wrong value is what Python calls it by, from every entry."""
    plan, x, params = PLANS["binary_cross_entropy"], np.ones((N, 3)), nbprop.init(NET)
    x[3, 0] = np.nan
    for value in (np.nan, np.inf):
        x[3, 0] = value
        for function in ("fit", "objective", "minimize", "rounding_error", "hessian_operator"):
            with pytest.raises(ValueError, match=rf"{function}: x\[3, 0\] is {value}; leave such samples out"):
                call_on(function, plan, params, x)
    classes, labels = nbprop.plan(cases.CLASSIFIER, "softmax_cross_entropy", batch=6), np.array([0, 1, 7, 9])
    for function in ("value", "fit", "objective"):
        with pytest.raises(ValueError, match=rf"{function}: target must hold classes in 0\.\.3, got 7 at target\[2\]"):
            call_on(function, classes, nbprop.init(cases.CLASSIFIER), np.ones((N, 3)), labels)


def call_on(function, plan, params, x, target=None):
    target = np.ones((N, 2)) if target is None else target
    if function == "fit":
        nbprop.fit(plan.net, params, x, target, plan.loss)
    elif function == "value":
        nbprop.value(plan, params, x, target, nbprop.workspace(plan))
    elif function == "objective":
        nbprop.objective(plan, x, target)
    else:
        getattr(nbprop, function)(plan, params, x, target)


dense = nbprop.dense
DOUBLED = {
    "softmax layer": ([dense(4), nbprop.activation("softmax")], "softmax_cross_entropy"),
    "dense softmax": ([dense(4, activation="softmax")], "softmax_cross_entropy"),
    "behind a reshape": (
        [dense(4, activation="sigmoid"), nbprop.reshape((2, 2)), nbprop.flatten()],
        "binary_cross_entropy",
    ),
    "sigmoid under softmax": ([dense(4, activation="sigmoid")], "softmax_cross_entropy"),
}
SINGLE = {
    "logits": ([dense(4)], "softmax_cross_entropy"),
    "softmax under mse": ([dense(4, activation="softmax")], "mse"),
    "no loss": ([dense(4, activation="softmax")], None),
    "inside": ([dense(4, activation="sigmoid"), dense(4)], "binary_cross_entropy"),
}


@pytest.mark.parametrize("what", [*DOUBLED, *SINGLE])
def test_an_activation_that_the_loss_applies_itself_is_warned_of(what):
    layers, loss = (DOUBLED | SINGLE)[what]
    net = nbprop.network((3,), *layers)
    for _ in range(2):  # also when the plan is known
        if what in DOUBLED:
            with pytest.warns(UserWarning, match="takes logits and applies its own"):
                nbprop.plan(net, loss)
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                nbprop.plan(net, loss)
