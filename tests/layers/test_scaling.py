"""standardize and rescale: their derivatives, what does not train them, and where their numbers come from."""

from decimal import Decimal, localcontext

import numpy as np
import pytest

import nbprop
from nbprop.optimizers.update_rules import RULES
from support.cases import same_bits

N = 7


def network(trainable):
    """(2, 3) -> (2, 2), scaled on both sides."""
    hidden = nbprop.dense(4, activation="tanh"), nbprop.dense(2)
    return nbprop.network((2, 3), nbprop.standardize(trainable), *hidden, nbprop.rescale(trainable))


TRAINED, GIVEN = network(True), network(False)
MASK = nbprop.trainable_mask(GIVEN)


def problem(net, loss="mse", **options):
    """(plan, params away from 0 and 1, x, target), x and target far from 0 in units of their own."""
    rng, plan = np.random.default_rng(0), nbprop.plan(net, loss=loss, batch=N, **options)
    params = nbprop.init(net, seed=1) + rng.uniform(0.1, 0.2, net.n_params)
    x, target = rng.normal([3.0, -2.0, 0.5], [2.0, 1.0, 0.3], (N, 2, 3)), rng.normal(5.0, 2.0, (N, 2, 2))
    return plan, params.astype(plan.dtype), x.astype(plan.dtype), target.astype(plan.dtype)


def derivatives(net, v, threads=1):
    """Every derivative by the parameters: gradient, products along v, rows."""
    plan, params, x, target = problem(net, threads=threads)
    work, n = nbprop.workspace(plan), net.n_params
    dx = np.random.default_rng(4).standard_normal(x.shape)
    found = {name: np.full(n, np.nan) for name in ("grads", "hvp", "gauss_newton", "vjp")}
    found |= {"jvp": np.full(target.shape, np.nan), "dx": np.full(x.shape, np.nan)}
    found |= {"jacobian": np.full((target.size, n), np.nan), "rows": np.full((N, n), np.nan)}
    found["added"] = np.ones(n)
    nbprop.value_and_grad(plan, params, x, target, found["grads"], work)
    nbprop.value_and_grad(plan, params, x, target, found["added"], work, accumulate=True)
    nbprop.hvp(plan, params, v, x, target, found["hvp"], work, dx=dx)
    nbprop.gauss_newton_product(plan, params, v, x, target, found["gauss_newton"], work)
    nbprop.jvp(plan, params, v, x, dx, found["jvp"], work)
    nbprop.vjp(plan, params, x, target, found["vjp"], found["dx"], work)
    nbprop.jacobian(plan, params, x, found["jacobian"], work)
    nbprop.per_sample_grads(plan, params, x, target, found["rows"], work)
    return found


def test_derivatives_when_trained_are_differences():
    plan, params, x, target = problem(TRAINED)
    v, step = np.random.default_rng(5).standard_normal(params.size), 1e-6
    dx, work = np.random.default_rng(4).standard_normal(x.shape), nbprop.workspace(plan)
    found, moved = derivatives(TRAINED, v), []
    for sign in (1, -1):
        grads, y = np.empty(params.size), np.empty(target.shape)
        there = params + sign * step * v, x + sign * step * dx
        nbprop.value_and_grad(plan, *there, target, grads, work)
        nbprop.forward(plan, *there, y, work)
        moved.append((grads, y))
    (high, y_high), (low, y_low) = moved
    for name, difference in (("hvp", high - low), ("jvp", y_high - y_low)):
        difference = difference / (2 * step)
        assert np.abs(found[name] - difference).max() <= 1e-6 * np.abs(difference).max(), name
    assert np.allclose(found["jacobian"].T @ target.reshape(-1), found["vjp"], rtol=1e-12)
    assert np.allclose(found["rows"].mean(0), found["grads"], rtol=1e-12)
    # The Gauss-Newton product of the mean of squares is 2 J^T J v / (outputs in all).
    assert np.allclose(found["gauss_newton"], 2 / target.size * found["jacobian"].T @ (found["jacobian"] @ v))


@pytest.mark.usefixtures("four_cores")
def test_numbers_that_are_given_are_constants_to_every_derivative():
    """As when they are trained, with 0 in their places; the bits on any number of threads."""
    v = np.random.default_rng(5).standard_normal(GIVEN.n_params)
    given, trained = derivatives(GIVEN, v), derivatives(TRAINED, np.where(MASK, v, 0.0))
    for name in ("grads", "hvp", "gauss_newton", "vjp", "jacobian", "rows"):
        assert np.all(given[name][..., ~MASK] == 0), name
        assert np.allclose(given[name][..., MASK], trained[name][..., MASK], rtol=1e-12), name
    assert np.all(given["added"][~MASK] == 1)
    for name in ("jvp", "dx"):
        assert np.allclose(given[name], trained[name], rtol=1e-12), name
    for name, value in derivatives(GIVEN, v, threads=3).items():
        same_bits(name, value, given[name])
    assert nbprop.gradcheck(GIVEN, "mse")["0.standardize.mean"] == 0
    assert nbprop.gradcheck(TRAINED, "mse")["0.standardize.mean"] < 1e-7


@pytest.mark.parametrize("optimizer", list(RULES))
def test_no_optimizer_of_fit_moves_given_numbers(optimizer):
    """Not by weight decay, not where the caller's own mask names them; those that are trained move."""
    for net, stay in ((GIVEN, ~MASK), (TRAINED, np.zeros(MASK.size, bool))):
        _, params, x, target = problem(net)
        before = params.copy()
        options = {"epochs": 2, "weight_decay": 0.1, "trainable": np.ones(MASK.size, bool)}
        nbprop.fit(net, params, x, target, "mse", optimizer, lr=1e-3, **options)
        assert np.array_equal(params == before, stay)


@pytest.mark.parametrize("method", ["L-BFGS", "L-BFGS-B", "BFGS", "CG", "TNC", "SLSQP", "trust-ncg", "trust-constr"])
def test_no_method_of_minimize_moves_given_numbers(method):
    plan, params, x, target = problem(GIVEN)
    before = params.copy()
    nbprop.minimize(plan, params, x, target, method, maxiter=5)
    assert np.array_equal(params == before, ~MASK)


@pytest.mark.parametrize("method", ["trf", "dogbox", "marquardt"])
def test_no_least_squares_moves_given_numbers(method):
    plan, params, x, target = problem(GIVEN)
    before = params.copy()
    nbprop.least_squares(plan, params, x, target, method, max_nfev=5)
    assert np.array_equal(params == before, ~MASK)


@pytest.mark.parametrize("method", ["L-BFGS", "marquardt", "adam"])
def test_no_fleet_moves_given_numbers(method):
    _, params, x, target = problem(GIVEN)
    thetas = np.stack([params, params * 1.1])
    before = thetas.copy()
    nbprop.fit_many(GIVEN, thetas, np.stack([x, x]), np.stack([target, -target]), method=method, maxiter=5)
    assert np.array_equal(thetas == before, np.stack([~MASK, ~MASK]))


# -- fit_scaling ---------------------------------------------------------------------------------------------


def numbers(x, target=None, **options):
    """{"mean", "std"} that `fit_scaling` sets from x."""
    net = nbprop.network(x.shape[1:], nbprop.standardize())
    params = np.full(net.n_params, np.nan, x.dtype)
    nbprop.fit_scaling(net, params, x, target, **options)
    return {path.rpartition(".")[2]: part for path, part in nbprop.views(net, params).items()}


def exact(column):
    """(mean, std) of a column, in decimals of 80 digits."""
    with localcontext() as context:
        context.prec = 80
        values = [Decimal(float(value)) for value in column]
        mean = sum(values) / len(values)
        return float(mean), float((sum((value - mean) ** 2 for value in values) / len(values)).sqrt())


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("shift", "scale"), [(0, 1), (1e6, 1), (-3, 1e-30), (0, 1e30), (2e3, 1e-2)])
def test_mean_and_std_are_the_exact_ones(dtype, shift, scale):
    x = (np.random.default_rng(0).standard_normal((50, 2)) * scale + shift).astype(dtype)
    x[0] = x[0] * 1000  # an outlier: the middle lies far from the mean
    found = numbers(x)
    for j in range(2):
        mean, std = exact(x[:, j])
        eps = float(np.finfo(dtype).eps)
        assert abs(found["mean"][j] - mean) <= eps * max(abs(mean), std)
        assert found["std"][j] == pytest.approx(std, rel=2 * eps)


def test_extreme_values_neither_overflow_nor_vanish():
    x = np.array([[1.7e308, 5e-324, -1.7e308], [-1.7e308, 0.0, 1.7e308]])
    found = numbers(x)
    assert found["mean"].tolist() == [0, 0, 0]
    assert found["std"].tolist() == [1.7e308, 1, 1.7e308]  # half of the smallest number is none


def test_constant_and_missing_features():
    """A constant one becomes 0, also where rounding has blurred it; NaN is left out; of no values std is 1."""
    blurred = np.where(np.arange(4) % 2, 0.1 + 0.2, 0.3)
    columns = [[7.0] * 4, blurred, [1, np.nan, 3, np.nan], [np.nan] * 4, [1e9, 1e9, 1e9, 1e9 + 1]]
    found = numbers(np.array(columns, float).T.copy())
    assert found["mean"][:4].tolist() == [7.0, pytest.approx(0.3), 2.0, 0.0]
    assert found["std"].tolist() == [1, 1, 1, 1, pytest.approx(np.sqrt(3) / 4)]


def test_every_axis_but_the_last_and_lengths():
    """Statistics run over samples and positions; what lies beyond lengths is not looked at."""
    rng = np.random.default_rng(1)
    x, lengths = rng.standard_normal((5, 4, 3)), np.array([4, 1, 2, 3, 4])
    net = nbprop.network((4, 3), nbprop.standardize(), nbprop.rnn(2), nbprop.dense(2), nbprop.rescale())
    target, params = rng.standard_normal((5, 4, 2)), nbprop.init(net, seed=0)
    within = np.arange(4) < lengths[:, None]
    for array in (x, target):
        array[~within] = np.inf
    before = params.copy()
    nbprop.fit_scaling(net, params, x, target, lengths=lengths)
    parts = nbprop.views(net, params)
    for path, array in (("0.standardize", x), ("3.rescale", target)):
        assert np.allclose(parts[f"{path}.mean"], array[within].mean(0), rtol=1e-14)
        assert np.allclose(parts[f"{path}.std"], array[within].std(0), rtol=1e-14)
    mask = nbprop.trainable_mask(net)
    assert np.array_equal(params[mask], before[mask])


def test_weights_count_samples():
    """A weight of 2 is a sample twice, one of 0 none, whatever the sample holds."""
    x = np.random.default_rng(1).standard_normal((6, 3)) + 5
    times = np.array([1, 0, 2, 3, 0, 1])
    wanted = numbers(np.repeat(x, times, axis=0))
    x[1] = np.inf
    found = numbers(x, weights=times.astype(float))
    for name in wanted:
        assert np.allclose(found[name], wanted[name], rtol=1e-14)


def test_data_larger_than_a_piece_and_in_a_file(tmp_path, monkeypatch):
    from nbprop.training import scaling

    x = np.random.default_rng(2).standard_normal((100, 3)).astype(np.float32)
    whole = numbers(x)
    monkeypatch.setattr(scaling, "PIECE", 1000)
    np.save(tmp_path / "x.npy", x)
    pieces = numbers(np.load(tmp_path / "x.npy", mmap_mode="r"))
    for name in whole:
        assert np.allclose(whole[name], pieces[name], rtol=1e-6, atol=1e-7)


def test_units_leave_a_network_as_it_is(tmp_path):
    """Scaled data through the network alone is the data through the network with scaling; so is its file."""
    rng = np.random.default_rng(3)
    x, target = rng.normal(1e5, 3, (40, 3)), rng.normal(-2, 1e-3, (40, 2))
    hidden = nbprop.dense(4, activation="tanh"), nbprop.dense(2)
    inner, net = nbprop.network((3,), *hidden), nbprop.network((3,), nbprop.standardize(), *hidden, nbprop.rescale())
    params = nbprop.init(net, seed=0)
    nbprop.fit_scaling(net, params, x, target)
    plan, y = nbprop.plan(net, batch=40), np.empty((40, 2))
    nbprop.forward(plan, params, x, y, nbprop.workspace(plan))
    plan, z = nbprop.plan(inner, batch=40), np.empty((40, 2))
    own = params[nbprop.trainable_mask(net)]
    nbprop.forward(plan, own, (x - x.mean(0)) / x.std(0), z, nbprop.workspace(plan))
    assert np.allclose(y, z * target.std(0) + target.mean(0), rtol=1e-12)
    nbprop.save(tmp_path / "net.safetensors", net, params)
    loaded, numbers_again = nbprop.load(tmp_path / "net.safetensors")
    assert loaded == net
    same_bits("params", numbers_again, params)


def test_refusals():
    x, target = np.ones((4, 3)), np.ones((4, 2))
    dense, standardize, rescale = nbprop.dense(2), nbprop.standardize(), nbprop.rescale()
    both = nbprop.network((3,), standardize, dense, rescale)
    params = np.zeros(both.n_params)
    for net, arguments, text in (
        (nbprop.network((3,), dense), (x,), "no scaling"),
        (nbprop.network((3,), dense, standardize), (x,), "layer 1.standardize sees neither"),
        (nbprop.network((3,), rescale, dense), (x,), "layer 0.rescale sees neither"),
        (nbprop.network((3,), nbprop.residual(standardize)), (x,), "layer 0.residual.0.standardize sees neither"),
        (both, (x,), "target is needed to set layer 2.rescale"),
        (both, (x, target[:3]), "as many samples as x"),
        (both, (x, target[:, :1]), r"target must have shape \(n, 2\)"),
        (both, (x.astype(np.float32), target), "x must hold float64"),
        (both, (np.where(np.arange(3) == 1, np.inf, x), target), "infinity in feature 1"),
        (both, (x, target, -np.ones(4)), "weights must not be negative"),
        (both, (x, target, None, np.ones(4, int)), "lengths"),
    ):
        given = np.zeros(net.n_params)
        with pytest.raises((ValueError, TypeError), match=f"fit_scaling: .*{text}"):
            nbprop.fit_scaling(net, given, *arguments)
        assert not given.any()
    with pytest.raises(TypeError, match="net must be"):
        nbprop.fit_scaling(None, params, x, target)
    with pytest.raises(TypeError, match="trainable_mask: net must be"):
        nbprop.trainable_mask(None)
    with pytest.raises(TypeError, match="trainable must be True or False"):
        nbprop.standardize(1)
    with pytest.raises(ValueError, match="needs an axis"):
        nbprop.network((), nbprop.rescale())
