"""What is compared with whom: the rows of the comparison table, with the ratio that each has to reach.

A row is plain data, so that nbprop, the peers and the machine's limits all build exactly the same work from it: the
same sizes, the same starting weights, the same batch. Ratios are our time divided by theirs: smaller is better.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

RATE = 1e-3  # Adam's learning rate for all contenders; its other constants are the usual 0.9, 0.999, 1e-8
CHECK_STEPS = 10  # the loss at this step must agree among the contenders
# 200 iterations without stopping earlier, for every contender that SciPy drives.
SOLVER_OPTIONS = {"maxiter": 200, "maxfun": 100_000, "ftol": 0.0, "gtol": 0.0}

OURS = ("nbprop", "nbprop-njit")  # called from Python; called from inside an @njit loop

# What nbprop is compared with, by the name that results are stored under: as readers are told.
PEERS = {
    "torch": "PyTorch", "jax": "JAX", "jax-jit": "JAX, jit", "jax-scan": "JAX, lax.scan", "sklearn": "scikit-learn",
    "blas": "OpenBLAS", "lbfgsb": "SciPy L-BFGS-B, which fails",
    "scipy-differences": "SciPy least_squares, which fails",
}  # fmt: skip
LIMITS = {
    "fma": "multiply-adds alone", "copy": "a copy of as many bytes", "write": "writing the matrix",
    "nbprop-gradient": "nbprop's own gradient", "nbprop": "one thread",
}  # fmt: skip


def aligned(array: np.ndarray) -> np.ndarray:
    """A copy that starts on a cache line.

    NumPy aligns to 16 bytes, at an offset that differs from process to process. That alone changed 64 x 1 x 32 by 40 %
    between runs (larger products by 2 %), and no rotation within a run averages it out.
    """
    raw = np.empty(array.nbytes + 64, np.uint8)
    start = -raw.ctypes.data % 64
    copy = raw[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


@dataclass(frozen=True)
class Target:
    """`ours` must take at most `ratio` times as long as `peer`, both on `threads` threads."""

    ours: str
    peer: str
    threads: int
    ratio: float


@dataclass(frozen=True)
class Row:
    """One piece of work.

    kind: "step" (gradient and Adam update), "gradient", "sample" (one row through the net), "solver" (200
    iterations of L-BFGS-B) or "gemm" (C = A B, widths = M, N, K): of the dense net that `widths` describe. "own": what
    workloads/<module>.py builds, with a function for each contender; `own_flops` and `own_bytes` are those of a call.
    slow: a call takes so long that `make bench-quick` skips the row.
    """

    name: str
    title: str
    kind: str
    widths: tuple[int, ...] = ()
    activation: str = "tanh"
    batch: int = 1
    loss: str = "mse"
    dtype: str = "float32"
    contenders: tuple[str, ...] = ()
    threads: tuple[int, ...] = (1,)
    targets: tuple[Target, ...] = ()
    module: str = ""
    own_flops: float = 0.0
    own_bytes: float = 0.0
    slow: bool = False

    @property
    def flops(self) -> float:
        """Floating-point operations of one call; a multiply-add counts as two, activations are not counted.

        A training step has the forward product and two backward ones, but no gradient of the input.
        """
        if self.kind == "own":
            return self.own_flops
        if self.kind == "gemm":
            return 2.0 * np.prod(self.widths, dtype=float)
        products = [2.0 * self.batch * a * b for a, b in zip(self.widths, self.widths[1:], strict=False)]
        if self.kind == "sample":
            return sum(products)
        return 3.0 * sum(products) - products[0]

    @property
    def bytes(self) -> float:
        """Bytes that must move at least once: operands and results of a product; for a step the parameters,
        the gradient and Adam's two moments (read and written) and the batch."""
        itemsize = np.dtype(self.dtype).itemsize
        if self.kind == "own":
            return self.own_bytes
        if self.kind == "gemm":
            m, n, k = self.widths
            return float(itemsize * (m * k + k * n + m * n))
        traffic = {"step": 8, "sample": 1}.get(self.kind, 2)
        return float(itemsize * (traffic * self.n_params + self.batch * (self.widths[0] + self.widths[-1])))

    @property
    def n_params(self) -> int:
        return sum((a + 1) * b for a, b in zip(self.widths, self.widths[1:], strict=False))

    def weights(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """The common start: (W (in, out), b (out,)) for each layer, W ~ N(0, 1/in), b = 0."""
        rng = np.random.default_rng(0)
        return [
            ((rng.standard_normal((a, b)) / np.sqrt(a)).astype(self.dtype), np.zeros(b, self.dtype))
            for a, b in zip(self.widths, self.widths[1:], strict=False)
        ]

    def data(self) -> tuple[np.ndarray, np.ndarray]:
        """x (batch, in) and its target: classes (batch,) int64 for cross-entropy, else values (batch, out)."""
        rng = np.random.default_rng(1)
        x = rng.standard_normal((self.batch, self.widths[0])).astype(self.dtype)
        if self.loss == "softmax_cross_entropy":
            return aligned(x), aligned(rng.integers(0, self.widths[-1], self.batch))
        return aligned(x), aligned(np.sin(x.sum(axis=1, keepdims=True) * np.ones(self.widths[-1])).astype(self.dtype))

    def matrices(self) -> tuple[np.ndarray, np.ndarray]:
        """A (M, K) and B (K, N) of a "gemm" row."""
        m, n, k = self.widths
        rng = np.random.default_rng(2)
        return aligned(rng.standard_normal((m, k)).astype(self.dtype)), aligned(
            rng.standard_normal((k, n)).astype(self.dtype)
        )


def _gemm(m: int, n: int, k: int, blas: float | None, fma: float | None = None, dtype: str = "float32") -> Row:
    """A product that must take at most `blas` times OpenBLAS's time, and `fma` times that of the multiply-adds."""
    goals = {"blas": blas, "fma": fma}
    return Row(
        f"gemm_{m}x{n}x{k}" + ("_f64" if dtype == "float64" else ""),
        f"product {m} x {n} x {k}" + (", float64" if dtype == "float64" else ""),
        "gemm", (m, n, k), dtype=dtype, contenders=("nbprop-njit", "blas", "fma"),
        targets=tuple(Target("nbprop-njit", peer, 1, goal) for peer, goal in goals.items() if goal),
    )  # fmt: skip


def _bandwidth(layer: str, title: str, share: float) -> Row:
    """A layer's forward op on 64 MB of float32, which must reach a fraction `share` of the speed of a copy."""
    return Row(
        f"{layer}_64MB", f"{title}, forward, 64 MB", "own", module="bandwidth", own_bytes=2.0 * 64 * 2**20,
        contenders=("nbprop", "torch", "copy"), targets=(Target("nbprop", "copy", 1, 1 / share),),
    )  # fmt: skip


_EVERYBODY = ("nbprop", "nbprop-njit", "torch", "jax-jit", "jax-scan", "fma")

ROWS: tuple[Row, ...] = (
    Row(
        "tiny_step", "4-32-32-1 tanh, batch 64, Adam step", "step", (4, 32, 32, 1), batch=64,
        contenders=_EVERYBODY,
        targets=(
            Target("nbprop", "torch", 1, 1 / 50),
            Target("nbprop", "jax-jit", 1, 1 / 8),
            Target("nbprop-njit", "jax-scan", 1, 2 / 3),
        ),
    ),
    Row(
        "medium_step", "784-128-10 relu, batch 128, Adam step", "step", (784, 128, 10), "relu", 128,
        "softmax_cross_entropy", contenders=(*_EVERYBODY, "sklearn"), threads=(1, 2),
        targets=(
            Target("nbprop", "torch", 1, 1 / 2.8),
            Target("nbprop-njit", "jax-scan", 1, 3 / 4),
            Target("nbprop", "torch", 2, 1 / 4),
            Target("nbprop-njit", "jax-scan", 2, 1 / 2),
        ),
    ),
    Row(
        "large_step", "784-1024-1024-10 relu, batch 256, Adam step", "step", (784, 1024, 1024, 10), "relu",
        256, "softmax_cross_entropy", contenders=(*_EVERYBODY, "copy"), threads=(1, 2),
        targets=(Target("nbprop", "torch", 1, 0.8), Target("nbprop", "torch", 2, 0.8)),
    ),
    _gemm(64, 32, 32, 1 / 1.5),
    _gemm(64, 32, 4, 1 / 1.5),
    _gemm(64, 1, 32, 1 / 1.5),
    _gemm(1, 32, 32, 1 / 1.5),
    _gemm(64, 64, 64, 1 / 1.1, fma=1 / 0.75),
    _gemm(256, 256, 256, 1 / 1.05),
    _gemm(1024, 1024, 1024, 1 / 0.97),
    _gemm(256, 256, 256, None, dtype="float64"),
    Row(
        "one_sample", "one sample through 4-32-32-1 tanh", "sample", (4, 32, 32, 1),
        contenders=("nbprop", "nbprop-njit", "torch", "jax-jit", "fma"),
    ),
    Row(
        "tiny_gradient", "4-32-32-1 tanh, batch 64, value and gradient", "gradient", (4, 32, 32, 1), batch=64,
        contenders=("nbprop", "nbprop-njit", "torch", "jax-jit"),
    ),
    Row(
        "solver", "4-32-32-1 tanh, 1,000 samples, float64, 200 iterations of L-BFGS-B", "solver",
        (4, 32, 32, 1), batch=1000, dtype="float64", contenders=("nbprop", "jax-jit", "sklearn"),
        targets=(Target("nbprop", "jax-jit", 1, 0.5),),
    ),
    _bandwidth("layernorm", "layernorm of rows of 1,024", 0.70),
    _bandwidth("softmax", "softmax of rows of 1,024", 0.45),
    _bandwidth("dropout", "dropout at 0.1", 0.45),
    Row(
        "gpt_step", "GPT, 4 layers, 4 heads, 128 wide, 64 positions, batch 12, AdamW step", "own", module="gpt",
        contenders=("nbprop", "torch", "jax-jit", "fma"), threads=(1, 2),
        # Multiply-adds: each weight of a matrix once forward and twice backward per position; causal attention 2 and
        # 4 times half a square per feature. Bytes: parameters, gradient and two moments, read and written.
        own_flops=2.0 * 3 * 12 * 64 * (4 * 12 * 128**2 + 96 * 128 + 4 * 65 * 128), own_bytes=4.0 * 8 * 813_824,
        targets=(Target("nbprop", "torch", 1, 0.7), Target("nbprop", "torch", 2, 0.6)), slow=True,
    ),
    Row(
        "gpt_token", "the same GPT, a token more, keys and values kept", "own", module="gpt",
        contenders=("nbprop", "torch", "jax-jit", "copy"),
        own_flops=2.0 * (4 * 12 * 128**2 + 96 * 128), own_bytes=4.0 * 813_824,
        targets=(Target("nbprop", "torch", 1, 1 / 6),),
    ),
    Row(
        "lstm_gradient", "LSTM, 64-128, 100 steps, batch 32, value and gradient", "own", batch=32, module="recurrent",
        contenders=("nbprop", "torch", "jax-jit", "fma"), threads=(1, 2),
        # Multiply-adds of every step: x W once forward and once backward (x needs no gradient), h U three times.
        own_flops=2.0 * 32 * 100 * 512 * (2 * 64 + 3 * 128),
        own_bytes=4.0 * (2 * 512 * 193 + 32 * 100 * (64 + 2 * 128)),
        slow=True, targets=(Target("nbprop", "torch", 1, 0.6), Target("nbprop", "torch", 2, 0.6)),
    ),
    Row(
        "conv2d", "conv2d 3x3, 64-64 channels, 28x28, batch 16, forward and backward", "own", batch=16,
        contenders=("nbprop", "torch", "fma"), threads=(1, 2), module="images", slow=True,
        own_flops=3 * 2 * 16 * 28 * 28 * 9 * 64 * 64,
        targets=(
            Target("nbprop", "torch", 1, 1.0), Target("nbprop", "torch", 2, 1.0),
            Target("nbprop", "fma", 1, 1 / 0.7), Target("nbprop", "fma", 2, 1 / 0.7),
        ),
    ),
    Row(
        "pool_64mb", "max_pool2d 2x2 on an array of 64 MB, forward and backward", "own", batch=16,
        contenders=("nbprop-njit", "torch", "copy"), module="images", own_bytes=2.5 * 4 * 16 * 128 * 128 * 64,
        targets=(Target("nbprop-njit", "copy", 1, 1 / 0.7),), slow=True,
    ),
    Row(
        "lenet_step", "LeNet-5, batch 128, Adam step", "own", batch=128,
        contenders=("nbprop", "torch", "fma"), threads=(1, 2), module="images",
        # Multiply-adds of a sample, three times for layers with weights, without dx of the image.
        own_flops=2 * 128 * (3 * (117_600 + 240_000 + 48_000 + 10_080 + 840) - 117_600),
        targets=(Target("nbprop", "torch", 1, 1 / 4), Target("nbprop", "torch", 2, 1 / 4)),
    ),
    Row(
        "alexnet_gradient", "AlexNet, batch 16, gradient", "own", batch=16, contenders=("nbprop", "torch", "fma"),
        threads=(1, 2), module="images", slow=True,
        own_flops=2 * 16 * (3 * (105_415_200 + 223_948_800 + 149_520_384 + 112_140_288 + 74_760_192 + 58_621_952)
                            - 105_415_200),
        targets=(Target("nbprop", "torch", 2, 0.65),),
    ),
    *(
        Row(
            f"hvp_{size}", f"{title}, float64, Hessian-vector product", "own", widths, activation, batch, loss,
            dtype="float64", contenders=("nbprop", "nbprop-gradient", "jax-jit"), module="calculus", slow=True,
            targets=(Target("nbprop", "nbprop-gradient", 1, ratio), Target("nbprop", "jax-jit", 1, 0.6)),
        )
        for size, title, widths, activation, batch, loss, ratio in (
            ("tiny", "4-32-32-1 tanh, 1,000 samples", (4, 32, 32, 1), "tanh", 1000, "mse", 2.6),
            ("medium", "784-128-10 relu, batch 128", (784, 128, 10), "relu", 128, "softmax_cross_entropy", 1.7),
        )
    ),
    Row(
        "jacobian", "Jacobian 1,000 x 1,249 of 4-32-32-1 tanh, float64", "own", (4, 32, 32, 1), batch=1000,
        dtype="float64", contenders=("nbprop", "write", "jax-jit"), module="calculus",
        targets=(Target("nbprop", "write", 1, 3.0),), slow=True,
    ),
    Row(
        "lbfgs", "4-32-32-1 tanh, 1,000 samples, float64, 200 iterations of the compiled L-BFGS", "own", (4, 32, 32, 1),
        batch=1000, dtype="float64", contenders=("nbprop", "jax-jit", "sklearn"), threads=(1, 2), module="fitting",
        targets=(Target("nbprop", "jax-jit", 1, 1 / 3), Target("nbprop", "sklearn", 1, 1 / 6)), slow=True,
    ),
    Row(
        "lm", "1-20-1 tanh, 1,000 noisy samples, float64, Levenberg-Marquardt to within 1 % of the best loss", "own",
        (1, 20, 1), batch=1000, dtype="float64", contenders=("nbprop", "lbfgsb", "scipy-differences"), module="fitting",
        targets=(Target("nbprop", "lbfgsb", 1, 1 / 5), Target("nbprop", "scipy-differences", 1, 1 / 20)), slow=True,
    ),
    Row(
        "fleet", "1,000 nets 4-16-16-1 tanh, batch 32, a gradient each", "own", (4, 16, 16, 1), batch=32,
        contenders=("nbprop", "jax-jit"), threads=(1, 2), module="calculus", slow=True,
        targets=(Target("nbprop", "jax-jit", 1, 1 / 3),),
    ),
    Row(
        "rollout", "200 steps of a simulation with 4-32-32-2 tanh, float64, with gradient", "own", (4, 32, 32, 2),
        dtype="float64", contenders=("nbprop", "torch", "jax-scan"), module="calculus",
        targets=(Target("nbprop", "torch", 1, 1 / 300), Target("nbprop", "jax-scan", 1, 1 / 5)),
    ),
)  # fmt: skip

BY_NAME = {row.name: row for row in ROWS}


def comparisons(row: Row) -> list[tuple[str, str, int]]:
    """Every (ours, peer, threads) that is reported for a row.

    A peer that is driven step by step from Python is compared with nbprop called from Python; one that loops inside its
    own compiled program is compared with nbprop inside an @njit loop.
    """
    pairs = []
    for threads in row.threads:
        for peer in row.contenders:
            if peer in OURS or (peer in ("sklearn", "copy") and threads > 1):
                continue
            wanted = "nbprop-njit" if peer in ("jax-scan", "blas", "fma") else "nbprop"
            ours = wanted if wanted in row.contenders else next(o for o in OURS if o in row.contenders)
            pairs.append((ours, peer, threads))
    return pairs


def target(row: Row, ours: str, peer: str, threads: int) -> float | None:
    """The ratio to reach, or None if a comparison has none."""
    for t in row.targets:
        if (t.ours, t.peer, t.threads) == (ours, peer, threads):
            return t.ratio
    return None
