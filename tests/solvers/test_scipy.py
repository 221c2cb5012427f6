"""objective and minimize: gradients against differences, optima against closed forms, and what they refuse."""

import signal

import numpy as np
import pytest
import scipy.optimize

import nbprop
from nbprop.solvers import objective as scipy_bridge

RNG = np.random.default_rng(7)
N = 37
X = RNG.normal(size=(N, 3))
TARGET = np.sin(X[:, :2]) + 0.1 * RNG.normal(size=(N, 2))
WEIGHTS = RNG.uniform(0.1, 2.0, N)
NET = nbprop.network((3,), nbprop.dense(5, activation="tanh"), nbprop.dense(2))
LINEAR = nbprop.network((3,), nbprop.dense(2))
METHODS = ["L-BFGS-B", "BFGS", "CG"]
EXACT = {"L-BFGS-B": {"ftol": 1e-15, "gtol": 1e-9}, "BFGS": {"gtol": 1e-9}, "CG": {"gtol": 1e-9}}
# float32 has 24 bits; sums of a few dozen terms lose two or three of them.
CLOSE = {np.float64: 1e-12, np.float32: 3e-6}


def plan_of(net=NET, batch=N, dtype=np.float64, loss="mse", threads=1):
    return nbprop.plan(net, loss=loss, batch=batch, dtype=dtype, threads=threads)


def start(net=NET, dtype=np.float64):
    return nbprop.init(net, seed=3, dtype=dtype)


def least_squares(weights=None):
    """The optimum of LINEAR by lstsq, flat: weight (3, 2) row-major, then bias (2,)."""
    root = np.ones(N) if weights is None else np.sqrt(weights)
    design = np.column_stack([X, np.ones(N)]) * root[:, None]
    return np.linalg.lstsq(design, TARGET * root[:, None], rcond=None)[0].ravel()


# -- objective -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [N, 10])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_gradient_is_the_loss_function_s(batch, weights):
    fun = nbprop.objective(plan_of(batch=batch), X, TARGET, weights)
    theta = start()
    loss, gradient = fun(theta)
    step = 1e-5
    for i, direction in enumerate(np.eye(theta.size)):
        slope = (fun(theta + step * direction)[0] - fun(theta - step * direction)[0]) / (2 * step)
        assert abs(slope - gradient[i]) <= 1e-7 * max(1.0, abs(gradient[i]))
    assert isinstance(loss, float)
    assert scipy.optimize.check_grad(lambda t: fun(t)[0], lambda t: fun(t)[1], theta) < 1e-6


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("batch", [36, 10, 1])
@pytest.mark.parametrize("weights", [None, WEIGHTS, np.where(np.arange(N) < 20, 0.0, WEIGHTS)])
def test_chunks_agree_with_one_plan(dtype, batch, weights):
    arrays = [X.astype(dtype), TARGET.astype(dtype), None if weights is None else weights.astype(dtype)]
    theta = start()
    loss, gradient = nbprop.objective(plan_of(), X, TARGET, weights)(theta)
    part, part_gradient = nbprop.objective(plan_of(batch=batch, dtype=dtype), *arrays)(theta)
    assert part == pytest.approx(loss, rel=CLOSE[dtype])
    assert np.abs(part_gradient - gradient).max() <= CLOSE[dtype] * np.abs(gradient).max()


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("batch", [N, 10])
def test_gradients_are_fresh_float64_and_repeat(dtype, batch):
    fun = nbprop.objective(plan_of(batch=batch, dtype=dtype), X.astype(dtype), TARGET.astype(dtype))
    theta = start()
    before = theta.copy()
    loss, first = fun(theta)
    kept = first.copy()
    fun(theta + 1)
    again, second = fun(theta)
    assert first.dtype == np.float64
    assert (first == kept).all()
    assert not np.shares_memory(first, second)
    assert (again, second.tobytes()) == (loss, first.tobytes())
    assert (theta == before).all()
    assert fun.x is not X.copy()


def test_data_are_not_copied(tmp_path):
    x = np.memmap(tmp_path / "x", np.float64, "w+", shape=X.shape)
    x[:] = X
    fun = nbprop.objective(plan_of(batch=10), x, TARGET)
    assert np.shares_memory(fun.x, x)
    assert fun(start())[0] == nbprop.objective(plan_of(batch=10), X, TARGET)(start())[0]


def test_same_bits_on_more_threads():
    one, two = (nbprop.objective(plan_of(batch=10, threads=t), X, TARGET, WEIGHTS)(start()) for t in (1, 2))
    assert one[0] == two[0]
    assert (one[1] == two[1]).all()


def test_classes_in_chunks():
    net = nbprop.network((3,), nbprop.dense(4))
    labels = RNG.integers(0, 4, N).astype(np.int16)
    whole = nbprop.objective(plan_of(net, loss="softmax_cross_entropy"), X, labels)
    parts = nbprop.objective(plan_of(net, loss="softmax_cross_entropy", batch=8), X, labels)
    assert parts(start(net))[0] == pytest.approx(whole(start(net))[0], rel=1e-12)
    labels[30] = 4
    with pytest.raises(ValueError, match=r"target must hold classes in 0\.\.3, got 4"):
        nbprop.objective(plan_of(net, loss="softmax_cross_entropy", batch=8), X, labels)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_a_loss_that_is_not_finite_is_infinite(dtype):
    fun = nbprop.objective(plan_of(dtype=dtype), X.astype(dtype), TARGET.astype(dtype))
    assert fun(start() * np.nan)[0] == np.inf
    assert fun(start() * 1e300)[0] == np.inf


def changed(array, index, value):
    array = array.copy()
    array[index] = value
    return array


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ((X.tolist(), TARGET), TypeError, "x must be a NumPy array, got list"),
        ((X.astype(np.float32), TARGET), TypeError, "x must hold float64, got float32"),
        ((X, TARGET.astype(int)), TypeError, "target must hold float64, got int64"),
        ((X[:, :2], TARGET), ValueError, r"x must have shape \(n, 3\), got \(37, 2\)"),
        ((X[:, 0], TARGET), ValueError, r"x must have shape \(n, 3\), got \(37,\)"),
        ((X[::2], TARGET[::2]), ValueError, "x must be C-contiguous"),
        ((X[:0], TARGET[:0]), ValueError, "x has no samples"),
        ((X, TARGET[:-1]), ValueError, "target must bring as many samples as x, got 36 for 37"),
        ((X, TARGET, WEIGHTS[:-1]), ValueError, "weights must bring as many samples as x, got 36 for 37"),
        ((X, TARGET, WEIGHTS[:, None]), ValueError, r"weights must have shape \(n,\), got \(37, 1\)"),
        ((X, TARGET, -WEIGHTS), ValueError, "weights must not be negative"),
        ((X, TARGET, 0 * WEIGHTS), ValueError, "weights must not be negative, and their sum positive"),
        ((changed(X, (5, 1), np.nan), TARGET), ValueError, r"x\[5, 1\] is nan"),
        ((X, changed(TARGET, (36, 0), -np.inf)), ValueError, r"target\[36, 0\] is -inf"),
        ((X, changed(TARGET, (0, 1), np.inf)), ValueError, r"target\[0, 1\] is inf"),
        ((X, TARGET, changed(WEIGHTS, 2, np.nan)), ValueError, r"weights\[2\] is nan"),
    ],
)
def test_refused_data(arguments, error, said):
    with pytest.raises(error, match="objective: " + said):
        nbprop.objective(plan_of(), *arguments)


@pytest.mark.parametrize("batch", [N, 10])
@pytest.mark.parametrize(
    ("theta", "error", "said"),
    [
        (start().tolist(), TypeError, "theta must be a NumPy array, got list"),
        (start().astype(np.float32), TypeError, "theta must hold float64, got float32"),
        (start()[:-1], ValueError, r"theta must have shape \(32,\), got \(31,\)"),
        (start()[None], ValueError, r"theta must have shape \(32,\), got \(1, 32\)"),
        (np.zeros(64)[::2], ValueError, "theta must be C-contiguous"),
    ],
)
def test_refused_theta(batch, theta, error, said):
    with pytest.raises(error, match="objective: " + said):
        nbprop.objective(plan_of(batch=batch), X, TARGET)(theta)


def test_refused_plans():
    with pytest.raises(TypeError, match=r"objective: plan must be what nbprop\.plan"):
        nbprop.objective(NET, X, TARGET)
    with pytest.raises(ValueError, match="objective: this plan has no loss"):
        nbprop.objective(nbprop.plan(NET, batch=N), X, TARGET)


# -- minimize ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("batch", [N, 10])
def test_finds_the_least_squares_optimum(method, weights, batch):
    params = start(LINEAR)
    result = nbprop.minimize(plan_of(LINEAR, batch), params, X, TARGET, method, weights=weights, options=EXACT[method])
    assert np.abs(params - least_squares(weights)).max() < 1e-6
    assert (result.x == params).all()
    assert result.fun == nbprop.objective(plan_of(LINEAR, batch), X, TARGET, weights)(params)[0]


@pytest.mark.parametrize("method", METHODS)
def test_float32_plan(method):
    arrays = X.astype(np.float32), TARGET.astype(np.float32)
    params, plan = start(LINEAR, np.float32), plan_of(LINEAR, dtype=np.float32)
    result = nbprop.minimize(plan, params, *arrays, method)
    assert params.dtype == np.float32
    assert np.abs(params - least_squares()).max() < 1e-3
    assert result.x.dtype == np.float64
    assert (result.x == params).all()
    assert result.fun == nbprop.objective(plan, *arrays)(result.x)[0]


def test_method_names_and_limits_of_iterations():
    params, seen = start(), []
    result = nbprop.minimize(plan_of(), params, X, TARGET, "l-bfgs-b", maxiter=3, callback=lambda t: seen.append(t))
    assert (result.nit, len(seen), result.success) == (3, 3, False)
    assert "LIMIT" in result.message.upper()
    assert (seen[-1] == params).all()


@pytest.mark.parametrize(
    "bounds",
    [
        (-0.2, 0.3),
        (np.full(8, -0.2), 0.3),
        [(-0.2, 0.3)] * 8,
        np.array([(-0.2, 0.3)] * 8),
        scipy.optimize.Bounds(-0.2, 0.3),
    ],
)
def test_bounds(bounds):
    params = np.zeros(LINEAR.n_params)
    nbprop.minimize(plan_of(LINEAR), params, X, TARGET, bounds=bounds, options=EXACT["L-BFGS-B"])
    design = np.column_stack([X, np.ones(N)])
    wanted = [scipy.optimize.lsq_linear(design, TARGET[:, k], (-0.2, 0.3), tol=1e-14).x for k in (0, 1)]
    assert np.abs(params - np.column_stack(wanted).ravel()).max() < 1e-6
    assert params.min() >= -0.2
    assert params.max() == 0.3


def test_open_bounds():
    params = np.zeros(LINEAR.n_params)
    pairs = [(None, None)] * 7 + [(None, -0.5)]
    params[-1] = -1.0
    nbprop.minimize(plan_of(LINEAR), params, X, TARGET, bounds=pairs)
    assert params[-1] == -0.5
    nbprop.minimize(plan_of(LINEAR), params, X, TARGET, bounds=(None, np.inf), options=EXACT["L-BFGS-B"])
    assert np.abs(params - least_squares()).max() < 1e-6


def test_bounds_of_a_float32_plan_hold_in_float32():
    params = np.zeros(LINEAR.n_params, np.float32)
    plan = plan_of(LINEAR, dtype=np.float32)
    nbprop.minimize(plan, params, X.astype(np.float32), TARGET.astype(np.float32), bounds=(-0.1, 0.1))
    assert params.max() == np.float32(0.1)
    again = nbprop.minimize(plan, params, X.astype(np.float32), TARGET.astype(np.float32), bounds=(-0.1, 0.1))
    assert again.nit <= 1


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_frozen_parameters_keep_their_bits(method, dtype):
    params = start(dtype=dtype)
    trainable = np.ones(NET.n_params, bool)
    nbprop.views(NET, trainable)["0.dense.weight"][:] = False
    before, seen = params.copy(), []
    result = nbprop.minimize(
        plan_of(dtype=dtype),
        params,
        X.astype(dtype),
        TARGET.astype(dtype),
        method,
        trainable=trainable,
        callback=lambda intermediate_result: seen.append(intermediate_result),
        maxiter=20,
    )
    assert (params[~trainable] == before[~trainable]).all()
    assert (params[trainable] != before[trainable]).all()
    assert (result.jac[~trainable] == 0).all()
    assert result.x.shape == result.jac.shape == seen[0].x.shape == (NET.n_params,)
    assert result.fun < seen[0].fun


def test_frozen_parameters_with_bounds():
    """Only the output layer is free, a linear problem with bounds; the frozen ones may lie outside."""
    trainable = np.zeros(NET.n_params, bool)
    nbprop.views(NET, trainable)["1.dense.weight"][:] = True
    params = start()
    nbprop.views(NET, params)["1.dense.weight"][:] = 0
    bounds = (-0.05, 0.05)
    assert np.abs(params).max() > 0.05
    low, high = np.where(trainable, -0.05, 7.0), np.where(trainable, 0.05, 8.0)
    nbprop.minimize(plan_of(), params, X, TARGET, bounds=(low, high), trainable=trainable, options=EXACT["L-BFGS-B"])
    found = nbprop.views(NET, params)
    hidden = np.tanh(X @ found["0.dense.weight"] + found["0.dense.bias"])
    wanted = [scipy.optimize.lsq_linear(hidden, TARGET[:, k], bounds, tol=1e-14).x for k in (0, 1)]
    assert np.abs(found["1.dense.weight"] - np.column_stack(wanted)).max() < 1e-6


class Walled(scipy_bridge.Objective):
    """An objective that is infinite, with a NaN gradient, beyond a distance from the origin."""

    radius = 0.0
    met = 0

    def __call__(self, theta):
        if theta @ theta > self.radius**2:
            Walled.met += 1
            return np.inf, np.full_like(theta, np.nan)
        return super().__call__(theta)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("room", [1.0001, 1.2, 2.0])
def test_infinite_losses_on_the_way(method, room, monkeypatch):
    """The optimum lies beyond the wall: whatever SciPy makes of it, params end finite and better than they began."""
    params, x, target = start(), 10 * X, 10 * TARGET
    monkeypatch.setattr(Walled, "radius", room * np.linalg.norm(params))
    monkeypatch.setattr(Walled, "met", 0)
    fun = nbprop.objective(plan_of(), x, target)
    first = fun(params)[0]
    monkeypatch.setattr(scipy_bridge, "Objective", Walled)
    result = nbprop.minimize(plan_of(), params, x, target, method, maxiter=50)
    assert Walled.met > 0
    assert result.fun < first
    assert result.fun == fun(params)[0]
    assert np.isfinite(result.jac).all()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("trainable", [None, np.arange(NET.n_params) > 3])
def test_a_solver_that_goes_astray(method, trainable, monkeypatch):
    """SciPy is made to end at a worse point and to call it success: params get the best one it saw all the same."""
    honest = scipy.optimize.minimize

    def astray(fun, start, **options):
        result = honest(fun, start, **options)
        result.update(x=result.x * 3, fun=fun(result.x * 3)[0], success=True, message="all is well")
        return result

    monkeypatch.setattr(scipy.optimize, "minimize", astray)
    params = start()
    result = nbprop.minimize(plan_of(), params, X, TARGET, method, trainable=trainable, maxiter=20)
    fun = nbprop.objective(plan_of(), X, TARGET)
    assert result.fun == fun(params)[0] < fun(start())[0]
    assert (result.jac == (fun(params)[1] if trainable is None else trainable * fun(params)[1])).all()
    assert (result.success, result.message) == (False, "all is well; params hold the best point found")


def interrupt_after(calls):
    def callback(theta):
        callback.seen.append(theta)
        if len(callback.seen) == calls:
            signal.raise_signal(signal.SIGINT)

    callback.seen = []
    return callback


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("masked", [False, True])
def test_interrupt_leaves_the_best_point(dtype, masked):
    params, callback = start(dtype=dtype), interrupt_after(4)
    trainable = (np.arange(NET.n_params) > 3) if masked else None
    plan, x, target = plan_of(dtype=dtype), X.astype(dtype), TARGET.astype(dtype)
    result = nbprop.minimize(plan, params, x, target, callback=callback, trainable=trainable)
    assert (result.success, result.status, result.nit) == (False, -1, 4)
    assert "interrupted after 4 iterations" in result.message
    loss, gradient = nbprop.objective(plan, x, target)(result.x)
    assert result.fun == loss
    assert (result.jac == (gradient if trainable is None else np.where(trainable, gradient, 0))).all()
    assert loss <= nbprop.objective(plan, x, target)(callback.seen[-1])[0]
    assert (params == result.x).all()


def test_callback_that_stops_and_callback_that_fails():
    params, losses = start(), []

    def stop(intermediate_result):
        losses.append(intermediate_result.fun)
        if len(losses) == 3:
            raise StopIteration

    result = nbprop.minimize(plan_of(), params, X, TARGET, callback=stop)
    assert (result.nit, result.success, result.fun) == (3, False, losses[-1])

    def fail(theta):
        raise ZeroDivisionError("the callback's own")

    params = start()
    with pytest.raises(ZeroDivisionError, match="the callback's own"):
        nbprop.minimize(plan_of(), params, X, TARGET, callback=fail)
    fun = nbprop.objective(plan_of(), X, TARGET)
    assert fun(params)[0] < fun(start())[0]


def test_params_in_a_larger_buffer():
    whole = np.full(NET.n_params + 8, 7.25)
    params = whole[3 : 3 + NET.n_params]
    params[:] = start()
    nbprop.minimize(plan_of(), params, X, TARGET, maxiter=5)
    assert (whole[:3] == 7.25).all()
    assert (whole[3 + NET.n_params :] == 7.25).all()


def test_maxiter_0_changes_nothing():
    params = start()
    result = nbprop.minimize(plan_of(), params, X, TARGET, "BFGS", maxiter=0)
    assert (params == start()).all()
    assert result.fun == nbprop.objective(plan_of(), X, TARGET)(params)[0]


READ_ONLY = start()
READ_ONLY.flags.writeable = False


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"params": start().tolist()}, TypeError, "params must be a NumPy array"),
        ({"params": start().astype(np.float32)}, TypeError, "params must hold float64, got float32"),
        ({"params": start()[1:]}, ValueError, r"params must have shape \(32,\), got \(31,\)"),
        ({"params": READ_ONLY}, ValueError, "params is written and must not be read-only"),
        ({"params": changed(start(), 4, np.nan)}, ValueError, r"params\[4\] is nan"),
        ({"params": start() * 1e200}, ValueError, "the loss at the start is not finite"),
        ({"params": X.ravel()[:32]}, ValueError, "params is written and shares memory with x"),
        ({"method": "BFSG"}, ValueError, "unknown name 'BFSG'; did you mean 'BFGS'"),
        ({"method": "lbfgsb"}, ValueError, "did you mean 'L-BFGS-B'"),
        ({"method": None}, ValueError, "method: unknown name None"),
        ({"method": "CG", "bounds": (0, 1)}, ValueError, "method CG takes no bounds; use L-BFGS-B"),
        ({"options": {"maxitr": 3}}, ValueError, "no option 'maxitr'; did you mean 'maxiter'"),
        ({"maxiter": -1}, ValueError, r"maxiter must be an integer of at least 0, got -1"),
        ({"maxiter": 3, "options": {"maxiter": 4}}, ValueError, "maxiter is given twice"),
        ({"callback": 3}, TypeError, "callback must be a function or None, got int"),
        ({"trainable": np.zeros(32)}, TypeError, "trainable must hold bool, got float64"),
        ({"trainable": np.ones(31, bool)}, ValueError, r"trainable must have shape \(32,\), got \(31,\)"),
        ({"trainable": np.zeros(32, bool)}, ValueError, "trainable is False everywhere"),
        ({"bounds": (5, 6)}, ValueError, r"bounds of params\[0\]: the start .* is outside its bounds \[5.0, 6.0\]"),
        ({"bounds": (2, 1)}, ValueError, "the lower bound 2.0 is above the upper bound 1.0"),
        ({"bounds": [(0, 1)] * 31}, ValueError, "one pair a parameter, 32, got 31"),
        ({"bounds": 3.0}, TypeError, "bounds must be a tuple"),
        ({"bounds": ("a", "b")}, TypeError, "bounds must be numbers"),
        ({"bounds": (np.zeros(3), 1)}, ValueError, r"bounds must be numbers or have shape \(32,\), got \(3,\)"),
        ({"bounds": (np.nan, 1)}, ValueError, "bounds hold NaN"),
    ],
)  # fmt: skip
def test_refused_arguments(options, error, said):
    given = {"params": start(), **options}
    kept = given["params"].copy() if isinstance(given["params"], np.ndarray) else None
    with pytest.raises(error, match="minimize: .*" + said):
        nbprop.minimize(plan_of(), x=X, target=TARGET, **given)
    if kept is not None:
        assert given["params"].tobytes() == kept.tobytes()


# -- second order ----------------------------------------------------------------------------------------------


def second_order_problem(dtype=np.float64, batch=40):
    net = nbprop.network((2,), nbprop.dense(5, activation="tanh"), nbprop.dense(1))
    rng = np.random.default_rng(5)
    x = rng.standard_normal((40, 2)).astype(dtype)
    target = np.sin(x[:, :1]) + x[:, 1:] ** 2
    return nbprop.plan(net, loss="mse", batch=batch, dtype=dtype), nbprop.init(net, seed=2, dtype=dtype), x, target


@pytest.mark.parametrize("batch", [40, 7])
def test_hessp_is_the_derivative_of_the_gradient(batch):
    plan, params, x, target = second_order_problem(batch=batch)
    weights = np.random.default_rng(1).uniform(0.5, 2, len(x))
    fun = nbprop.objective(plan, x, target, weights)
    v, step = np.random.default_rng(0).standard_normal(params.size), 1e-6
    difference = (fun(params + step * v)[1] - fun(params - step * v)[1]) / (2 * step)
    product = fun.hessp(params, v)
    assert product.dtype == np.float64
    assert np.abs(product - difference).max() <= 1e-7 * np.abs(difference).max()
    assert np.array_equal(fun.hessp(v, v), fun.hessp(v, v.copy()))


def test_hessp_through_a_float32_plan():
    plan, params, x, target = second_order_problem(np.float32)
    exact, *_ = second_order_problem()
    v = np.random.default_rng(0).standard_normal(params.size)
    product = nbprop.objective(plan, x, target).hessp(params.astype(np.float64), v)
    double = nbprop.objective(exact, x.astype(np.float64), target.astype(np.float64)).hessp(
        params.astype(np.float64), v
    )
    assert np.abs(product - double).max() <= 1e-5 * np.abs(double).max()


@pytest.mark.parametrize("method", ["TNC", "SLSQP", "Newton-CG", "trust-ncg", "trust-krylov", "trust-constr"])
def test_every_method_goes_down(method):
    plan, params, x, target = second_order_problem()
    before, seen = nbprop.objective(plan, x, target)(params)[0], []
    result = nbprop.minimize(plan, params, x, target, method=method, callback=lambda theta: seen.append(theta.copy()))
    after, gradient = nbprop.objective(plan, x, target)(params)
    assert after == result.fun < before / 20
    assert np.array_equal(result.x, params)
    assert np.abs(gradient - result.jac).max() <= 1e-12
    assert seen
    assert seen[0].shape == params.shape


@pytest.mark.parametrize("method", ["TNC", "SLSQP", "trust-constr"])
def test_bounds_hold_for_every_method_that_takes_them(method):
    plan, params, x, target = second_order_problem()
    params = params.clip(-0.9, 0.9)
    options = {"maxfun": 400} if method == "TNC" else {"maxiter": 60}
    result = nbprop.minimize(plan, params, x, target, method=method, bounds=(-0.9, 0.9), options=options)
    assert np.abs(params).max() <= 0.9
    assert np.isfinite(result.fun)


@pytest.mark.parametrize("method", ["SLSQP", "trust-constr"])
def test_a_linear_constraint_holds(method):
    from scipy.optimize import LinearConstraint

    plan, params, x, target = second_order_problem()
    total = LinearConstraint(np.ones((1, params.size)), 0.5, 0.5)
    nbprop.minimize(plan, params, x, target, method=method, constraints=total, maxiter=200)
    assert abs(params.sum() - 0.5) <= 1e-6


def test_newton_with_frozen_parameters():
    plan, params, x, target = second_order_problem()
    trainable = np.arange(params.size) % 4 != 0
    before = params.copy()
    nbprop.minimize(plan, params, x, target, method="trust-ncg", trainable=trainable)
    assert np.array_equal(params[~trainable], before[~trainable])
    assert (params[trainable] != before[trainable]).all()


def test_second_order_refusals():
    from scipy.optimize import LinearConstraint

    plan, params, x, target = second_order_problem()
    constraint = LinearConstraint(np.ones((1, 3)), 0, 1)
    with pytest.raises(ValueError, match=r"A must have 21 columns, got shape \(1, 3\)"):
        nbprop.minimize(plan, params, x, target, method="SLSQP", constraints=constraint)
    with pytest.raises(ValueError, match="BFGS takes no constraints; use SLSQP, trust-constr"):
        nbprop.minimize(plan, params, x, target, method="BFGS", constraints=constraint)
    with pytest.raises(TypeError, match="constraints must be SciPy's, got float"):
        nbprop.minimize(plan, params, x, target, method="SLSQP", constraints=[1.0])
    fun = nbprop.objective(plan, x, target)
    with pytest.raises(ValueError, match=r"objective: v must have shape \(21,\)"):
        fun.hessp(params, params[:3])


def test_a_callback_stops_every_method():
    def stop(theta):
        raise StopIteration

    for method in ("TNC", "trust-ncg", "L-BFGS-B"):
        plan, params, x, target = second_order_problem()
        before = nbprop.objective(plan, x, target)(params)[0]
        result = nbprop.minimize(plan, params, x, target, method=method, callback=stop)
        assert nbprop.objective(plan, x, target)(params)[0] <= before
        assert result.nit <= 2
