"""`nbprop.trace`: every op as it ran, with the bits of `value_and_grad`; and its page in a real browser."""

import json
import re

import numpy as np
import pytest

import nbprop
from support import cases, chromium

SMALL = nbprop.network((2,), nbprop.dense(3, activation="tanh"), nbprop.dense(2))


@pytest.fixture(scope="module")
def small():
    """A trace of two layers on three samples, and its arrays."""
    rng = np.random.default_rng(0)
    x, target, params = rng.standard_normal((3, 2)), rng.standard_normal((3, 2)), nbprop.init(SMALL, seed=0)
    return nbprop.trace(nbprop.plan(SMALL, loss="mse", batch=8), params, x, target, lr=0.25), params, x, target


def test_a_step_by_hand(small):
    """Every op's inputs and outputs, from the equations."""
    found, params, x, target = small
    p = nbprop.views(SMALL, params)
    w0, b0, w1, b1 = (p[f"{k}.dense.{name}"] for k in (0, 1) for name in ("weight", "bias"))
    h = np.tanh(x @ w0 + b0)
    y = h @ w1 + b1
    dy = 2 * (y - target) / y.size
    dh = dy @ w1.T
    dz = dh * (1 - h**2)
    z = x @ w0 + b0
    # (layer, kernel): what it reads, what it writes. An array that is changed in place is in both.
    wanted = {
        ("0.dense", "dense_forward"): ({"x": x, "w": w0, "b": b0}, {"y": z}),
        ("0.dense", "activation_inplace"): ({"y": z}, {"y": h}),
        ("1.dense", "dense_forward"): ({"x": h, "w": w1, "b": b1}, {"y": y}),
        ("loss", "mse_kernel"): ({"y": y, "target": target}, {"losses": ((y - target) ** 2).mean(1), "dy": dy}),
        ("1.dense", "dense_backward_parameters"): ({"x": h, "dz": dy}, {"dw": h.T @ dy, "db": dy.sum(0)}),
        ("1.dense", "dense_backward_input"): ({"dz": dy, "w": w1}, {"dx": dh}),
        ("0.dense", "activation_backward"): ({"d": dh, "s": h}, {"d": dz}),
        ("0.dense", "dense_backward_parameters"): ({"x": x, "dz": dz}, {"dw": x.T @ dz, "db": dz.sum(0)}),
    }
    steps = {(step.layer, step.kernel): step for step in found.steps}
    for key, told in wanted.items():
        for arrays, expected in zip((steps[key].inputs, steps[key].outputs), told, strict=True):
            for name, array in expected.items():
                np.testing.assert_allclose(
                    arrays[name].reshape(array.shape), array, rtol=1e-12, err_msg=f"{key} {name}"
                )
    phases = [step.phase for step in found.steps]
    assert phases == sorted(phases, key=["forward", "error", "backward"].index)
    assert [step.number for step in found.steps] == list(range(len(found.steps)))
    np.testing.assert_allclose(found.units["0.dense"].output, h, rtol=1e-12)
    np.testing.assert_allclose(found.units["0.dense"].gradient, dh, rtol=1e-12)
    np.testing.assert_allclose(found.units["1.dense"].gradient, dy, rtol=1e-12)
    np.testing.assert_allclose(found.dx, dz @ w0.T, rtol=1e-12)
    np.testing.assert_allclose(found.loss, np.mean((y - target) ** 2), rtol=1e-12)
    np.testing.assert_array_equal(found.updated, params - 0.25 * found.grads)
    plan = nbprop.plan(SMALL, loss="mse", batch=3)
    assert found.loss_after == nbprop.value(plan, found.updated, x, target, nbprop.workspace(plan)) < found.loss


def test_what_ops_read_is_what_others_have_written(small):
    """Data flows from op to op: what is read was given, or is the output of a step before, to the bit."""
    found, *_ = small
    known = [found.params, found.x, found.target, *nbprop.views(SMALL, found.params).values()]
    seen = {array.tobytes() for array in known}
    for step in found.steps:
        for name, array in step.inputs.items():
            assert not array.size or array.tobytes() in seen, (step.kernel, name)
        seen.update(array.tobytes() for array in step.outputs.values())


@pytest.mark.parametrize("name", ["dense", "conv", "tokens", "dropout", "batchnorm", "lengths"])
def test_bits_are_those_of_value_and_grad(name):
    """On networks of every kind of argument: images, integers, randomness, statistics, lengths."""
    rng, more, loss, target = np.random.default_rng(1), {}, "mse", None
    if name == "dense":
        net, x = cases.CLASSIFIER, rng.standard_normal((5, 3))
        loss, target = "softmax_cross_entropy", rng.integers(0, 4, 5)
    elif name == "conv":
        layers = nbprop.conv2d(3, 3, activation="relu"), nbprop.max_pool2d(2), nbprop.flatten(), nbprop.dense(2)
        net, x = nbprop.network((6, 6, 1), *layers), rng.standard_normal((5, 6, 6, 1))
    elif name == "tokens":
        net = nbprop.network((4,), nbprop.embedding(5, 3), nbprop.dense(5))
        x, loss, target = rng.integers(0, 5, (5, 4)), "softmax_cross_entropy", rng.integers(0, 5, (5, 4))
    elif name == "lengths":
        net, x = nbprop.network((4, 3), nbprop.lstm(3), nbprop.dense(2)), rng.standard_normal((5, 4, 3))
        more["lengths"] = np.array([4, 2, 1, 3, 4])
    else:
        layer = nbprop.batchnorm() if name == "batchnorm" else nbprop.dropout(0.5)
        net, x = nbprop.network((3,), nbprop.dense(6), layer, nbprop.dense(2)), rng.standard_normal((5, 3))
        more["step"] = 7
    plan, params = nbprop.plan(net, loss=loss, batch=5), nbprop.init(net, seed=2)
    target = rng.standard_normal((5, *plan.target_shape)) if target is None else target
    state = nbprop.layer_state(plan) if plan.state_size else None
    kept = [None if array is None else array.copy() for array in (params, x, target, state)]
    found = nbprop.trace(plan, params, x, target, 0.01, state, **more)
    for array, before in zip((params, x, target, state), kept, strict=True):
        np.testing.assert_array_equal(array, before)
    grads = np.empty_like(params)
    wanted = nbprop.value_and_grad(plan, params, x, target, grads, nbprop.workspace(plan), state=state, **more)
    assert found.loss == wanted
    np.testing.assert_array_equal(found.grads, grads)
    assert len(found.steps) == len(plan.ops(2))
    assert (found.dx is None) == (name == "tokens")
    json.dumps(json.loads(re.search(r'id="data">(.*?)</script>', found.html(), re.S)[1]), allow_nan=False)


def test_trace_refuses():
    plan, params = nbprop.plan(SMALL, loss="mse"), nbprop.init(SMALL)
    x, target = np.ones((1, 2)), np.ones((1, 2))
    for arguments, error in (
        ((None, params, x, target), "trace: plan must be"),
        ((nbprop.plan(SMALL), params, x, target), "trace: .*loss"),
        ((plan, params[1:], x, target), "trace: params must"),
        ((plan, params, x[:, :1], target), "trace: x must"),
        ((plan, params, x, target[:0]), "trace: target must"),
        ((plan, params, x, target, -1.0), "trace: lr must"),
        ((plan, params, x, target, 0.1, params), "trace: state"),
    ):
        with pytest.raises((TypeError, ValueError), match=error):
            nbprop.trace(*arguments)


def test_html_of_what_is_not_finite():
    """A run that diverged is what one wants to look at."""
    params = nbprop.init(SMALL, seed=0)
    params[0] = np.nan
    found = nbprop.trace(nbprop.plan(SMALL, loss="mse"), params, np.ones((1, 2)), np.ones((1, 2)))
    data = json.loads(re.search(r'id="data">(.*?)</script>', found.html(), re.S)[1])
    assert data["loss"] is None


# -- the page ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser():
    if chromium.find() is None:
        pytest.skip("Chromium is not installed (Debian: apt-get install chromium)")
    with chromium.page() as page:
        yield page


@pytest.fixture
def page(small, browser, tmp_path):
    small[0].save(tmp_path / "trace.html")
    browser.problems.clear()
    browser.requests.clear()
    browser.size(1400, 900)
    browser.open((tmp_path / "trace.html").as_uri())
    yield browser
    assert browser.problems == []
    assert [address for address in browser.requests if not address.startswith(("file:", "data:"))] == []


def count(page, selector):
    return page.js(f"document.querySelectorAll('{selector}').length")


@pytest.mark.more
def test_the_page_steps_through(page, small):
    """Dots appear layer by layer, then elastics, then forces down to the inputs; at the end weights have moved."""
    found, *_ = small
    assert page.js("document.querySelector('#back').disabled")
    shown = [count(page, "circle.unit")]
    for _ in range(2):
        page.js("document.querySelector('#next').click()")
        shown.append(count(page, "circle.unit"))
    assert shown == [2, 2 + 3, 2 + 3 + 2]  # a layer's units, once its last op has run
    assert count(page, ".spring") == count(page, ".force") == 0
    page.js("document.querySelector('#next').click()")
    assert "the loss is " + f"{found.loss:.6g}" in page.js("document.querySelector('#said').innerText")
    assert count(page, ".spring") == 2
    assert count(page, "line.force") == 2
    before = page.js("document.querySelector('#net svg').outerHTML")
    page.js("document.querySelector('#sample').value = 1")
    page.js("document.querySelector('#sample').dispatchEvent(new Event('change'))")
    assert page.js("document.querySelector('#net svg').outerHTML") != before
    page.key("End", 35)
    assert page.js("document.querySelector('#phases [aria-current]').innerText") == "4 update"
    assert count(page, ".force") == 0
    page.key("ArrowLeft", 37)
    assert page.js("document.querySelector('#phases [aria-current]').innerText") == "3 backward"
    assert count(page, "line.force") == 7
    page.key("Home", 36)
    assert count(page, "circle.unit") == 2


@pytest.mark.more
def test_forces_point_where_they_pull(page, small):
    """An output below its target has an arrow upwards, whose number is minus the derivative of the sample's loss."""
    found, _, _, target = small
    page.js("for (let i = 0; i < 3; i++) document.querySelector('#next').click()")
    told = page.js("[...document.querySelectorAll('.forcetext')].map(text => Number(text.textContent))")
    forces = -3 * found.units["1.dense"].gradient[0]
    np.testing.assert_allclose(told, forces, rtol=0.06)
    assert (np.sign(forces) == np.sign(target[0] - found.units["1.dense"].output[0])).all()
    ends = page.js("[...document.querySelectorAll('line.force')].map(l => l.getAttribute('y1') - l.getAttribute('y2'))")
    assert (np.sign(ends) == np.sign(forces)).all()


@pytest.mark.more
def test_the_page_plays_and_stops(page):
    page.js("document.querySelector('#play').click()")
    assert page.js("document.querySelector('#play').innerText") == "Stop"
    page.wait("document.querySelector('#place').value >= 2")
    page.js("document.querySelector('#play').click()")
    assert page.js("document.querySelector('#play').getAttribute('aria-pressed')") == "false"


@pytest.mark.more
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1400])
def test_the_page_fits_and_is_readable(page, width, scheme):
    page.command("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    page.size(width, 900, mobile=width < 500)
    page.key("End", 35)
    page.key("ArrowLeft", 37)
    assert page.js("document.documentElement.scrollWidth") <= width
    assert chromium.violations(page) == []
    page.command("Emulation.setEmulatedMedia", features=[])
