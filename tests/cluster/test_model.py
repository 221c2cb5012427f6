"""The model of many processes in docs/cluster.md: from times that follow it exactly, it finds the parts again."""

import cluster_model
import pytest

PARTS = {"fixed": 2e-4, "work": 3e-6, "update": 5e-5}
SOFTWARE, BANDWIDTH = 8e-6, 5e9


def result():
    counts = (1, 2, 4, 8, 16, 32, 64, 128, 256)
    gradients = {f"gradient of {n}": PARTS["fixed"] + PARTS["work"] * n for n in counts}
    rows = [{"widths": [64, 64, 10], "n_params": 4810, "update": PARTS["update"]} | gradients]
    for count in (16, 1024, 1 << 16, 1 << 20):
        rows.append({"ranks": 2, "bytes": 4 * count, "sum": 2 * SOFTWARE + 4 * count / BANDWIDTH})
        rows.append({"ranks": 8, "bytes": 4 * count, "sum": 1.0})  # more ranks than cores: they wait for a core
    rows += [{"ranks": ranks, "widths": [64, 64, 10], "step": 1e-3 / ranks} for ranks in (1, 2)]
    stored = {"machine": {"cores": 2, "processor": "one of ours"}, "scaling": rows, "quick": True}
    return stored | {"figures": {"2 ranks / 2 threads": (1.01, 1.0, 1.02)}}


def test_the_parts_are_found():
    networks, machine = cluster_model.model(result())
    found = networks["64-64-10"]
    assert {name: found[name] for name in PARTS} == pytest.approx(PARTS)
    assert found["bytes"] == 4 * 4810
    assert machine["software"] == pytest.approx(SOFTWARE)
    assert machine["bandwidth"] == pytest.approx(BANDWIDTH)
    assert max(found["error"], machine["error"]) < 1e-9


def test_a_step_is_the_sum_of_its_parts():
    networks, machine = cluster_model.model(result())
    alone = PARTS["fixed"] + 8192 * PARTS["work"] + PARTS["update"]
    assert cluster_model.step(networks["64-64-10"], machine, 1) == pytest.approx(alone)
    parts = PARTS["fixed"] + 2048 * PARTS["work"] + PARTS["update"] / 4
    links = 8 * (SOFTWARE + 1e-6) + 1.5 * 4 * 4810 / 1e9
    found = cluster_model.step(networks["64-64-10"], machine, 4, latency=1e-6, bandwidth=1e9)
    assert found == pytest.approx(parts + links)


def test_the_section_has_every_figure():
    text = cluster_model.section(result())
    assert "| 2 ranks / 2 threads | 1.01 [1, 1.02] | 1.05 |" in text
    assert "| 64-64-10 | 200.0 us + n 3.00 us | 0% | 50 us |" in text
    assert "8.0 us a message and 5.0 GB/s" in text
    assert "not idle" in text
