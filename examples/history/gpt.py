"""A language model of GPT-2's shape (Radford et al. 2019) learns Python from Python's library, character by character.

The recipe is that of nanoGPT for one CPU (Karpathy 2022, README, "I only have a macbook"): 4 layers, 4 heads, 128 wide,
64 characters, batches of 12, 2,000 steps of AdamW (1e-3 with warm-up over 100 steps and a cosine to 1e-4, beta2 0.99,
weight decay 0.1 on matrices), gradients clipped to length 1, no dropout. There it reaches 1.88 nats per
character on Shakespeare. Here the text is any file, by default the modules of the running Python's standard library;
the last tenth is held out. For comparison: how well do counts of the one or two preceding characters predict the next?

Run: python examples/history/gpt.py [--seed N] [--text FILE] [--steps N] [--picture PATH]
     python examples/history/gpt.py --weights model.safetensors --tokens 464 3290 318
"""

import sysconfig
from pathlib import Path

import numpy as np
from language import gpt2

import nbprop
from command import options
from nbprop.io.pictures import save_picture

LAYERS, HEADS, WIDTH, POSITIONS, BATCH, STEPS = 4, 4, 128, 64, 12, 2000
QUICK = {"layers": 2, "heads": 2, "width": 64, "steps": 600}
RATE, LOWEST, WARM_UP, WEIGHT_DECAY = 1e-3, 1e-4, 100, 0.1
EVALUATIONS, AT_A_TIME = 4000, 100  # windows of held-out text over which a loss is averaged; windows at a time


def library():
    """The top-level modules of Python's standard library, one after the other."""
    paths = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    return "\n".join(path.read_text(encoding="utf-8", errors="ignore") for path in paths)


class Text:
    """Characters as integers: the ASCII characters that occur, in order."""

    def __init__(self, text):
        codes = np.frombuffer(text.encode("ascii", "ignore"), np.uint8)
        self.characters, tokens = np.unique(codes, return_inverse=True)
        self.tokens, self.vocabulary = tokens.astype(np.uint8), len(self.characters)
        self.cut = len(tokens) * 9 // 10
        if len(tokens) < 100 * POSITIONS:
            raise SystemExit(f"a text of {len(tokens)} characters is too short; give one of {100 * POSITIONS} or more")

    def windows(self, count, rng, *, held_out=False):
        """Integers (count, POSITIONS) from random positions, and the same shifted by one."""
        low, high = (self.cut, len(self.tokens)) if held_out else (0, self.cut)
        places = rng.integers(low, high - POSITIONS, count)[:, None] + np.arange(POSITIONS)
        return self.tokens[places], self.tokens[places + 1]

    def encode(self, text):
        return np.searchsorted(self.characters, np.frombuffer(text.encode("ascii"), np.uint8))[None]

    def decode(self, tokens):
        return bytes(self.characters[tokens]).decode("ascii")

    def counted(self, before):
        """Nats per held-out character by counts (plus 0.01) of what followed the `before` characters in training."""
        v, tokens = self.vocabulary, self.tokens.astype(np.int64)
        codes = sum(tokens[i : len(tokens) - before + i] * v ** (before - i) for i in range(before + 1))
        counts = np.bincount(codes[: self.cut - before], minlength=v ** (before + 1)).reshape(-1, v) + 0.01
        p = (counts / counts.sum(axis=1, keepdims=True)).ravel()
        return float(-np.log(p[codes[self.cut :]]).mean())


def schedule(steps):
    """Linear warm-up, then half a cosine down."""
    warm = min(WARM_UP, steps // 5)

    def rate(step):
        if step < warm:
            return RATE * (step + 1) / (warm + 1)
        return nbprop.schedules.cosine(step - warm, RATE, steps - warm, LOWEST)

    return rate


def train(text, seed, steps, layers=LAYERS, heads=HEADS, width=WIDTH, threads=1, progress=False):
    """(network, parameters) after `steps` steps."""
    net = gpt2.network(text.vocabulary, POSITIONS, layers, heads, width)
    params, matrices = gpt2.initial(net, seed), np.zeros(net.n_params, bool)
    for part in nbprop.views(net, matrices).values():
        part[...] = part.ndim == 2
    x, target = text.windows(BATCH * steps, np.random.default_rng(seed))
    nbprop.fit(
        *(net, params, x, target, "softmax_cross_entropy", "adamw", RATE, BATCH),
        epochs=1,
        shuffle=False,
        schedule=schedule(steps),
        clip_norm=1.0,
        weight_decay=WEIGHT_DECAY,
        decay_mask=matrices,
        beta2=0.99,
        threads=threads,
        progress=progress,
    )
    return net, params


def held_out_losses(net, params, text):
    """Nats at each position, (POSITIONS,): means over windows of the held-out text."""
    x, target = text.windows(EVALUATIONS, np.random.default_rng(1), held_out=True)
    plan, total = nbprop.plan(net, batch=AT_A_TIME, dtype=params.dtype, mode="inference"), np.zeros(POSITIONS)
    logits, work = np.empty((AT_A_TIME, *net.output_shape), params.dtype), nbprop.workspace(plan)
    for i in range(0, EVALUATIONS, AT_A_TIME):
        nbprop.forward(plan, params, x[i : i + AT_A_TIME], logits, work)
        logits -= logits.max(axis=-1, keepdims=True)
        chosen = np.take_along_axis(logits, target[i : i + AT_A_TIME, :, None].astype(np.int64), axis=-1)[..., 0]
        total += (np.log(np.exp(logits).sum(axis=-1)) - chosen).sum(axis=0)
    return total / EVALUATIONS


def run(seed, quick=False, text=None, steps=None, threads=1, picture=None, progress=False):
    """The held-out loss is below that of counts of two characters, and below nanoGPT's 1.88 nats.

    quick: 2 layers, 2 heads, 64 wide, 600 steps; the loss is below that of counts of one character.
    """
    text = text or Text(library())
    sizes = QUICK if quick else {"steps": steps or STEPS}
    net, params = train(text, seed, **sizes, threads=threads, progress=progress)
    losses, by_one, by_two = held_out_losses(net, params, text), text.counted(1), text.counted(2)
    loss = float(losses.mean())
    sample = nbprop.generate(net, params, text.encode("\ndef "), 200, 0.8, seed=seed, window=POSITIONS // 2)
    if picture:
        draw(losses, {"one character": by_one, "two characters": by_two}, picture)
    return {
        "reproduced": loss < (by_one if quick else min(by_two, 1.88)),
        "held_out_nats": round(loss, 4),
        "counts_of_one_nats": round(by_one, 4),
        "counts_of_two_nats": round(by_two, 4),
        "parameters": net.n_params,
        "sample": text.decode(sample[0]),
    }


def draw(losses, counts, path):
    """The loss per character, against the number of characters before it that the model has seen."""
    from nbprop import plot

    figure, axes = plot.panels(size=(7.5, 4.5))
    axes.plot(np.arange(1, POSITIONS + 1), losses, label=f"the model: {losses.mean():.2f} on average")
    for (name, value), style in zip(counts.items(), (":", "--"), strict=True):
        axes.axhline(value, color="0.4", linestyle=style, label=f"counts of {name} before: {value:.2f}")
    axes.set(
        xlabel="characters that it has seen",
        ylabel="nats for the next one, held-out text",
        title="A small GPT on Python's library: what more context buys",
    )
    axes.legend()
    save_picture(figure, path)


def main():
    parser = options(__doc__, drawn="the loss against the characters seen")
    parser.add_argument("--text", type=Path, help="a text to learn from")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--weights", help="a GPT-2 of Hugging Face's layout, to continue --tokens with")
    parser.add_argument("--tokens", type=int, nargs="+", default=[50256])
    given = parser.parse_args()
    if given.weights:
        net, params = gpt2.load(given.weights)
        print(*nbprop.generate(net, params, np.array([given.tokens]), 20, temperature=0, threads=given.threads)[0])
        return
    text = Text(given.text.read_text(encoding="utf-8")) if given.text else None
    found = run(given.seed, False, text, given.steps, given.threads, given.picture, progress=None)
    for name, value in found.items():
        print(f"{name.replace('_', ' ')}: {value}")
    if given.picture:
        print("picture:", given.picture)


if __name__ == "__main__":
    main()
