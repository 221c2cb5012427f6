"""PyTorch modules that the readers are tried on: small, of every kind of layer that is read."""

import torch
from torch import nn
from torch.nn import functional as F


class Classifier(nn.Module):
    """LeNet's kind: flattened with the channels first, shapes computed from the batch."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 6, (3, 2), bias=False)
        self.norm, self.drop = nn.BatchNorm2d(4), nn.Dropout(0.3)
        self.first, self.last = nn.Linear(6 * 2 * 2, 5), nn.Linear(5, 3)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.norm(self.conv1(x))), 2)
        x = self.conv2(x)
        x = x.view(x.size(0), -1)
        return F.softmax(self.last(torch.tanh(self.drop(self.first(x)))), dim=1)


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(width, 7), nn.GELU(), nn.Linear(7, width))
        self.norm = nn.LayerNorm(width)

    def forward(self, x):
        return x + self.inner(self.norm(x))


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.input, self.blocks = nn.Linear(4, 6), nn.Sequential(Block(6), Block(6))
        self.output = nn.Linear(6, 2)

    def forward(self, x):
        return self.output(self.blocks(self.input(x))) * 2.0 + 1.0


class Skips(nn.Module):
    """A small U-net over sequences, with images' normalization, and branches side by side."""

    def __init__(self):
        super().__init__()
        self.down, self.inside = nn.Conv1d(3, 4, 3, padding=1), nn.Conv1d(4, 5, 3, padding=2, dilation=2)
        self.up, self.norm = nn.Conv1d(9, 2, 1), nn.BatchNorm1d(4)

    def forward(self, x):
        x = F.silu(self.norm(self.down(x)))
        x = torch.cat([x, torch.sigmoid(self.inside(x))], dim=1)
        return self.up(x)


class Pooled(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.pool = nn.Conv2d(3, 8, 3, groups=1, padding="same"), nn.AdaptiveAvgPool2d(1)
        self.depthwise, self.last = nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Linear(8, 2)

    def forward(self, x):
        x = F.elu(self.conv(x))
        x = F.avg_pool2d(F.leaky_relu(self.depthwise(x)), 2)
        return self.last(torch.flatten(self.pool(x), 1))


class Last(nn.Module):
    """A recurrent layer's last output, by its index."""

    def __init__(self, kind, **options):
        super().__init__()
        self.layer, self.head = kind(3, 5, batch_first=True, **options), nn.Linear(5, 2)

    def forward(self, x):
        y, _ = self.layer(x)
        return self.head(y[:, -1])


class Final(nn.Module):
    """A GRU's final state, of sequences with the time first."""

    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.GRU(3, 5), nn.Linear(5, 2)

    def forward(self, x):
        _, h = self.layer(x)
        return self.head(h[-1])


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.layer, self.head = nn.Embedding(11, 4), nn.LSTM(4, 5, batch_first=True), nn.Linear(5, 3)

    def forward(self, x):
        return self.head(self.layer(self.table(x))[0])


# name: (what makes the module, the shape of x with a batch of 3, nbprop's shape of a sample)
MODELS = {
    "chain": (
        lambda: nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 8, bias=False), nn.Softplus(), nn.Linear(8, 2)),
        (3, 4),
        (4,),
    ),
    "classifier": (Classifier, (3, 2, 8, 6), (8, 6, 2)),
    "residual": (Residual, (3, 4), (4,)),
    "skips": (Skips, (3, 3, 8), (8, 3)),
    "pooled": (Pooled, (3, 3, 6, 5), (6, 5, 3)),
    "rnn": (lambda: Last(nn.RNN, nonlinearity="relu"), (3, 6, 3), (6, 3)),
    "lstm": (lambda: Last(nn.LSTM, num_layers=2), (3, 6, 3), (6, 3)),
    "gru": (Final, (6, 3, 3), (6, 3)),
    "words": (Words, (3, 5), (5,)),
}


def module(name):
    """A module in use, with weights and statistics that are no beginner's."""
    torch.manual_seed(3)
    found = MODELS[name][0]()
    generator = torch.Generator().manual_seed(4)
    for part in found.modules():
        if isinstance(part, (nn.BatchNorm1d, nn.BatchNorm2d)):
            part.running_mean.copy_(torch.randn(part.running_mean.shape, generator=generator))
            part.running_var.copy_(torch.rand(part.running_var.shape, generator=generator) + 0.5)
            with torch.no_grad():
                part.weight.copy_(torch.rand(part.weight.shape, generator=generator) + 0.5)
                part.bias.copy_(torch.randn(part.bias.shape, generator=generator))
    return found.eval()


def inputs(name):
    """x of a module, with a batch of 3."""
    generator, shape = torch.Generator().manual_seed(5), MODELS[name][1]
    return (
        torch.randint(0, 11, shape, generator=generator) if name == "words" else torch.randn(shape, generator=generator)
    )
