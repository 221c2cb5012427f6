"""Run every function of a plan with its arrays against forbidden pages.

    python -m support.guarded_calls DTYPE [CASE ...]

A process of its own, since a fault ends it: the last line printed names the call. See test_guard_pages.py.
"""

import faulthandler
import sys
from dataclasses import dataclass

import numpy as np

import nbprop
from nbprop.lowering import programs as lowering
from nbprop.networks.layer import Layer
from nbprop.optimizers.api import OPTIMIZERS
from nbprop.program import table
from nbprop.program.kernel import kernel
from nbprop.runtime.signatures import SIGNATURES
from support.cases import CASES, data, state_of
from support.guard import Arena, Workspace, isolated_buffers

dense = nbprop.dense

# Sizes at which products pack, weight gradients come in pieces, and rows are few or one.
LARGE = {
    "packed": (nbprop.network((370,), dense(362, activation="tanh"), dense(9)), "mse", 370),
    "few_rows": (nbprop.network((1030,), dense(520, activation="relu"), dense(3)), "softmax_cross_entropy", 7),
    "pieces": (nbprop.network((3,), dense(5, activation="gelu"), dense(2)), "huber", 1100),
    "lstm_packed": (nbprop.network((2, 5), nbprop.lstm(184, output="last"), dense(2)), "mse", 50),
    "gru_packed": (nbprop.network((2, 5), nbprop.gru(214, output="last"), dense(2)), "mse", 50),
    "attention_blocks": (nbprop.network((150, 6), nbprop.attention(2), dense(3)), "mse", 2),
    "conv_wide": (
        nbprop.network((19, 21, 3), nbprop.conv2d(33, 3, activation="relu"), nbprop.max_pool2d(2), dense(4)),
        "softmax_cross_entropy",
        3,
    ),
}


# -- layers that are wrong on purpose, to see the pages work ----------------------------------------------------------


@kernel
def reads_at(y, x, n, size, away):
    """y = x, from `away` elements on."""
    for i in range(n * size):
        y[i] = x[i + away]


@dataclass(frozen=True, repr=False)
class Beside(Layer):
    """The identity, but for elements that lie beside its arrays."""

    x_away: int
    y_away: int
    kind = "beside"

    def __repr__(self):
        return f"beside({self.x_away}, {self.y_away})"

    def lower(self, build, x, path, names):
        y, z = build.value(x.shape), build.value(x.shape)
        build.emit(reads_at, (y.buffer,), (x.buffer,), (x.size, self.x_away))
        build.emit(reads_at, (z.buffer,), (y.buffer,), (x.size, self.y_away))
        build.on_backward(z, lambda dz: build.accumulate_gradient(x, dz))
        return z


FAULTS = {"before": (-1, 0), "behind": (1, 0), "between": (0, 1)}
MOST_ROWS = 4000  # rows times parameters, in thousands, of a Jacobian that is still tried

# function: the programs that it walks, and that of the call before it
PROGRAMS = {name: signature.programs for name, signature in SIGNATURES.items()}
PROGRAMS["backward"] += (table.FORWARD,)
PROGRAMS["train_step"] = PROGRAMS["bind"] = PROGRAMS["value_and_grad"]


def say(*words):
    print(*words, flush=True)


def run(name, net, loss, batch, n, dtype, side):
    """Call everything on n samples; what the calls wrote, by name."""
    plan, rng = nbprop.plan(net, loss, batch, dtype), np.random.default_rng(5)
    arena, work, found = Arena(side), Workspace(plan), {}
    x, target, weights = data(plan, n, rng, ties=False)
    params = (nbprop.init(net, seed=3) + 0.1 * rng.standard_normal(plan.n_params)).astype(dtype)
    v, dx = rng.standard_normal(plan.n_params).astype(dtype), rng.standard_normal((n, *plan.input_shape)).astype(dtype)
    dy = rng.standard_normal((n, *plan.output_shape)).astype(dtype)
    lengths = rng.integers(1, plan.max_length + 1, n) if plan.max_length else None
    integers, outputs = bool(plan.x_classes), int(np.prod(plan.output_shape))

    def call(function, label, *arguments, writes, **named):
        say(name, f"n={n}", side, function, label)
        work.open(PROGRAMS[function])
        given = [
            arena.constant(a) if isinstance(a, np.ndarray) and not any(a is w for w in (*writes, work.array)) else a
            for a in arguments
        ]
        if "lengths" in named:
            named["lengths"] = arena.constant(named["lengths"])
        if "weights" in named:
            named["weights"] = arena.constant(named["weights"].astype(dtype))
        if plan.state_size:
            named["state"] = arena.writable(state_of(plan))
        result = getattr(nbprop, function)(plan, *given, **named)
        for number, array in enumerate(writes):
            found[f"{function} {label} {number}"] = array.copy()
        if result is not None:
            found[f"{function} {label} value"] = np.float64(result)

    def new(*shape):
        return arena.poisoned(shape, dtype)

    y, grads, dx_out = new(*dy.shape), new(params.size), None if integers else new(*x.shape)
    options = [("", {})] + ([("lengths", {"lengths": lengths})] if lengths is not None else [])
    for label, more in options:
        call("forward", label, params, x, y, work.array, writes=(y,), **more)
        programs = PROGRAMS["backward"]
        work.open(programs)
        state = {"state": arena.writable(state_of(plan))} if plan.state_size else {}
        nbprop.forward(plan, params, x, y, work.array, **state, **more)
        written = (grads,) if integers else (grads, dx_out)
        call("backward", label, params, x, dy, grads, dx_out, work.array, writes=written, **more)
        call("vjp", label, params, x, dy, grads, dx_out, work.array, writes=written, **more)
        if plan.without_tangents is None:
            directions = [("v", v, None)] if integers else [("v", v, None), ("dx", None, dx), ("both", v, dx)]
            for which, v_k, dx_k in directions:
                call("jvp", f"{label} {which}", params, v_k, x, dx_k, y, work.array, writes=(y,), **more)
        if plan.min_samples == 0 and n * outputs * params.size <= 1000 * MOST_ROWS:
            rows = new(n * outputs, params.size)
            call("jacobian", label, params, x, rows, work.array, writes=(rows,), **more)
        if plan.loss is None:
            continue
        for weighted in ({}, {"weights": weights}):
            tag = f"{label} {'weighted' if weighted else ''}"
            call("value", tag, params, x, target, work.array, writes=(), **more, **weighted)
            call("value_and_grad", tag, params, x, target, grads, work.array, writes=(grads,), **more, **weighted)
            stepped, moments = (
                arena.writable(params),
                arena.writable(nbprop.optimizer_state("adam", params.size, dtype)),
            )
            given = (stepped, x, target, grads, moments, work.array, 3)
            call("train_step", tag, *given, writes=(stepped, grads, moments), **more, **weighted)
        say(name, f"n={n}", side, "bind")
        work.open(PROGRAMS["bind"])
        state = (arena.writable(state_of(plan)),) if plan.state_size else ()
        bound = nbprop.bind(plan, arena.constant(params), grads, work.array, *state)
        found["bind value"] = np.float64(bound(arena.constant(x), arena.constant(target)))
        found["bind grads"] = grads.copy()
        if plan.without_tangents is None:
            for function in ("hvp", "gauss_newton_product", "fisher_product"):
                if function != "fisher_product" or plan.loss.fisher is not None:
                    call(function, label, params, v, x, target, grads, work.array, writes=(grads,), **more)
            if not integers:
                call("hvp", f"{label} dx", params, v, x, target, grads, work.array, writes=(grads,), dx=dx, **more)
        if plan.min_samples == 0 and n * params.size <= 1000 * MOST_ROWS:
            rows = new(n, params.size)
            call("per_sample_grads", label, params, x, target, rows, work.array, writes=(rows,), **more)
    arena.close()
    work.close()
    return found


def run_optimizers(dtype, side):
    for name, step in OPTIMIZERS.items():
        for n in (1, 63, 1000):
            say(name, f"n={n}", side)
            arena, rng = Arena(side), np.random.default_rng(n)
            params, state = rng.standard_normal(n).astype(dtype), nbprop.optimizer_state(name, n, dtype)
            params, state, grads = arena.writable(params), arena.writable(state), arena.constant(params)
            mask = arena.constant(rng.random(n) > 0.5)
            step(params, grads, state, 0)
            masks = {"trainable": mask} | ({"decay_mask": mask} if name == "adamw" else {})
            step(params, grads, state, 1, **masks)
            clipped = arena.writable(grads)
            nbprop.clip_norm(clipped, 0.1, mask)
            nbprop.clip_value(clipped, 0.01)
            assert np.isfinite(params).all()
            arena.close()


def run_solvers(side):
    """States behind pages, at sizes where J^T J and its factor are packed and blocked."""
    for n, m in ((3, 5), (61, 2149), (130, 1100)):
        arena, rng = Arena(side), np.random.default_rng(n)
        say("solvers", f"n={n}", side)
        a, b = arena.constant(rng.standard_normal((m, n))), rng.standard_normal(m)
        theta, state, r, want = (
            arena.writable(np.zeros(n)),
            arena.writable(nbprop.lm_state(n)),
            arena.poisoned(m, "d"),
            1,
        )
        while want in (1, 2):
            r[:] = a @ theta - b
            want = nbprop.lm_step(state, theta, r, a)
        assert np.abs(a.T @ (a @ theta - b)).max() <= 1e-8 * m, "not the least squares solution"
        theta, state = arena.writable(np.ones(n)), arena.writable(nbprop.lbfgs_state(n, memory=3))
        while nbprop.lbfgs_step(state, theta, float(theta @ theta), arena.writable(2 * theta)) == 0:
            pass
        assert np.abs(theta).max() <= 1e-7
        arena.close()


def main(dtype, chosen):
    cases = {name: (net, loss, 6, (1, 5)) for name, (net, loss) in CASES.items()}
    cases |= {name: (net, loss, batch, (batch,)) for name, (net, loss, batch) in LARGE.items()}
    cases |= {name: (nbprop.network((3,), Beside(*FAULTS[name])), None, 6, (6,)) for name in chosen if name in FAULTS}
    for name, (net, loss, batch, counts) in cases.items():
        for n in counts if not chosen or name in chosen else ():
            results = []
            for side in ("end", "start"):
                # Plans are remembered by what they are made of, of which the places of buffers are no part.
                nbprop.plan.__globals__["_remembered_plan"].cache_clear()
                lowering.place_buffers = isolated_buffers(side)
                results.append(run(name, net, loss, batch, n, dtype, side))
            for key, value in results[0].items():
                assert np.isfinite(value).all(), f"{name} {key}: not finite"
                assert value.tobytes() == results[1][key].tobytes(), f"{name} {key}: bits depend on where arrays lie"
    if not chosen:
        for side in ("end", "start"):
            run_optimizers(dtype, side)
            run_solvers(side)
    say("all done")


if __name__ == "__main__":
    faulthandler.enable()
    main(np.dtype(sys.argv[1]), sys.argv[2:])
