"""A process of a group of ../../cluster.py: it answers requests on a socket, a line of JSON each, until that closes.

cluster_worker.py ranks PATH                       under mpiexec
cluster_worker.py gloo PATH RANK SIZE RENDEZVOUS   of torch.distributed
"""

import concurrent.futures
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

    def sum(self, count, steps, least=False):
        """Seconds of nbprop's sum of so many float32, and of the library's Allreduce, in turns; least: the least."""
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
        calls = {"sum": lambda: ours(lambda piece, out: None), "allreduce": lambda: self.comm.Allreduce(sent, received)}
        return self._in_turns(calls, steps, np.min if least else np.median)

    def overlap(self, widths, batch, steps):
        """Seconds of a gradient and of half of it going to the other of two ranks: one after the other, or at a time.

        What a reduction by layers, during the backward pass, could win at most: here all of the message may travel from
        the beginning on, moved by MPI as it likes, or by a thread that waits for it.
        """
        import nbprop

        own = batch // 2
        net = _network(nbprop, widths)
        plan, (x, labels) = nbprop.plan(net, "softmax_cross_entropy", own, np.float32), data(widths, own)
        params = nbprop.init(net, seed=0, dtype=np.float32)
        grads, work, message = np.zeros_like(params), nbprop.workspace(plan), np.zeros(params.size // 2, np.float32)
        mine, received = np.zeros_like(message), np.zeros_like(message)
        other = 1 - self.comm.Get_rank()

        def compute():
            nbprop.value_and_grad(plan, params, x[:own], labels[:own], grads, work)

        def begin():
            return self.comm.Irecv(received, other), self.comm.Isend(message, other)

        def end(requests):
            for request in requests:
                request.Wait()
            np.add(mine, received, out=mine)

        def after():
            compute()
            end(begin())

        def during():
            requests = begin()
            compute()
            end(requests)

        with concurrent.futures.ThreadPoolExecutor(1) as pool:

            def by_thread():
                waiting = pool.submit(lambda: end(begin()))
                compute()
                waiting.result()

            return self._in_turns({"message after": after, "message during": during, "by a thread": by_thread}, steps)

    def _in_turns(self, calls, steps, of=np.median):
        """{name: median seconds} of calls that all ranks begin together."""
        times = {name: [] for name in calls}
        for _ in range(steps):
            for name, call in calls.items():
                self.comm.Barrier()
                begin = time.perf_counter()
                call()
                times[name].append(time.perf_counter() - begin)
        return {name: float(of(found)) for name, found in times.items()}

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
            return min(times)  # what disturbs the machine only adds to it

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
