"""A process of a group of ../../cluster.py: it answers requests on a socket, a line of JSON each, until that closes.

cluster_worker.py ranks PATH                       under mpiexec
cluster_worker.py gloo PATH RANK SIZE RENDEZVOUS   of torch.distributed
"""

import itertools
import json
import socket
import sys
import time

import numpy as np


def data(widths, batch):
    """x and labels, the same in all processes."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((4 * batch, widths[0])).astype(np.float32)
    return x, rng.integers(0, widths[-1], len(x))


class Ranks:
    """nbprop, on the processes of COMM_WORLD."""

    def __init__(self):
        from mpi4py import MPI

        self.comm, self.before = MPI.COMM_WORLD, {}

    def step(self, widths, batch, steps, pieces=None, sharded=False, threads=1):
        """Seconds of a step of `fit`, from the end of its first epoch to that of the last; without pieces, no comm."""
        import nbprop

        net = _network(nbprop, widths)
        x, labels = data(widths, batch)
        epochs = 1 + -(-steps * batch // len(x))
        options = {} if pieces is None else {"comm": self.comm, "pieces": pieces, "shard_update": sharded}
        params = nbprop.init(net, seed=0, dtype=np.float32)
        options |= {"batch": batch, "epochs": epochs, "threads": threads, "shuffle": False, "progress": False}
        history = nbprop.fit(net, params, x, labels, "softmax_cross_entropy", **options)
        spent = history.seconds[-1] - history.seconds[0]
        return {"seconds": spent / ((epochs - 1) * len(x) // batch)}

    def sum(self, count, steps):
        """Seconds of nbprop's sum of so many float32, and of the library's Allreduce, in turns."""
        from nbprop.cluster.ranks import Ranks as Used
        from nbprop.cluster.sums import TreeSum

        if count not in self.before:
            used = Used("benchmark", self.comm, self.comm.Get_size(), False)
            self.before[count] = (
                TreeSum(used, count, np.float32),
                np.zeros(count, np.float32),
                np.zeros(count, np.float32),
            )
        ours, sent, received = self.before[count]
        spent = np.zeros(2)
        for _ in range(steps):
            for k, run in enumerate(
                (lambda: ours(lambda piece, out: None), lambda: self.comm.Allreduce(sent, received))
            ):
                self.comm.Barrier()
                begin = time.perf_counter()
                run()
                spent[k] += time.perf_counter() - begin
        return dict(zip(("sum", "allreduce"), (spent / steps).tolist(), strict=True))

    def parts(self, widths, steps):
        """Seconds of the parts of a step in one process: gradients, by their samples, and the update."""
        import nbprop

        net = _network(nbprop, widths)
        plan, (x, labels) = nbprop.plan(net, "softmax_cross_entropy", 256, np.float32), data(widths, 256)
        params = nbprop.init(net, seed=0, dtype=np.float32)
        grads, work = np.zeros_like(params), nbprop.workspace(plan)
        state, found = nbprop.optimizer_state("adam", params.size, np.float32), {"n_params": params.size}

        def seconds(call):
            call(0)
            times = []
            for number in range(steps):
                begin = time.perf_counter()
                call(number)
                times.append(time.perf_counter() - begin)
            return float(np.median(times))

        for n in (1, 2, 4, 8, 16, 32, 64, 128, 256):
            found[f"gradient of {n}"] = seconds(
                lambda _, n=n: nbprop.value_and_grad(plan, params, x[:n], labels[:n], grads, work)
            )
        found["update"] = seconds(lambda number: nbprop.adam(params, grads, state, number))
        return found


def _network(nbprop, widths):
    hidden = [nbprop.dense(width, activation="relu") for width in widths[1:-1]]
    return nbprop.network((widths[0],), *hidden, nbprop.dense(widths[-1]))


class Gloo:
    """PyTorch's DistributedDataParallel over gloo."""

    def __init__(self, rank, size, rendezvous):
        import torch

        self.torch, self.rank, self.size = torch, int(rank), int(size)
        torch.set_num_threads(1)
        init = f"file://{rendezvous}"
        torch.distributed.init_process_group("gloo", init_method=init, rank=self.rank, world_size=self.size)

    def step(self, widths, batch, steps):
        """Seconds of a step: this process's share of the batch, and Adam."""
        torch = self.torch
        torch.manual_seed(0)
        layers = []
        for inputs, outputs in itertools.pairwise(widths[:-1]):
            layers += [torch.nn.Linear(inputs, outputs), torch.nn.ReLU()]
        model = torch.nn.Sequential(*layers, torch.nn.Linear(*widths[-2:]))
        model = torch.nn.parallel.DistributedDataParallel(model)
        optimizer, loss = torch.optim.Adam(model.parameters()), torch.nn.CrossEntropyLoss()
        x, labels = (torch.from_numpy(array) for array in data(widths, batch))
        own = batch // self.size
        begin = 0.0
        for number in range(steps + 2):
            if number == 2:
                begin = time.perf_counter()
            first = number * batch % len(x) + self.rank * own
            optimizer.zero_grad(set_to_none=True)
            loss(model(x[first : first + own]), labels[first : first + own]).backward()
            optimizer.step()
        return {"seconds": (time.perf_counter() - begin) / steps}


def main():
    kind, path, *others = sys.argv[1:]
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(path)
    group = {"ranks": Ranks, "gloo": Gloo}[kind](*others)
    stream = connection.makefile("rw")
    for line in stream:
        request = json.loads(line)
        answer = getattr(group, request.pop("work"))(**request)
        stream.write(json.dumps(answer) + "\n")
        stream.flush()


if __name__ == "__main__":
    main()
