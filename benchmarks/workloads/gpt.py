"""nanoGPT's recipe for one CPU: a GPT of 4 layers, 4 heads, 128 wide, 64 positions; AdamW steps, and generation.

"gpt_step": a batch of 12, cross-entropy, gradients clipped to length 1, AdamW with weight decay on matrices.
"gpt_token": 64 tokens one after the other, the likeliest each time, with keys and values kept. All start from the same
weights.
"""

import math

import numpy as np

from harness.work import Work
from workloads.rows import CHECK_STEPS, RATE

LAYERS, HEADS, WIDTH, POSITIONS, VOCABULARY, BATCH = 4, 4, 128, 64, 96, 12
DECAY = 0.1
TOKENS = POSITIONS  # that one call of "gpt_token" makes


def shapes():
    """{name: shape} of all parameters, weights (in, out)."""
    found = {"wte": (VOCABULARY, WIDTH), "wpe": (POSITIONS, WIDTH)}
    for i in range(LAYERS):
        found |= {f"{i}.ln_1.scale": (WIDTH,), f"{i}.ln_1.shift": (WIDTH,)}
        found |= {f"{i}.qkv.weight": (WIDTH, 3 * WIDTH), f"{i}.qkv.bias": (3 * WIDTH,)}
        found |= {f"{i}.out.weight": (WIDTH, WIDTH), f"{i}.out.bias": (WIDTH,)}
        found |= {f"{i}.ln_2.scale": (WIDTH,), f"{i}.ln_2.shift": (WIDTH,)}
        found |= {f"{i}.fc.weight": (WIDTH, 4 * WIDTH), f"{i}.fc.bias": (4 * WIDTH,)}
        found |= {f"{i}.proj.weight": (4 * WIDTH, WIDTH), f"{i}.proj.bias": (WIDTH,)}
    return found | {"ln_f.scale": (WIDTH,), "ln_f.shift": (WIDTH,)}


def weights():
    """The common start, {name: float32 array}; the order is that of nbprop's flat vector."""
    rng, start = np.random.default_rng(0), {}
    for name, shape in shapes().items():
        constant = 1.0 if name.endswith("scale") else 0.0
        start[name] = rng.normal(0, 0.02, shape) if len(shape) == 2 else np.full(shape, constant)
    return {name: array.astype(np.float32) for name, array in start.items()}


def data():
    """x and target, (BATCH, POSITIONS) int64."""
    return np.random.default_rng(1).integers(0, VOCABULARY, (2, BATCH, POSITIONS))


# nbprop -------------------------------------------------------------------------------------------


def network():
    import nbprop

    def block():
        return (
            nbprop.residual(nbprop.layernorm(), nbprop.attention(HEADS)),
            nbprop.residual(nbprop.layernorm(), nbprop.dense(4 * WIDTH, "gelu_tanh"), nbprop.dense(WIDTH)),
        )

    return nbprop.network(
        (POSITIONS,),
        nbprop.embedding(VOCABULARY, WIDTH),
        nbprop.positions(),
        *(half for _ in range(LAYERS) for half in block()),
        nbprop.layernorm(),
        nbprop.dense(VOCABULARY, bias=False, share="0.embedding.weight.T"),
    )


def nbprop(row, threads):
    import nbprop

    start, net = weights(), network()
    params = np.concatenate([array.ravel() for array in start.values()])
    if row.name == "gpt_token":
        prompt, found = np.zeros((1, 1), np.int64), []

        def tokens(n):
            for _ in range(n):
                found[:] = nbprop.generate(net, params, prompt, TOKENS, temperature=0, threads=threads)[0]

        tokens(1)
        return Work(tokens, units=TOKENS, check=float(sum(found)))

    plan = nbprop.plan(net, "softmax_cross_entropy", BATCH, np.float32, threads)
    matrices = np.concatenate([np.full(array.size, array.ndim == 2) for array in start.values()])
    (x, target), work, grads = data(), nbprop.workspace(plan), np.empty_like(params)
    state, done = nbprop.optimizer_state("adamw", params.size, np.float32), [0]

    def steps(n):
        loss = 0.0
        for i in range(done[0], done[0] + n):
            loss = nbprop.value_and_grad(plan, params, x, target, grads, work)
            nbprop.clip_norm(grads, 1.0)
            nbprop.adamw(params, grads, state, i, RATE, weight_decay=DECAY, decay_mask=matrices, threads=threads)
        done[0] += n
        return loss

    return Work(steps, check=float(steps(CHECK_STEPS)))


# torch --------------------------------------------------------------------------------------------


def torch_model():
    """The model as nanoGPT writes it: Linear, LayerNorm, scaled_dot_product_attention; `caches` to generate."""
    import torch
    from torch import nn
    from torch.nn import functional

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.ln_1, self.ln_2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
            self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
            self.fc, self.proj = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

        def attend(self, h, cache, step):
            n, positions, _ = h.shape
            split = (n, positions, HEADS, WIDTH // HEADS)
            q, k, v = (part.view(split).transpose(1, 2) for part in self.qkv(h).split(WIDTH, dim=2))
            if cache is not None:
                cache[0][:, :, step : step + 1], cache[1][:, :, step : step + 1] = k, v
                k, v = cache[0][:, :, : step + 1], cache[1][:, :, : step + 1]
            y = functional.scaled_dot_product_attention(q, k, v, is_causal=cache is None)
            return self.out(y.transpose(1, 2).reshape(n, positions, WIDTH))

        def forward(self, h, cache=None, step=0):
            h = h + self.attend(self.ln_1(h), cache, step)
            return h + self.proj(functional.gelu(self.fc(self.ln_2(h)), approximate="tanh"))

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.wte, self.wpe = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(POSITIONS, WIDTH)
            self.blocks, self.ln_f = nn.ModuleList(Block() for _ in range(LAYERS)), nn.LayerNorm(WIDTH)

        def forward(self, x, caches=None, step=0):
            h = self.wte(x) + self.wpe.weight[step : step + x.shape[1]]
            for i, block in enumerate(self.blocks):
                h = block(h, None if caches is None else caches[i], step)
            return self.ln_f(h) @ self.wte.weight.T

    model, theirs = Model(), {"scale": "weight", "shift": "bias"}
    tensors = dict(model.named_parameters())
    with torch.no_grad():
        for name, array in weights().items():
            module, _, part = name.rpartition(".")
            key = f"{name}.weight" if not module else f"{module}.{theirs.get(part, part)}"
            tensor = tensors[f"blocks.{key}" if key[0].isdigit() else key]
            linear = array.ndim == 2 and bool(module)
            tensor.copy_(torch.from_numpy(array.T if linear else array))
    return model


def torch(row, threads):
    import torch
    from torch.nn import functional

    torch.set_num_threads(threads)
    model = torch_model()
    if row.name == "gpt_token":
        caches = [torch.zeros(2, 1, HEADS, POSITIONS, WIDTH // HEADS) for _ in range(LAYERS)]

        def tokens(n):
            with torch.inference_mode():
                for _ in range(n):
                    found, token = 0, torch.zeros(1, 1, dtype=torch.int64)
                    for step in range(TOKENS):
                        token = model(token, caches, step)[:, -1].argmax(dim=-1, keepdim=True)
                        found += int(token)
            return found

        return Work(tokens, units=TOKENS, check=float(tokens(1)))

    matrices = [p for p in model.parameters() if p.dim() == 2]
    others = [p for p in model.parameters() if p.dim() != 2]
    groups = [{"params": matrices, "weight_decay": DECAY}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=RATE, fused=True)
    x, target = (torch.from_numpy(array) for array in data())

    def steps(n):
        for _ in range(n):
            optimizer.zero_grad(set_to_none=True)
            loss = functional.cross_entropy(model(x).view(-1, VOCABULARY), target.view(-1))
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        return loss.detach()

    return Work(steps, check=float(steps(CHECK_STEPS)))


# JAX ----------------------------------------------------------------------------------------------


def jax_jit(row, threads):
    import jax
    import jax.numpy as jnp

    if row.name == "gpt_token":
        return jax_tokens()

    def loss(p, x, target):
        logits = jax_logits(p, x)
        picked = jnp.take_along_axis(logits, target[..., None], axis=-1)[..., 0]
        return jnp.mean(jax.nn.logsumexp(logits, axis=-1) - picked)

    def step(carry, x, target):
        p, m, v, t = carry
        value, g = jax.value_and_grad(loss)(p, x, target)
        norm = jnp.sqrt(sum(jnp.sum(a * a) for a in jax.tree.leaves(g)))
        g = jax.tree.map(lambda a: a * jnp.minimum(1.0, 1.0 / (norm + 1e-6)), g)
        t = t + 1
        m = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, m, g)
        v = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, v, g)
        rate, scale = RATE / (1 - 0.9**t), 1 / jnp.sqrt(1 - 0.999**t)

        def update(p, m, v):
            kept = p * (1 - RATE * DECAY) if p.ndim == 2 else p
            return kept - rate * m / (jnp.sqrt(v) * scale + 1e-8)

        return (jax.tree.map(update, p, m, v), m, v, t), value

    compiled, (x, target) = jax.jit(step, donate_argnums=0), jax.device_put(data().astype(np.int32))
    zeros = {name: np.zeros_like(array) for name, array in weights().items()}
    state = [jax.device_put((weights(), zeros, {name: a.copy() for name, a in zeros.items()}, np.float32(0)))]

    def steps(n):
        carry = state[0]
        for _ in range(n):
            carry, value = compiled(carry, x, target)
        state[0] = carry
        return jax.block_until_ready(value)

    return Work(steps, check=float(steps(CHECK_STEPS)))


def jax_logits(p, x, cache=None, step=0):
    """Logits; with a cache (layers, 2, heads, positions, depth) those of one position, and the new cache."""
    import jax
    import jax.numpy as jnp

    def norm(h, name):
        h = h - h.mean(axis=-1, keepdims=True)
        return h / jnp.sqrt((h * h).mean(axis=-1, keepdims=True) + 1e-5) * p[f"{name}.scale"] + p[f"{name}.shift"]

    def linear(h, name):
        return h @ p[f"{name}.weight"] + p[f"{name}.bias"]

    places = p["wpe"] if cache is None else jax.lax.dynamic_slice_in_dim(p["wpe"], step, 1)
    h, kept = p["wte"][x] + places, []
    for i in range(LAYERS):
        split = (*x.shape, HEADS, WIDTH // HEADS)
        q, k, v = (a.reshape(split).swapaxes(1, 2) for a in jnp.split(linear(norm(h, f"{i}.ln_1"), f"{i}.qkv"), 3, -1))
        allowed = jnp.tril(jnp.ones((POSITIONS, POSITIONS), bool))
        if cache is not None:
            both = jax.lax.dynamic_update_slice_in_dim(cache[i], jnp.concatenate([k, v]), step, axis=2)
            kept.append(both)
            k, v, allowed = both[:1], both[1:], jnp.arange(POSITIONS) <= step
        scores = jnp.where(allowed, q @ k.swapaxes(-1, -2) / math.sqrt(WIDTH // HEADS), -jnp.inf)
        y = (jax.nn.softmax(scores, axis=-1) @ v).swapaxes(1, 2).reshape(h.shape)
        h = h + linear(y, f"{i}.out")
        inner = jax.nn.gelu(linear(norm(h, f"{i}.ln_2"), f"{i}.fc"), approximate=True)
        h = h + linear(inner, f"{i}.proj")
    logits = norm(h, "ln_f") @ p["wte"].T
    return logits if cache is None else (logits, jnp.stack(kept))


def jax_tokens():
    import jax
    import jax.numpy as jnp

    def next_token(p, token, cache, step):
        logits, cache = jax_logits(p, token, cache, step)
        return jnp.argmax(logits, axis=-1), cache

    compiled, p = jax.jit(next_token, donate_argnums=2), jax.device_put(weights())

    def tokens(n):
        for _ in range(n):
            found, token = 0, jnp.zeros((1, 1), jnp.int32)
            cache = jnp.zeros((LAYERS, 2, HEADS, POSITIONS, WIDTH // HEADS), jnp.float32)
            for step in range(TOKENS):
                token, cache = compiled(p, token, cache, step)
                found += int(token[0, 0])
        return found

    return Work(tokens, units=TOKENS, check=float(tokens(1)))
