"""Attention as a layer: its arguments, its parts, and how it is lowered."""

from dataclasses import dataclass
from typing import ClassVar

from nbprop.layers.attention.decoding import attention_decode
from nbprop.layers.attention.kernels import BLOCK, QUERIES, AttentionSizes, attention_backward, attention_forward
from nbprop.layers.attention.tangents import attention_backward_tangent, attention_tangent
from nbprop.layers.dense.layer import Dense
from nbprop.networks.layer import INITIALIZERS, Layer
from nbprop.validation import check_flag, named, optional, positive


@dataclass(frozen=True, repr=False)
class AttentionHeads(Layer):
    """The middle of `attention`: queries, keys and values (T, 3 C) to what the heads found (T, C)."""

    heads: int
    causal: bool = True
    kind = "attention_heads"
    checks: ClassVar = {"heads": positive, "causal": check_flag}
    tangents = True
    takes_lengths = True

    def __repr__(self):
        return f"attention_heads({self.heads})"

    def output_shape(self, input_shape):
        if len(input_shape) != 2 or input_shape[-1] % (3 * self.heads):
            raise ValueError(
                f"attention_heads needs (positions, 3 features), features a multiple of heads={self.heads}"
            )
        return (*input_shape[:-1], input_shape[-1] // 3)

    def flops(self, input_shape):
        """Two products of the scores' size; of a causal one's, the half that is needed."""
        positions, width = input_shape
        pairs = positions * (positions + 1) // 2 if self.causal else positions * positions
        return 2 * 2 * pairs * (width // 3)

    def lower(self, build, x, path, names):
        width = x.shape[-1] // 3
        depth, y = width // self.heads, build.value((*x.shape[:-1], width))
        if build.mode == "decoding":
            return self._lower_decoding(build, x, y, depth)
        positions = x.shape[0]
        # Enough for the largest of the kernels: four turned blocks, four of scores, four numbers a query.
        each = 4 * (depth + 1) * QUERIES + 4 * BLOCK
        sizes = (AttentionSizes(positions=positions, heads=self.heads, depth=depth), self.causal, each)
        lse = build.buffer(build.batch * self.heads * positions)

        def scratch():
            return build.buffer(build.threads * each)

        build.emit(attention_forward, (y.buffer, lse, scratch()), (x.buffer,), sizes)
        if build.with_tangents:
            x_dot, y_dot, lse_dot = build.tangent(x.buffer), build.new_tangent(y.buffer), build.new_tangent(lse)
            reads = (x.buffer, x_dot, y.buffer, lse)
            build.emit(attention_tangent, (y_dot, lse_dot, scratch()), reads, sizes)

        def rule(dy):
            dx = build.buffer(build.batch * x.size)
            build.emit(attention_backward, (dx, scratch()), (x.buffer, y.buffer, lse, dy), sizes)
            if build.with_tangents:
                reads = (x.buffer, x_dot, y.buffer, y_dot, lse, lse_dot, dy, build.tangent(dy))
                build.emit(attention_backward_tangent, (build.new_tangent(dx), scratch()), reads, sizes)
            build.accumulate_gradient(x, dx)

        build.on_backward(y, rule)
        return y

    def _lower_decoding(self, build, x, y, depth):
        if not self.causal:
            raise ValueError('plan: mode="decoding" needs attention(causal=True): later positions are not known yet')
        positions = build.net.input_shape[0]
        cache = build.state(2 * positions * y.size, each_sample=True)
        scratch = build.buffer(build.threads * positions)
        sizes = AttentionSizes(positions=positions, heads=self.heads, depth=depth)
        build.emit(attention_decode, (y.buffer, scratch), (x.buffer,), sizes, inplace=(cache,))
        return y


@dataclass(frozen=True, repr=False)
class Attention(Layer):
    heads: int
    causal: bool = True
    bias: bool = True
    init: str | None = None
    kind = "attention"
    checks: ClassVar = {
        "heads": positive,
        "causal": check_flag,
        "bias": check_flag,
        "init": optional(named(INITIALIZERS)),
    }
    tangents = True

    def __repr__(self):
        options = "" if self.causal else ", causal=False"
        options += "" if self.bias else ", bias=False"
        options += "" if self.init is None else f", init={self.init!r}"
        return f"attention({self.heads}{options})"

    def _dense(self, units):
        return Dense(units, bias=self.bias, init=self.init)

    def output_shape(self, input_shape):
        if len(input_shape) != 2:
            raise ValueError("attention needs an input of shape (positions, features)")
        if input_shape[-1] % self.heads != 0:
            raise ValueError(
                f"attention: {self.heads} heads do not divide {input_shape[-1]} features; heads must be a divisor"
            )
        return input_shape

    def children(self, input_shape):
        positions, width = input_shape
        return [
            ("qkv", self._dense(3 * width), input_shape),
            ("heads", AttentionHeads(self.heads, self.causal), (positions, 3 * width)),
            ("output", self._dense(width), input_shape),
        ]

    def lower(self, build, x, path, names):
        for name, layer, _ in self.children(x.shape):
            x = build.layer(f"{path}.{name}", layer, x)
        return x


def attention(heads: int, causal: bool = True, bias: bool = True, init: str | None = None) -> Layer:
    """Multi-head self-attention over a sequence: each position's output is a mean of values, weighted by its query's
    products with the keys.

    Its input is (T, C); its parameters are "qkv.weight" (C, 3 C), "qkv.bias" (3 C,), "output.weight" (C, C) and
    "output.bias" (C,), those of GPT-2's c_attn and c_proj. Memory grows with T, not with T squared.

    Parameters
    ----------
    heads : int
        A divisor of C; each head has C / heads features, and scores are divided by the root of that number.
    causal : bool
        Whether a position sees only itself and those before it. Decoding plans need it: they keep keys and values of
        all positions so far in the layer state.
    bias : bool
        Whether both products have a bias.
    init : str or None
        The initializer of both weights, as for `nbprop.dense`.

    Where a call gives `lengths`, positions from a sample's length on are not seen, and the heads find 0 for them.

    Sources: Vaswani et al. 2017, "Attention is all you need", section 3.2; Dao et al. 2022, "FlashAttention".

    >>> attention(4)
    attention(4)
    """
    return Attention(heads, causal, bias, init)
