"""AlexNet, layer by layer: checked against PyTorch, then trained on photographs.

Krizhevsky, Sutskever and Hinton 2012, "ImageNet classification with deep convolutional neural networks", NIPS 25: the
layers of section 3.5 and figure 2, dropout of section 4.2, the training of section 5.

60,965,224 parameters, as published: the second, fourth and fifth convolutions are in two groups, then on two graphics
cards; responses are normalized over neighbouring channels (section 3.3); pooling windows overlap (3.4).

ImageNet is too large to come along, so this shows two things that can be checked on one computer:

- that the arithmetic is right: ten steps from seeded weights, without dropout, follow PyTorch's in float32
  (`trajectory`; its losses are stored in tests/reference/alexnet.npz);
- that it learns: it assigns crops to the photographs of scikit-image that they come from, by the paper's rules
  (momentum 0.9, weight decay 0.0005, crops and reflections), trained on the left halves and tested on the right ones.

Run: python examples/history/alexnet.py [--width 1.0] [--steps N] [--seed N] [--threads N] [--picture PATH]
     (pip install "nbprop[examples]" for scikit-image; at the paper's width a step takes a second and all of it 2 GB)
"""

import importlib.util
import math

import numpy as np

import nbprop
from command import options
from nbprop.io.pictures import save_picture

SIDE, BATCH = 224, 16
PHOTOGRAPHS = (
    *("astronaut", "chelsea", "coffee", "rocket", "hubble_deep_field", "immunohistochemistry", "retina", "brick"),
    *("grass", "gravel"),
)


PHOTOGRAPHS_ARE_HERE = importlib.util.find_spec("skimage") is not None
MISSING = 'the photographs come with scikit-image: pip install "nbprop[examples]"'


def alexnet(classes=1000, width=1.0):
    """The network for images (224, 224, 3); `width` scales all its maps and units, and 1.0 is the paper's."""

    def maps(count):
        return max(2, 2 * round(count * width / 2))

    def convolution(count, kernel, **options):
        return nbprop.conv2d(maps(count), kernel, activation="relu", **options)

    norm, pool = nbprop.local_response_norm(5, alpha=1e-4, beta=0.75, k=2), nbprop.max_pool2d(3, stride=2)
    return nbprop.network(
        (SIDE, SIDE, 3),
        *(convolution(96, 11, stride=4, padding=2), norm, pool),
        *(convolution(256, 5, padding=2, groups=2), norm, pool),
        convolution(384, 3, padding=1),
        convolution(384, 3, padding=1, groups=2),
        *(convolution(256, 3, padding=1, groups=2), pool),
        nbprop.flatten(),
        *(nbprop.dense(maps(4096), activation="relu"), nbprop.dropout(0.5)),
        *(nbprop.dense(maps(4096), activation="relu"), nbprop.dropout(0.5)),
        nbprop.dense(classes),
    )


def initial(net, seed, width=1.0):
    """Section 5: weights normal with deviation 0.01; biases 1 in the convolutions 2, 4, 5 and hidden layers, else 0.

    A narrow network gets larger weights, by the square root of the ratio by which its units have fewer inputs.
    """
    rng, params = np.random.default_rng(seed), np.empty(net.n_params, np.float32)
    names = [name for name in nbprop.views(net, params) if name.endswith("bias")]
    with_one = set(names[1:2] + names[3:7])
    for name, part in nbprop.views(net, params).items():
        if name in with_one or name.endswith("bias"):
            part[:] = name in with_one
        else:
            part[:] = rng.standard_normal(part.shape, np.float32) * np.float32(0.01 / math.sqrt(width))
    return params


class Trainer:
    """Section 5: v = 0.9 v - 0.0005 rate w - rate gradient; w += v."""

    def __init__(self, net, params, batch, dropout=True, threads=1):
        mode = "training" if dropout else "inference"
        self.plan = nbprop.plan(net, "softmax_cross_entropy", batch, np.float32, threads, mode)
        self.params, self.grads, self.work = params, np.empty_like(params), nbprop.workspace(self.plan)
        self.velocity, self.taken = nbprop.optimizer_state("momentum", net.n_params, np.float32), 0

    def step(self, x, labels, rate):
        """One step; the loss before it."""
        arguments = (self.plan, self.params, x, labels, self.grads, self.work)
        loss = nbprop.value_and_grad(*arguments, step=self.taken)
        rule = {"lr": rate, "momentum": 0.9, "weight_decay": 5e-4, "rumelhart": True}
        nbprop.momentum(self.params, self.grads, self.velocity, self.taken, **rule, threads=self.plan.threads)
        self.taken += 1
        return loss


def trajectory(width, classes=1000, batch=4, steps=10, rate=0.001, seed=0):
    """The losses before each step on one seeded batch, and after the last, without dropout; PyTorch's are stored."""
    net, rng = alexnet(classes, width), np.random.default_rng(seed + 1)
    x = 60 * rng.standard_normal((batch, SIDE, SIDE, 3), np.float32)
    labels = rng.integers(0, classes, batch)
    trainer = Trainer(net, initial(net, seed, width), batch, dropout=False)
    losses = [trainer.step(x, labels, rate) for _ in range(steps)]
    return [*losses, nbprop.value(trainer.plan, trainer.params, x, labels, trainer.work)]


def photographs():
    """[image (height, width, 3) float32], each at least 224 high and twice 224 wide."""
    from skimage import data, transform

    found = []
    for name in PHOTOGRAPHS:
        image = getattr(data, name)()
        image = image if image.ndim == 3 else np.repeat(image[..., None], 3, -1)
        # A crop should show more than a small patch of a large picture.
        scale = max(SIDE / image.shape[0], 2 * SIDE / image.shape[1], 320 / max(image.shape))
        shape = tuple(math.ceil(extent * scale) for extent in image.shape[:2])
        found.append(transform.resize(image, (*shape, 3), anti_aliasing=True, preserve_range=True).astype(np.float32))
    return found


class Crops:
    """Random crops: of the left halves to train on, of the right halves to test on. The mean of the left halves is
    subtracted, and half of the crops are reflected (sections 2 and 4.1)."""

    def __init__(self, images, seed):
        self.images, self.rng = images, np.random.default_rng(seed)
        self.mean = np.mean([image[:, : image.shape[1] // 2].mean((0, 1)) for image in images], 0)

    def draw(self, n, right):
        labels = self.rng.integers(0, len(self.images), n)
        x = np.empty((n, SIDE, SIDE, 3), np.float32)
        for sample, label in zip(x, labels, strict=True):
            image = self.images[label]
            half = image.shape[1] // 2
            top = self.rng.integers(0, image.shape[0] - SIDE + 1)
            left = self.rng.integers(0, half - SIDE + 1) + (half if right else 0)
            crop = image[top : top + SIDE, left : left + SIDE] - self.mean
            sample[...] = crop[:, ::-1] if self.rng.random() < 0.5 else crop
        return x, labels


class Photographs:
    """Training on crops, and the test afterwards."""

    def __init__(self, width, seed, threads=1):
        self.crops, self.net = Crops(photographs(), seed), alexnet(len(PHOTOGRAPHS), width)
        self.trainer = Trainer(self.net, initial(self.net, seed, width), BATCH, threads=threads)
        self.losses = []

    def learn(self, steps, rate=0.003, report=None):
        """Steps on random crops of the left halves; the rate falls tenfold for the last fifth."""
        for step in range(steps):
            crops = self.crops.draw(BATCH, right=False)
            self.losses.append(self.trainer.step(*crops, rate if step < 0.8 * steps else rate / 10))
            if report and (step + 1) % report == 0:
                print(f"  step {step + 1:4}: loss {np.mean(self.losses[-report:]):.3f}", flush=True)

    def ask(self, batches=10):
        """(crops of the right halves, their photographs, the answers)."""
        plan = nbprop.plan(self.net, batch=BATCH, dtype=np.float32, mode="inference")
        logits, work, asked = np.empty((BATCH, len(PHOTOGRAPHS)), np.float32), nbprop.workspace(plan), []
        for _ in range(batches):
            x, labels = self.crops.draw(BATCH, right=True)
            nbprop.forward(plan, self.trainer.params, x, logits, work)
            asked.append((x, labels, logits.argmax(1)))
        return (np.concatenate(arrays) for arrays in zip(*asked, strict=True))

    def percent_right(self):
        _, labels, answers = self.ask()
        return 100 * float(np.mean(labels == answers))


def run(seed, quick=False):
    """Three times better than chance on the right halves of ten photographs, with a network an eighth as wide.

    quick: half of the steps.
    """
    if not PHOTOGRAPHS_ARE_HERE:
        return {"skipped": MISSING}
    learner, chance = Photographs(1 / 8, seed), 100 / len(PHOTOGRAPHS)
    learner.learn(80 if quick else 160)
    percent = learner.percent_right()
    return {
        "reproduced": percent >= 3 * chance,
        "percent_right": round(percent, 1),
        "chance_percent": chance,
        "first_loss": round(learner.losses[0], 3),
        "last_loss": round(float(np.mean(learner.losses[-10:])), 3),
    }


def draw(learner, path):
    """Crops of the right halves with the answers, the photograph where one is wrong, and the loss of training."""
    from nbprop import plot

    figure, axes = plot.panels(3, 6, size=(13, 7.6))
    crops, labels, answers = learner.ask(1)
    for axis, x, label, answer in zip(axes.flat, crops, labels, answers, strict=False):
        axis.imshow(np.clip((x + learner.crops.mean) / 255, 0, 1))
        true, read = (PHOTOGRAPHS[k].replace("_", " ") for k in (label, answer))
        axis.set_title(f"{true}\nread as {read}", color="black" if answer == label else plot.POSITIVE, fontsize=9)
    for axis in axes.flat[:-1]:
        axis.set_axis_off()
    plot.losses(learner.losses, axes[-1, -1]).set(ylabel="loss (nats)", yscale="linear")
    figure.suptitle(
        f"Crops of the right halves of ten photographs, as AlexNet reads them after {len(learner.losses)} steps on the "
        f"left halves: {(labels == answers).sum()} of these {len(labels)} right"
    )
    save_picture(figure, path, dpi=70)


def main():
    parser = options(__doc__, drawn="crops with their answers, and the loss,")
    parser.add_argument("--width", type=float, default=1 / 8, help="1.0 is the paper's; an eighth by default")
    parser.add_argument("--steps", type=int, default=160)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--trajectory", action="store_true", help="print ten steps' losses, at --width, and end")
    given = parser.parse_args()
    if given.picture and (given.trajectory or not PHOTOGRAPHS_ARE_HERE):
        parser.error("--picture shows photographs, which --trajectory does not learn" if given.trajectory else MISSING)
    if not (given.trajectory or PHOTOGRAPHS_ARE_HERE):
        print(f"{MISSING}. Ten steps on a seeded batch instead; their losses:")
    if given.trajectory or not PHOTOGRAPHS_ARE_HERE:
        print(*(f"{loss:.6f}" for loss in trajectory(given.width)))
        return
    learner = Photographs(given.width, given.seed, given.threads)
    print(f"AlexNet for 1,000 classes has {alexnet().n_params:,} parameters as published; for {len(PHOTOGRAPHS)}")
    print(f"photographs, {given.width:g} times as wide, {learner.net.n_params:,}. Learning their left halves:")
    learner.learn(given.steps, report=20)
    chance = 100 / len(PHOTOGRAPHS)
    print(f"crops of the right halves, not seen before: {learner.percent_right():.1f} % right (chance: {chance:.0f} %)")
    if given.picture:
        draw(learner, given.picture)


if __name__ == "__main__":
    main()
