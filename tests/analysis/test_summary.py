"""summary: its numbers against the network, the plan, and multiply-adds counted by hand."""

import numpy as np
import pytest

import nbprop

NET = nbprop.network((64,), nbprop.dense(32, activation="tanh"), nbprop.dense(10))
BRANCHES = nbprop.network(
    (5, 4),
    nbprop.concat([nbprop.dense(3), nbprop.dense(2)], [], nbprop.dense(1)),
    nbprop.residual(nbprop.dense(8, activation="tanh"), nbprop.dense(7)),
    nbprop.flatten(),
    nbprop.dense(6, activation="softmax"),
    nbprop.dense(6),
    nbprop.dense(6, share="4.dense"),
)


def numbers(text):
    """{a row's first word: its numbers at the end} of the table of layers."""
    lines = text.split("\n\n")[-1 if "workspace" not in text else 1].splitlines()[1:]
    return {line.split()[0]: [int(word.replace(",", "")) for word in line.split()[-4:]] for line in lines}


def test_a_small_network():
    assert numbers(nbprop.summary(NET)) == {
        "0.dense": [2080, 2 * 64 * 32, 2 * 2 * 64 * 32, 8 * 2080],
        "1.dense": [330, 2 * 32 * 10, 3 * 2 * 32 * 10, 8 * 330],
        "total": [2410, 4736, 2 * 4096 + 3 * 640, 8 * 2410],
    }


def test_layers_within_layers():
    """A gradient costs two more products a layer, but one where its input depends on no parameter."""
    found = numbers(nbprop.summary(BRANCHES))
    products = {  # (rows * inputs * outputs, products: forward, weights' gradient, input's gradient)
        "0.concat.0.0.dense": (5 * 4 * 3, 2),
        "0.concat.0.1.dense": (5 * 3 * 2, 3),
        "0.concat.2.0.dense": (5 * 4 * 1, 2),
        "1.residual.0.dense": (5 * 7 * 8, 3),
        "1.residual.1.dense": (5 * 8 * 7, 3),
        "3.dense": (35 * 6, 3),
        "4.dense": (36, 3),
        "5.dense": (36, 3),
    }
    for name, (size, count) in products.items():
        assert found[name][1:3] == [2 * size, 2 * size * count], name
    assert found["5.dense"][0] == 0
    assert found["total"][0] == BRANCHES.n_params
    assert found["total"][1] == sum(2 * size for size, _ in products.values())


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_a_plan_shows_its_program_and_its_memory(dtype):
    plan = nbprop.plan(NET, loss="softmax_cross_entropy", batch=16, dtype=dtype, threads=2)
    head, layers, program, memory = nbprop.summary(plan).split("\n\n")
    size = np.dtype(dtype).itemsize
    assert head == f"loss softmax_cross_entropy, batch 16, {np.dtype(dtype).name}, 2 threads"
    assert numbers(nbprop.summary(plan))["total"][-1] == size * NET.n_params
    assert layers.splitlines()[1].split()[:3] == ["0.dense", "dense(32,", "activation='tanh')"]
    rows = program.splitlines()
    assert rows[0].split() == ["value_and_grad", "layer", "kernel", "arrays", "bytes"]
    assert [row.split()[0] for row in rows[1:]] == [str(i) for i in range(len(rows) - 1)]
    first = rows[1].split()
    assert first[1:3] == ["0.dense", "dense_forward"]
    assert "x=x[0:1024]" in first
    assert "w=params[0:2048]" in first
    assert first[-1].replace(",", "") == str(size * (16 * 32 + 16 * 64 + 2080))
    assert "dw=grads[0:2048]" in program
    work, bound = plan.work_size * size, plan.liveness_bound * size
    assert memory == f"workspace {work:,} bytes; the most that lives at once is {bound:,} bytes"


def test_a_plan_without_a_loss_shows_forward_and_backward():
    text = nbprop.summary(nbprop.plan(NET, batch=16))
    assert text.startswith("loss none, batch 16, float64, 1 thread\n")
    _, _, forward, backward, _ = text.split("\n\n")
    assert forward.startswith("forward ")
    assert backward.startswith("backward ")
    assert backward.splitlines()[-1].split()[3] == "y=dx[0:1024]"


def test_columns_line_up():
    lines = nbprop.summary(BRANCHES).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert not any(line != line.rstrip() for line in lines)


def test_anything_else_is_refused():
    with pytest.raises(TypeError, match=r"summary: net_or_plan must be what .* returns, got list"):
        nbprop.summary([NET])


def test_layer_state_has_a_table_of_its_own():
    net = nbprop.network((3,), nbprop.batchnorm(), nbprop.dropout(0.1), nbprop.dense(1200), nbprop.batchnorm())
    wanted = [
        "layer state                   elements",
        "0.batchnorm.running_mean             3",
        "0.batchnorm.running_variance         3",
        "3.batchnorm.running_mean         1,200",
        "3.batchnorm.running_variance     1,200",
    ]
    assert nbprop.summary(net).split("\n\n")[1].splitlines() == wanted
    assert nbprop.summary(nbprop.plan(net, batch=2)).split("\n\n")[2].splitlines() == wanted
