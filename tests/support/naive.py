"""Slow, obvious NumPy references: one function for each thing that nbprop computes.

Nothing here is fast, in place or clever. Every function returns new arrays and keeps the floating type it is
given; test_naive.py holds it against stored PyTorch results and central differences. naive_network.py walks
whole networks with these functions.

Shapes: n samples; the last axis of an array is always its features.
"""

import math

import numpy as np
from scipy.special import erf

# Dense


def dense_forward(x, w, b):
    """Return y = x W + b: x (..., n_in), w (n_in, n_out), b (n_out,) -> y (..., n_out)."""
    return x @ w + b


def dense_backward(x, w, dy):
    """Return dx, dw, db of y = x W + b: sums over all axes but the last."""
    rows, d_rows = x.reshape(-1, x.shape[-1]), dy.reshape(-1, dy.shape[-1])
    return dy @ w.T, rows.T @ d_rows, d_rows.sum(axis=0)


# Activations: f(z), and the gradient of the loss by z, given z and the gradient dy by f(z)


def identity(z):
    return z.copy()


def identity_backward(z, dy):
    return dy.copy()


def relu(z):
    """max(z, 0); the derivative at 0 is 0, as in PyTorch."""
    return np.where(z <= 0, 0, z)


def relu_backward(z, dy):
    return np.where(z <= 0, 0, dy)


def leaky_relu(z):
    """z above 0, 0.01 z below; the derivative at 0 is 0.01, as in PyTorch."""
    return np.where(z > 0, z, 0.01 * z)


def leaky_relu_backward(z, dy):
    return np.where(z > 0, dy, 0.01 * dy)


def elu(z):
    """z above 0, exp(z) - 1 below (alpha = 1). Clevert et al. 2016, section 3."""
    return np.where(z > 0, z, np.expm1(np.minimum(z, 0)))


def elu_backward(z, dy):
    return np.where(z > 0, dy, dy * np.exp(np.minimum(z, 0)))


def gelu(z):
    """z Phi(z) with the exact normal distribution Phi. Hendrycks and Gimpel 2016, section 2."""
    return z * 0.5 * (1 + erf(z / math.sqrt(2)))


def gelu_backward(z, dy):
    """Phi(z) + z phi(z)."""
    density = np.exp(-z * z / 2) / math.sqrt(2 * math.pi)
    return dy * (0.5 * (1 + erf(z / math.sqrt(2))) + z * density)


def gelu_tanh(z):
    """0.5 z (1 + tanh(sqrt(2/pi) (z + 0.044715 z^3))). Hendrycks and Gimpel 2016, section 2."""
    return 0.5 * z * (1 + np.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)))


def gelu_tanh_backward(z, dy):
    t = np.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3))
    inner = math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * z * z)
    return dy * (0.5 * (1 + t) + 0.5 * z * (1 - t * t) * inner)


def sigmoid(z):
    """1 / (1 + exp(-z)), each side by the exponential that cannot overflow."""
    e = np.exp(-np.abs(z))
    return np.where(z >= 0, 1 / (1 + e), e / (1 + e))


def sigmoid_backward(z, dy):
    return dy * sigmoid(z) * sigmoid(-z)


def silu(z):
    """z sigmoid(z)."""
    return z * sigmoid(z)


def silu_backward(z, dy):
    return dy * (sigmoid(z) + z * sigmoid(z) * sigmoid(-z))


def softplus(z):
    """log(1 + exp(z)); without PyTorch's switch to z above 20."""
    return np.maximum(z, 0) + np.log1p(np.exp(-np.abs(z)))


def softplus_backward(z, dy):
    return dy * sigmoid(z)


def tanh(z):
    return np.tanh(z)


def tanh_backward(z, dy):
    return dy * (1 - np.tanh(z) ** 2)


def mish(z):
    """z tanh(softplus(z)). Misra 2019, equation 1."""
    return z * np.tanh(softplus(z))


def mish_backward(z, dy):
    t = np.tanh(softplus(z))
    return dy * (t + z * (1 - t * t) * sigmoid(z))


SELU_SCALE, SELU_ALPHA = 1.0507009873554804934193349852946, 1.6732632423543772848170429916717


def selu(z):
    """scale z above 0, scale alpha (exp(z) - 1) below. Klambauer et al. 2017, equation 2."""
    return SELU_SCALE * np.where(z > 0, z, SELU_ALPHA * np.expm1(np.minimum(z, 0)))


def selu_backward(z, dy):
    return SELU_SCALE * np.where(z > 0, dy, dy * SELU_ALPHA * np.exp(np.minimum(z, 0)))


def hard_sigmoid(z):
    """min(max(z + 3, 0), 6) / 6. Howard et al. 2019, section 5.2."""
    return np.clip(z + 3, 0, 6) / 6


def hard_sigmoid_backward(z, dy):
    return np.where(np.abs(z) < 3, dy / 6, 0)


def hard_tanh(z):
    return np.clip(z, -1, 1)


def hard_tanh_backward(z, dy):
    return np.where(np.abs(z) < 1, dy, 0)


def hard_swish(z):
    """z hard_sigmoid(z). Howard et al. 2019, section 5.2."""
    return z * hard_sigmoid(z)


def hard_swish_backward(z, dy):
    return np.where(z <= -3, 0, np.where(z >= 3, dy, dy * (z / 3 + 0.5)))


def softsign(z):
    """z / (1 + |z|). Bergstra et al. 2009."""
    return z / (1 + np.abs(z))


def softsign_backward(z, dy):
    return dy / (1 + np.abs(z)) ** 2


def sine(z):
    """sin(z). Sitzmann et al. 2020, section 3."""
    return np.sin(z)


def sine_backward(z, dy):
    return dy * np.cos(z)


def softmax(z):
    """exp(z) / sum(exp(z)) over the last axis."""
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def softmax_backward(z, dy):
    """s (dy - sum(s dy)): the only activation whose derivative mixes the features."""
    s = softmax(z)
    return s * (dy - (s * dy).sum(axis=-1, keepdims=True))


ACTIVATIONS = {
    "identity": (identity, identity_backward),
    "relu": (relu, relu_backward),
    "leaky_relu": (leaky_relu, leaky_relu_backward),
    "elu": (elu, elu_backward),
    "gelu": (gelu, gelu_backward),
    "gelu_tanh": (gelu_tanh, gelu_tanh_backward),
    "silu": (silu, silu_backward),
    "softplus": (softplus, softplus_backward),
    "sigmoid": (sigmoid, sigmoid_backward),
    "tanh": (tanh, tanh_backward),
    "softmax": (softmax, softmax_backward),
    "mish": (mish, mish_backward),
    "selu": (selu, selu_backward),
    "hard_sigmoid": (hard_sigmoid, hard_sigmoid_backward),
    "hard_tanh": (hard_tanh, hard_tanh_backward),
    "hard_swish": (hard_swish, hard_swish_backward),
    "softsign": (softsign, softsign_backward),
    "sine": (sine, sine_backward),
}


# Losses: l of each sample, and the gradient of l by the sample's outputs


def mse(y, target):
    """Mean over the outputs of (y - t)^2 -> l (n,), dl/dy like y."""
    d = y - target
    return _sample_mean(d * d), 2 * d / _outputs(y)


def softmax_cross_entropy(y, target):
    """Mean over the positions of log(sum(exp(y))) - y[target]; y logits, target integers (n, *positions)."""
    high = y.max(axis=-1, keepdims=True)
    log_sum = high[..., 0] + np.log(np.exp(y - high).sum(axis=-1))
    chosen = np.take_along_axis(y, target[..., None], axis=-1)[..., 0]
    one_hot = np.arange(y.shape[-1]) == target[..., None]
    positions = _outputs(y) // y.shape[-1]
    return _sample_mean(log_sum - chosen), (softmax(y) - one_hot.astype(y.dtype)) / positions


def binary_cross_entropy(y, target):
    """Mean over the outputs of softplus(y) - t y; y logits, t in [0, 1]."""
    # max(y, 0) - t y + log(1 + exp(-|y|)): for a sure answer no large numbers cancel.
    losses = np.maximum(y, 0) - target * y + np.log1p(np.exp(-np.abs(y)))
    return _sample_mean(losses), (sigmoid(y) - target) / _outputs(y)


def huber(y, target):
    """Mean over the outputs of d^2 / 2 where |d| <= 1, |d| - 1/2 elsewhere (delta = 1). Huber 1964."""
    d = y - target
    losses = np.where(np.abs(d) <= 1, d * d / 2, np.abs(d) - 0.5)
    return _sample_mean(losses), np.clip(d, -1, 1) / _outputs(y)


def gaussian_nll(y, target):
    """Mean over the k targets of (log var + (t - mu)^2 / var) / 2, without the constant log(2 pi) / 2.

    y (n, ..., 2k) holds k means, then k log variances; target (n, ..., k). As PyTorch's
    GaussianNLLLoss(full=False).
    """
    k = y.shape[-1] // 2
    mean, log_variance = y[..., :k], y[..., k:]
    d = mean - target
    precision = np.exp(-log_variance)
    losses = (log_variance + d * d * precision) / 2
    gradient = np.concatenate([d * precision, (1 - d * d * precision) / 2], axis=-1)
    return _sample_mean(losses), gradient / _outputs(target)


LOSSES = {
    "mse": mse,
    "softmax_cross_entropy": softmax_cross_entropy,
    "binary_cross_entropy": binary_cross_entropy,
    "huber": huber,
    "gaussian_nll": gaussian_nll,
}


def loss_and_gradient(name, y, target, weights=None):
    """Return sum(w l) / sum(w) and its gradient by the network's output y; without weights, the mean of l."""
    samples, gradient = LOSSES[name](y, target)
    if weights is None:
        weights = np.ones(len(y), dtype=y.dtype)
    share = weights / weights.sum()
    return (share * samples).sum(), gradient * share.reshape(-1, *[1] * (y.ndim - 1))


def _sample_mean(values):
    return values.reshape(len(values), -1).mean(axis=1)


def _outputs(y):
    return math.prod(y.shape[1:])


# Optimizers: one step; `step` counts from 0; every state array starts at zero


def sgd(p, g, lr):
    """Return p."""
    return p - lr * g


def momentum(p, g, v, lr, momentum=0.9):
    """Return p, v: PyTorch's form, in which a new learning rate acts on the whole velocity at once."""
    v = momentum * v + g
    return p - lr * v, v


def momentum_rumelhart(p, g, delta, lr, momentum=0.9):
    """Return p, delta: the 1986 form, in which a step keeps the learning rate it was made with.

    Rumelhart, Hinton and Williams, "Learning representations by back-propagating errors", Nature 323 (1986),
    equation 9.
    """
    delta = -lr * g + momentum * delta
    return p + delta, delta


def nesterov(p, g, v, lr, momentum=0.9):
    """Return p, v: PyTorch's form. Sutskever et al. 2013, section 2, at the looked-ahead point."""
    v = momentum * v + g
    return p - lr * (g + momentum * v), v


def rmsprop(p, g, v, lr=1e-2, decay=0.99, eps=1e-8):
    """Return p, v. Tieleman and Hinton 2012, lecture 6e; eps outside the root, as in PyTorch."""
    v = decay * v + (1 - decay) * g * g
    return p - lr * g / (np.sqrt(v) + eps), v


def adagrad(p, g, total, lr=1e-2, eps=1e-10):
    """Return p, total. Duchi et al. 2011, figure 1, diagonal."""
    total = total + g * g
    return p - lr * g / (np.sqrt(total) + eps), total


def adam(p, g, m, v, step, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8):
    """Return p, m, v. Kingma and Ba 2015, algorithm 1."""
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * g * g
    m_hat = m / (1 - beta1 ** (step + 1))
    v_hat = v / (1 - beta2 ** (step + 1))
    return p - lr * m_hat / (np.sqrt(v_hat) + eps), m, v


def adamw(p, g, m, v, step, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=1e-2, mask=True):
    """Return p, m, v: Adam, after p shrank by lr * weight_decay in mask. Loshchilov and Hutter 2019."""
    p = np.where(mask, p - lr * weight_decay * p, p)
    return adam(p, g, m, v, step, lr, beta1, beta2, eps)


def rprop(p, g, previous, size, lr=1e-2, shrink=0.5, grow=1.2, smallest=1e-6, largest=50.0, step=0):
    """Return p, previous, size: as PyTorch, no step where the sign changed. Riedmiller and Braun 1993."""
    if step == 0:
        size = np.full_like(p, lr)
    agreement = g * previous
    size = np.where(agreement > 0, size * grow, np.where(agreement < 0, size * shrink, size))
    size = np.clip(size, smallest, largest)
    g = np.where(agreement < 0, 0, g)
    return p - np.sign(g) * size, g, size


def lion(p, g, m, lr=1e-4, beta1=0.9, beta2=0.99, weight_decay=0.0):
    """Return p, m. Chen et al. 2023, "Symbolic discovery of optimization algorithms", algorithm 2."""
    direction = np.sign(beta1 * m + (1 - beta1) * g)
    p = p - lr * (direction + weight_decay * p)
    return p, beta2 * m + (1 - beta2) * g


def amsgrad(p, g, m, v, most, step, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8):
    """Return p, m, v, most: PyTorch's form. Reddi, Kale and Kumar 2018, algorithm 2."""
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * g * g
    most = np.maximum(most, v)
    m_hat, v_hat = m / (1 - beta1 ** (step + 1)), most / (1 - beta2 ** (step + 1))
    return p - lr * m_hat / (np.sqrt(v_hat) + eps), m, v, most


def radam(p, g, m, v, step, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8):
    """Return p, m, v. Liu et al. 2020, algorithm 2, with PyTorch's eps and threshold."""
    t = step + 1
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * g * g
    m_hat, longest = m / (1 - beta1**t), 2 / (1 - beta2) - 1
    rho = longest - 2 * t * beta2**t / (1 - beta2**t)
    if rho <= 5:
        return p - lr * m_hat, m, v
    rectified = math.sqrt((rho - 4) * (rho - 2) * longest / ((longest - 4) * (longest - 2) * rho))
    return p - lr * m_hat * rectified * math.sqrt(1 - beta2**t) / (np.sqrt(v) + eps), m, v


def nadam(p, g, m, v, step, lr=2e-3, beta1=0.9, beta2=0.999, eps=1e-8, momentum_decay=4e-3):
    """Return p, m, v. Dozat 2016, in PyTorch's form."""
    mu = [beta1 * (1 - 0.5 * 0.96 ** (t * momentum_decay)) for t in range(1, step + 3)]
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * g * g
    root = np.sqrt(v / (1 - beta2 ** (step + 1))) + eps
    fresh, kept = (1 - mu[-2]) / (1 - math.prod(mu[:-1])), mu[-1] / (1 - math.prod(mu))
    return p - lr * (fresh * g + kept * m) / root, m, v


def adadelta(p, g, square, moved, lr=1.0, decay=0.9, eps=1e-6):
    """Return p, square, moved. Zeiler 2012, algorithm 1."""
    square = decay * square + (1 - decay) * g * g
    delta = np.sqrt(moved + eps) / np.sqrt(square + eps) * g
    return p - lr * delta, square, decay * moved + (1 - decay) * delta * delta


def schedule_free_adamw(p, g, z, v, x, step, lr=2.5e-3, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.0, warm_up=0):
    """Return p, z, v, x; p is y. Defazio et al. 2024, algorithm 1, with weights as the squares of the rates."""
    z, x = (p, p) if step == 0 else (z, x)
    rates = [lr * min(1, (k + 1) / max(1, warm_up)) for k in range(step + 1)]
    weight = rates[-1] ** 2 / sum(rate**2 for rate in rates)
    v = beta2 * v + (1 - beta2) * g * g
    z = z - rates[-1] * (g / (np.sqrt(v / (1 - beta2 ** (step + 1))) + eps) + weight_decay * p)
    x = (1 - weight) * x + weight * z
    return (1 - beta1) * z + beta1 * x, z, v, x


def clip_value(g, limit):
    """Return every component of g within [-limit, limit]."""
    return np.clip(g, -limit, limit)


def clip_global_norm(g, limit, eps=1e-6):
    """Return g shortened to the Euclidean norm `limit`; PyTorch's clip_grad_norm_ adds eps to the norm."""
    return g * min(1.0, limit / (float(np.sqrt((g * g).sum())) + eps))


# Schedules: the learning rate of a step, counted from 0


def constant(step, lr):
    return lr


def step_decay(step, lr, every, factor=0.1):
    """lr times factor once for every `every` steps done (PyTorch's StepLR)."""
    return lr * factor ** (step // every)


def cosine(step, lr, steps, lowest=0.0):
    """From lr at step 0 down half a cosine to `lowest` at step `steps`. Loshchilov and Hutter 2017."""
    return lowest + (lr - lowest) * (1 + math.cos(math.pi * step / steps)) / 2


def polynomial(step, lr, steps, power=1.0, lowest=0.0):
    """lowest + (lr - lowest) (1 - step / steps)^power (PyTorch's PolynomialLR)."""
    return lowest + (lr - lowest) * (1 - min(step, steps) / steps) ** power


def warm_restarts(step, lr, steps, growth=1, lowest=0.0):
    """Cosines of steps, growth steps, growth^2 steps ... from lr to lowest. Loshchilov and Hutter 2017, equation 5."""
    start, length = 0, steps
    while step >= start + length:
        start, length = start + length, length * growth
    return lowest + (lr - lowest) * (1 + math.cos(math.pi * (step - start) / length)) / 2


def one_cycle(step, highest, steps, rise=0.3, start_divisor=25.0, final_divisor=1e4):
    """PyTorch's OneCycleLR: from start = highest / start_divisor up, then down to start / final_divisor.

    The top stands at step rise * steps - 1, the end at step steps - 1. Smith and Topin 2018.
    """
    start, top, last = highest / start_divisor, rise * steps - 1, steps - 1
    if step <= top:
        return cosine(step, start, top, highest)
    return cosine(step - top, highest, last - top, start / final_divisor)


def warm_up(step, lr, steps, start=1 / 3):
    """A straight line from start * lr at step 0 to lr at step `steps`, then lr (PyTorch's LinearLR)."""
    return lr * (start + (1 - start) * min(step, steps) / steps)
