"""Print the workspace of 784-1024-1024-10, batch 256, divided by the most that is live in it at once."""

import numpy as np

import nbprop

hidden = [nbprop.dense(1024, activation="relu") for _ in range(2)]
net = nbprop.network((784,), *hidden, nbprop.dense(10))
plan = nbprop.plan(net, loss="softmax_cross_entropy", batch=256, dtype=np.float32)
print(nbprop.workspace(plan).size / plan.liveness_bound)
