"""Each notebook of examples/notebooks runs from the first cell to the last, in a kernel of its own."""

import re
import warnings

import pytest

from support import ROOT

jupytext = pytest.importorskip("jupytext")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

NOTEBOOKS = sorted((ROOT / "examples" / "notebooks").glob("*.py"))


def test_there_are_notebooks():
    assert len(NOTEBOOKS) == 5


@pytest.mark.more
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook(path, tmp_path, monkeypatch):
    """Its own asserts hold, each cell with a picture shows one, and nothing is written to its error stream."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = jupytext.read(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Jupyter's own packages: ports, event loops
        nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    drawing = [cell for cell in notebook.cells if re.search(r"\bnbprop\.plot\.\w+\(", cell.source)]
    assert drawing
    for cell in drawing:
        assert any("image/png" in output.get("data", {}) for output in cell.outputs), cell.source
    assert [output["text"] for output in outputs if output.get("name") == "stderr"] == []
    assert notebook.cells[0].cell_type == "markdown"
    assert notebook.cells[0].source.startswith("# ")
