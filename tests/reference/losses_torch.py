"""Losses of linear networks by PyTorch, in float64, with gradients and Hessian-vector products: losses.npz."""

import numpy as np
import torch
import torch.nn.functional as F

WEIGHTS = [0.5, 2.0, 0.0, 1.25, 3.0]
N, INPUTS, OUTPUTS = 5, 3, 4


def _pinball(y, t, taus):
    taus = torch.tensor(taus, dtype=torch.float64).repeat(y.shape[-1] // len(taus))
    error = t.repeat_interleave(y.shape[-1] // t.shape[-1], dim=-1) - y
    return torch.maximum(taus * error, (taus - 1) * error).mean(-1)


def _focal(y, t, gamma):
    """As torchvision's sigmoid_focal_loss without alpha."""
    p, entropy = torch.sigmoid(y), F.binary_cross_entropy_with_logits(y, t, reduction="none")
    right = p * t + (1 - p) * (1 - t)
    return (entropy * (1 - right) ** gamma).mean(-1)


def _student_t(y, t, nu):
    location, s = y.chunk(2, dim=-1)
    nu = torch.tensor(nu, dtype=torch.float64)
    own = -torch.distributions.StudentT(nu, location, (s / 2).exp()).log_prob(t)
    constant = torch.lgamma(nu / 2) - torch.lgamma((nu + 1) / 2) + 0.5 * torch.log(nu * torch.pi)
    return (own - constant).mean(-1)


def _beta_nll(y, t, beta):
    mean, s = y.chunk(2, dim=-1)
    variance = s.exp()
    return (0.5 * ((t - mean) ** 2 / variance + s) * variance.detach() ** beta).mean(-1)


def _kl(y, t):
    return F.kl_div(F.log_softmax(y, -1), t, reduction="none").sum(-1)


def _cosine(y, t):
    return F.cosine_embedding_loss(y, t, torch.ones(len(y), dtype=torch.float64), reduction="none")


# case: (loss of nbprop, its arguments, kind of target, the loss of each row)
LOSSES = {
    "mae": ("mae", {}, "real", lambda y, t: (y - t).abs().mean(-1)),
    "log_cosh": ("log_cosh", {}, "real", lambda y, t: torch.log(torch.cosh(y - t)).mean(-1)),
    "poisson_nll": ("poisson_nll", {}, "count", lambda y, t: F.poisson_nll_loss(y, t, reduction="none").mean(-1)),
    "hinge": ("hinge", {}, "sign", lambda y, t: torch.clamp(1 - t * y, min=0).mean(-1)),
    "focal": ("focal", {}, "binary", lambda y, t: _focal(y, t, 2.0)),
    "focal_1.5": ("focal", {"gamma": 1.5}, "binary", lambda y, t: _focal(y, t, 1.5)),
    "quantile": ("quantile", {"quantiles": [0.1, 0.9]}, "half", lambda y, t: _pinball(y, t, [0.1, 0.9])),
    "median": ("quantile", {"quantiles": [0.5]}, "real", lambda y, t: _pinball(y, t, [0.5])),
    "student_t_nll": ("student_t_nll", {}, "half", lambda y, t: _student_t(y, t, 4.0)),
    "student_t_nll_1": ("student_t_nll", {"nu": 1.0}, "half", lambda y, t: _student_t(y, t, 1.0)),
    "beta_nll": ("beta_nll", {}, "half", lambda y, t: _beta_nll(y, t, 0.5)),
    "beta_nll_1": ("beta_nll", {"beta": 1.0}, "half", lambda y, t: _beta_nll(y, t, 1.0)),
    "kl_divergence": ("kl_divergence", {}, "distribution", _kl),
    "soft_cross_entropy": (
        *("soft_cross_entropy", {}, "distribution"),
        lambda y, t: F.cross_entropy(y, t, reduction="none"),
    ),
    "smoothed": (
        *("softmax_cross_entropy", {"label_smoothing": 0.2}, "class"),
        lambda y, t: F.cross_entropy(y, t, reduction="none", label_smoothing=0.2),
    ),
    "cosine": ("cosine", {}, "real", _cosine),
}


def target_of(kind, rng):
    """Targets of a kind, (N, ...)."""
    if kind == "class":
        return rng.integers(0, OUTPUTS, N)
    if kind == "distribution":
        t = rng.dirichlet(np.ones(OUTPUTS), N)
        t[1] = [0, 1, 0, 0]
        return t
    shape = (N, OUTPUTS // 2) if kind == "half" else (N, OUTPUTS)
    drawn = rng.normal(size=shape)
    return {"count": np.floor(np.exp(drawn)), "sign": np.sign(drawn), "binary": (drawn > 0) * 1.0}.get(kind, drawn)


def cases():
    """{case: (description, {field: array})}."""
    found = {}
    for number, (case, (name, arguments, kind, row_losses)) in enumerate(LOSSES.items()):
        rng = np.random.default_rng(number)
        x, target = rng.normal(size=(N, INPUTS)), target_of(kind, rng)
        params, v = rng.normal(size=((INPUTS + 1) * OUTPUTS,)), rng.normal(size=((INPUTS + 1) * OUTPUTS,))
        for weights in (None, WEIGHTS):
            w = torch.ones(N, dtype=torch.float64) if weights is None else torch.tensor(weights, dtype=torch.float64)

            def loss(p, w=w, x=x, target=target, row_losses=row_losses):
                y = torch.tensor(x) @ p[: INPUTS * OUTPUTS].reshape(INPUTS, OUTPUTS) + p[INPUTS * OUTPUTS :]
                return (w * row_losses(y, torch.tensor(target))).sum() / w.sum()

            p = torch.tensor(params, requires_grad=True)
            value = loss(p)
            (grad,) = torch.autograd.grad(value, p, create_graph=True)
            product = torch.zeros_like(p)
            if grad.requires_grad:  # not of a loss that consists of straight lines
                # The Hessian times v, by transposing twice.
                u = torch.zeros_like(p, requires_grad=True)
                (back,) = torch.autograd.grad(grad, p, u, create_graph=True)
                if back.requires_grad:
                    (product,) = torch.autograd.grad(back, u, torch.tensor(v))
            fields = {"params": params, "v": v, "x": x, "target": target, "loss": value.detach().numpy()}
            fields |= {"grad": grad.detach().numpy(), "hvp": product.detach().numpy()}
            fields |= {} if weights is None else {"weights": np.array(weights)}
            found[f"{case}{'' if weights is None else '_weighted'}"] = ({"loss": name, "arguments": arguments}, fields)
    return found
