"""Ten steps of each optimizer, and learning-rate schedules, by PyTorch in float64.

The cases of optimizers.npz and schedules.npz. Three optimizers are not in torch.optim and are written out here
from their papers: Lion, momentum in the form of Rumelhart, Hinton and Williams, and schedule-free AdamW.
"""

import numpy as np
import torch

STEPS = 10
LAYERS = [{"type": "dense", "units": 4, "activation": "tanh"}, {"type": "dense", "units": 2}]
DESCRIPTION = {"input_shape": [3], "layers": LAYERS, "loss": "mse"}
SHAPES = [(3, 4), (4,), (4, 2), (2,)]
BIASES = np.concatenate([np.full(np.prod(shape), len(shape) == 1) for shape in SHAPES])


def problem():
    """Return params (26,), x (7, 3) and target (7, 2) of a 3-4-2 tanh regression, in sixteenths."""
    rng = np.random.default_rng(20)
    return tuple(np.rint(rng.normal(size=shape) * 16) / 16 for shape in (26, (7, 3), (7, 2)))


def loss_and_gradient(leaves, x, target):
    w1, b1, w2, b2 = leaves
    loss = torch.nn.functional.mse_loss(torch.tanh(x @ w1 + b1) @ w2 + b2, target)
    for leaf in leaves:
        leaf.grad = None
    loss.backward()
    return loss.item()


def flat(leaves):
    return np.concatenate([leaf.detach().numpy().ravel() for leaf in leaves])


def trajectory(make, clip=None, schedule=None):
    """Return losses (11,), grads (10, 26) before clipping, params (11, 26), and changing learning rates."""
    start, x, target = problem()
    x, target = torch.tensor(x), torch.tensor(target)
    parts = np.split(start, np.cumsum([np.prod(shape) for shape in SHAPES])[:-1])
    leaves = [torch.tensor(part.reshape(shape), requires_grad=True) for part, shape in zip(parts, SHAPES, strict=True)]
    optimizer = make(leaves)
    scheduler = schedule(optimizer) if schedule else None
    losses, grads, params, rates = [], [], [start], []
    for _ in range(STEPS):
        losses.append(loss_and_gradient(leaves, x, target))
        grads.append(np.concatenate([leaf.grad.numpy().ravel() for leaf in leaves]))
        if clip:
            clip(leaves)
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if scheduler:
            scheduler.step()
        params.append(flat(leaves))
    losses.append(loss_and_gradient(leaves, x, target))
    fields = {"losses": losses, "grads": grads, "params": params}
    return fields | ({"lr": rates} if scheduler else {})


class Lion(torch.optim.Optimizer):
    """Chen et al. 2023, "Symbolic discovery of optimization algorithms", algorithm 2."""

    def __init__(self, leaves, lr, beta1, beta2, weight_decay):
        super().__init__(leaves, {"lr": lr})
        self.beta1, self.beta2, self.weight_decay = beta1, beta2, weight_decay

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for leaf in group["params"]:
                m = self.state[leaf].setdefault("m", torch.zeros_like(leaf))
                c = self.beta1 * m + (1 - self.beta1) * leaf.grad
                leaf -= group["lr"] * (torch.sign(c) + self.weight_decay * leaf)
                m.copy_(self.beta2 * m + (1 - self.beta2) * leaf.grad)


class ScheduleFreeAdamW(torch.optim.Optimizer):
    """Defazio et al. 2024, "The road less scheduled", algorithm 1; leaves hold y, and z counts by its rate's square."""

    def __init__(self, leaves, lr, beta1, beta2, eps, weight_decay, warm_up):
        super().__init__(leaves, {"lr": lr})
        self.betas, self.eps, self.weight_decay, self.warm_up = (beta1, beta2), eps, weight_decay, warm_up
        self.steps, self.weights = 0, 0.0

    @torch.no_grad()
    def step(self):
        self.steps += 1
        (beta1, beta2), rate = self.betas, self.param_groups[0]["lr"] * min(1.0, self.steps / max(1, self.warm_up))
        self.weights += rate**2
        weight = rate**2 / self.weights
        for leaf in self.param_groups[0]["params"]:
            state = self.state[leaf]
            if not state:
                state |= {"z": leaf.clone(), "x": leaf.clone(), "v": torch.zeros_like(leaf)}
            state["v"].mul_(beta2).addcmul_(leaf.grad, leaf.grad, value=1 - beta2)
            root = (state["v"] / (1 - beta2**self.steps)).sqrt() + self.eps
            state["z"] -= rate * (leaf.grad / root + self.weight_decay * leaf)
            state["x"].copy_((1 - weight) * state["x"] + weight * state["z"])
            leaf.copy_((1 - beta1) * state["z"] + beta1 * state["x"])


class RumelhartMomentum(torch.optim.Optimizer):
    """delta(t) = -lr g(t) + momentum delta(t-1).

    Rumelhart, Hinton and Williams, "Learning representations by back-propagating errors", Nature 323 (1986),
    equation 9.
    """

    def __init__(self, leaves, lr, momentum):
        super().__init__(leaves, {"lr": lr})
        self.momentum = momentum

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for leaf in group["params"]:
                delta = self.state[leaf].setdefault("delta", torch.zeros_like(leaf))
                delta.copy_(-group["lr"] * leaf.grad + self.momentum * delta)
                leaf += delta


def decay_groups(leaves, weight_decay):
    """Decay the weights, not the biases."""
    return [
        {"params": [leaf for leaf in leaves if leaf.ndim == 2], "weight_decay": weight_decay},
        {"params": [leaf for leaf in leaves if leaf.ndim == 1], "weight_decay": 0.0},
    ]


def trajectories():
    """Return {case: (description, arrays)}; "problem" holds what the cases share."""
    optim, rates, clip = torch.optim, torch.optim.lr_scheduler, torch.nn.utils
    torch.set_default_dtype(torch.float64)  # NAdam's product of momenta would be float32
    halve = {"schedule": "step", "schedule_hyperparameters": {"lr": 0.1, "every": 3, "factor": 0.5}}
    result = {}

    def add(case, optimizer, hyperparameters, make, extra=None, **options):
        description = DESCRIPTION | {"optimizer": optimizer, "hyperparameters": hyperparameters} | (extra or {})
        result[case] = description, trajectory(make, **options)

    def half(optimizer):
        return rates.StepLR(optimizer, 3, 0.5)

    add("sgd", "sgd", {"lr": 0.1}, lambda p: optim.SGD(p, lr=0.1))
    velocity = {"lr": 0.1, "momentum": 0.9}
    add("momentum", "momentum", velocity, lambda p: optim.SGD(p, lr=0.1, momentum=0.9))
    add(
        "momentum_step",
        "momentum",
        velocity,
        lambda p: optim.SGD(p, lr=0.1, momentum=0.9),
        halve,
        schedule=half,
    )
    add("momentum_rumelhart", "momentum_rumelhart", velocity, lambda p: RumelhartMomentum(p, 0.1, 0.9))
    add(
        "momentum_rumelhart_step",
        "momentum_rumelhart",
        velocity,
        lambda p: RumelhartMomentum(p, 0.1, 0.9),
        halve,
        schedule=half,
    )
    add("nesterov", "nesterov", velocity, lambda p: optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True))
    add("rmsprop", "rmsprop", {"lr": 0.01, "decay": 0.99, "eps": 1e-8}, lambda p: optim.RMSprop(p))
    add("adagrad", "adagrad", {"lr": 0.1, "eps": 1e-10}, lambda p: optim.Adagrad(p, lr=0.1))
    moments = {"lr": 0.05, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8}
    add("adam", "adam", moments, lambda p: optim.Adam(p, lr=0.05))
    add(
        "adam_other_betas",
        "adam",
        {"lr": 0.02, "beta1": 0.7, "beta2": 0.95, "eps": 1e-3},
        lambda p: optim.Adam(p, lr=0.02, betas=(0.7, 0.95), eps=1e-3),
    )
    for name, function, limit in (
        ("clip_global_norm", clip.clip_grad_norm_, 4.0),
        ("clip_value", clip.clip_grad_value_, 1.0),
    ):
        add(
            f"adam_{name}",
            "adam",
            moments,
            lambda p: optim.Adam(p, lr=0.05),
            {"clip": name, "limit": limit},
            clip=lambda p, function=function, limit=limit: function(p, limit),
        )
    decay = moments | {"weight_decay": 0.1}
    add("adamw", "adamw", decay, lambda p: optim.AdamW(p, lr=0.05, weight_decay=0.1))
    add("adamw_mask", "adamw", decay, lambda p: optim.AdamW(decay_groups(p, 0.1), lr=0.05))
    result["adamw_mask"][1]["mask"] = ~BIASES.astype(bool)
    rprop = {"lr": 0.1, "shrink": 0.5, "grow": 1.2, "smallest": 1e-6, "largest": 50.0}
    add("rprop", "rprop", rprop, lambda p: optim.Rprop(p, lr=0.1))
    lion = {"lr": 0.02, "beta1": 0.9, "beta2": 0.99, "weight_decay": 0.0}
    add("lion", "lion", lion, lambda p: Lion(p, **lion))
    add(
        "lion_decay",
        "lion",
        lion | {"weight_decay": 0.1},
        lambda p: Lion(p, **(lion | {"weight_decay": 0.1})),
    )
    add("amsgrad", "amsgrad", moments, lambda p: optim.Adam(p, lr=0.05, amsgrad=True))
    short = {"lr": 0.05, "beta1": 0.7, "beta2": 0.6, "eps": 1e-8}
    add("amsgrad_other_betas", "amsgrad", short, lambda p: optim.Adam(p, lr=0.05, betas=(0.7, 0.6), amsgrad=True))
    add("radam", "radam", moments, lambda p: optim.RAdam(p, lr=0.05))
    add("radam_never", "radam", short, lambda p: optim.RAdam(p, lr=0.05, betas=(0.7, 0.6)))
    add("nadam", "nadam", moments | {"momentum_decay": 4e-3}, lambda p: optim.NAdam(p, lr=0.05))
    add(
        "nadam_decay",
        "nadam",
        short | {"momentum_decay": 0.5},
        lambda p: optim.NAdam(p, lr=0.05, betas=(0.7, 0.6), momentum_decay=0.5),
    )
    add("adadelta", "adadelta", {"lr": 1.0, "decay": 0.9, "eps": 1e-6}, lambda p: optim.Adadelta(p, lr=1.0))
    free = moments | {"weight_decay": 0.0, "warm_up": 0}
    add("schedule_free_adamw", "schedule_free_adamw", free, lambda p: ScheduleFreeAdamW(p, **free))
    rising = free | {"weight_decay": 0.1, "warm_up": 4}
    add("schedule_free_adamw_warm_up", "schedule_free_adamw", rising, lambda p: ScheduleFreeAdamW(p, **rising))
    torch.set_default_dtype(torch.float32)
    require_events(result)
    params, x, target = problem()
    result["problem"] = DESCRIPTION, {"params": params, "x": x, "target": target}
    return result


def require_events(result):
    """Refuse ten steps in which a rule never applied: signs must change, and clipping must start or stop."""
    grads = np.array(result["rprop"][1]["grads"])
    if not np.any(grads[1:] * grads[:-1] < 0):
        raise ValueError("rprop: no component of the gradient changes its sign")
    if np.array_equal(result["amsgrad_other_betas"][1]["params"], result["amsgrad"][1]["params"]):
        raise ValueError("amsgrad: its betas make no difference")
    norms = np.linalg.norm(result["adam_clip_global_norm"][1]["grads"], axis=1)
    if not norms.min() < 4.0 < norms.max():
        raise ValueError(f"the norms {norms} do not lie on both sides of the limit")


def schedules():
    """Return {case: (description, {"lr": the learning rate of step 0, 1, ...})}."""
    rates = torch.optim.lr_scheduler
    cycle = {"highest": 0.1, "steps": 20, "rise": 0.3, "start_divisor": 25.0, "final_divisor": 1e4}
    table = {
        "constant": (12, {"lr": 0.1}, lambda o: rates.ConstantLR(o, factor=1.0)),
        "step": (12, {"lr": 0.1, "every": 4, "factor": 0.5}, lambda o: rates.StepLR(o, 4, 0.5)),
        "cosine": (
            13,
            {"lr": 0.1, "steps": 12, "lowest": 0.01},
            lambda o: rates.CosineAnnealingLR(o, 12, 0.01),
        ),
        "one_cycle": (20, cycle, lambda o: rates.OneCycleLR(o, max_lr=0.1, total_steps=20)),
        "warm_up": (
            12,
            {"lr": 0.1, "steps": 5, "start": 0.25},
            lambda o: rates.LinearLR(o, start_factor=0.25, total_iters=5),
        ),
        "polynomial": (
            14,
            {"lr": 0.1, "steps": 11, "power": 1.5},
            lambda o: rates.PolynomialLR(o, total_iters=11, power=1.5),
        ),
        "warm_restarts": (
            33,
            {"lr": 0.1, "steps": 4, "growth": 2, "lowest": 0.01},
            lambda o: rates.CosineAnnealingWarmRestarts(o, 4, 2, 0.01),
        ),
    }
    result = {}
    for name, (steps, hyperparameters, make) in table.items():
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
        scheduler = make(optimizer)
        values = []
        for step in range(steps):
            values.append(optimizer.param_groups[0]["lr"])
            if step < steps - 1:
                optimizer.step()
                scheduler.step()
        result[name] = {"schedule": name, "hyperparameters": hyperparameters}, {"lr": values}
    return result
