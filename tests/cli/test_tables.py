"""Tables as pandas writes them, trained and predicted from the command line, with no option that one would guess."""

import io
import re
import sys

import numpy as np
import pytest

import nbprop
from nbprop.cli import scores
from nbprop.cli.main import main

pandas = pytest.importorskip("pandas")


@pytest.fixture
def run(capsys):
    """run(arguments...) -> (exit code, standard output, standard error), in this process."""

    def run(*arguments):
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as ended:
            code = ended.code
        return (code, *capsys.readouterr())

    return run


def penguins(n=240):
    """A table with numbers, text, and a target of text that follows from both."""
    rng = np.random.default_rng(0)
    island, kind = rng.integers(0, 3, n), np.arange(n) % 3
    return pandas.DataFrame(
        {
            "bill": 40.0 + 4 * kind + rng.standard_normal(n),
            "mass": 3500.0 + 700 * (island == kind) + 100 * rng.standard_normal(n),
            "island": np.array(["Biscoe", "Dream", "Torgersen, west"])[island],
            "sex": np.array(["f", "m"])[rng.integers(0, 2, n)],
            "species": np.array(["Adelie", "Chinstrap", 'Gentoo "big"'])[kind],
        }
    )


def prices(n=240):
    """A target of numbers that depends on text and numbers."""
    rng = np.random.default_rng(1)
    area, town = rng.uniform(30, 150, n), rng.integers(0, 3, n)
    price = 1000.5 * area * np.array([1.0, 2.0, 3.0])[town] + 20_000
    return pandas.DataFrame({"area": area, "town": np.array(["Aa", "Bonn", "Köln"])[town], "price": price})


def with_gaps(table, columns):
    table, rng = table.copy(), np.random.default_rng(2)
    for column in columns:
        table.loc[rng.random(len(table)) < 0.08, column] = None
    return table


# name: (table, options of to_csv, column of the target, whether classes)
FILES = {
    "index": (penguins(), {}, "species", True),
    "labels": (penguins().drop(columns=["island", "sex"]), {"index": False}, "species", True),
    "missing": (with_gaps(penguins(), ["bill", "mass", "island", "species"]), {"index": False}, "species", True),
    "categories": (prices(), {"index": False}, "price", False),
    "quotes": (penguins(), {"quoting": 1}, "species", True),
    "decimal commas": (prices(), {"sep": ";", "decimal": ",", "index": False}, "price", False),
}


@pytest.mark.parametrize("name", list(FILES))
def test_what_pandas_writes_trains_and_predicts_without_an_option(run, tmp_path, name):
    """Rows shuffled, columns in another order, target left out: the same predictions, and good ones."""
    table, options, target, of_classes = FILES[name]
    data, model, new = tmp_path / "d.csv", tmp_path / "m.safetensors", tmp_path / "new.csv"
    table.to_csv(data, **options)
    code, out, err = run("train", data, "-o", model, "--epochs", 60)
    assert code == 0, err
    found = re.search(rf"held-out {'accuracy' if of_classes else 'r2'}: (\S+)", out)[1]
    assert float(found) > (85 if of_classes else 0.9), out
    again = table.sample(frac=1, random_state=0)
    again[again.columns[::-1]].drop(columns=target).to_csv(new, **options)
    kind = ["--classes"] if of_classes else []
    code, predicted, err = run("predict", model, new, *kind, *(["--index", "drop"] if options == {} else []))
    if code == 2:  # an index that does not count, as rows are shuffled: the error names the option
        code, predicted, err = run("predict", model, new, *kind, *re.search(r"(--index) (drop)", err).groups())
    assert code == 0, err
    rows = pandas.read_csv(io.StringIO(predicted), header=None)[0]
    known = again[target].notna().to_numpy()
    if of_classes:
        assert np.mean(rows.to_numpy()[known] == again[target].to_numpy()[known]) > 0.9
    else:
        assert np.corrcoef(rows, again[target])[0, 1] > 0.95


def test_what_was_taken_for_what_is_printed(run, tmp_path):
    table = with_gaps(penguins(), ["bill", "island", "species"])
    table.insert(0, "name", [f"bird {k}" for k in range(len(table))])
    table.to_csv(tmp_path / "d.csv")
    _, out, _ = run("train", tmp_path / "d.csv", "-o", tmp_path / "m.safetensors", "--epochs", 1)
    for line in (
        "features: 4: bill, mass, island, sex",
        "categories: column 5 'island', 4: (missing), Biscoe, Dream, Torgersen, west",
        "left out: column 2 'name', text with 240 different values in 240 lines",
        "filled in with the mean of the column",
        "left out for a missing value:",
        "network: standardize dense:64:relu dense:64:relu dense:3 (--net takes another)",
        'target: species, 3 classes: Adelie, Chinstrap, Gentoo "big"',
        "held out: is",
    ):
        assert line in out
    _, out, _ = run("summary", tmp_path / "m.safetensors")
    assert "(missing)/Biscoe/Dream/Torgersen, west, f/m" in out


def streets(n=600, count=30):
    """A target that depends on the product of a number and one of each street's own."""
    rng = np.random.default_rng(3)
    street, area = rng.integers(0, count, n), rng.uniform(1, 2, n)
    own = rng.uniform(1, 3, count)
    names = np.array([f"street {k % count:02d}" for k in range(count)])
    return pandas.DataFrame({"area": area, "street": names[street], "floor": street % 2, "rent": area * own[street]})


def test_many_categories_are_embedded(run, tmp_path):
    """Trained, saved, read and predicted; rows of the table are learned without the scaling of ones and zeros."""
    table, model = streets(), tmp_path / "m.safetensors"
    table.to_csv(tmp_path / "d.csv", index=False)
    code, out, err = run("train", tmp_path / "d.csv", "-o", model, "--epochs", 60)
    assert code == 0, err
    assert "embedding: column 2 'street', 30 categories as 15 numbers" in out
    assert float(re.search(r"held-out r2: (\S+)", out)[1]) > 0.9, out
    net, params = nbprop.load(model)
    parts = nbprop.views(net, params)
    assert parts["1.concat.1.1.dense.weight"].shape == (30, 15)
    assert (parts["0.standardize.std"][1:31] == 1).all()
    assert (parts["0.standardize.mean"][1:31] == 0).all()
    assert parts["0.standardize.std"][0] < 0.5
    table[["street", "floor", "area"]].to_csv(tmp_path / "new.csv", index=False)
    code, predicted, err = run("predict", model, tmp_path / "new.csv")
    assert code == 0, err
    rows = np.array(predicted.split(), float)
    assert np.corrcoef(rows, table["rent"])[0, 1] > 0.95


def test_embeddings_as_asked_for(run, tmp_path):
    table, model = streets(80, 3), tmp_path / "m.safetensors"
    table[["street", "rent"]].to_csv(tmp_path / "d.csv", index=False)
    cases = {
        (): "dense(64, activation='relu')",
        ("--embed", "2"): "dense(2, bias=False, init='normal')",
        ("--embed", "2", "--net", "dense:1"): "dense(2, bias=False, init='normal')",
        ("--net", "dense:1"): "dense(1)",
        ("--embed", "0"): "dense(64, activation='relu')",
    }
    for options, wanted in cases.items():
        code, out, err = run("train", tmp_path / "d.csv", "-o", model, "--epochs", 1, *options)
        assert code == 0, err
        net = nbprop.load(model)[0]
        first = next(layer for layer in net.layers if layer.kind != "standardize")
        assert repr(first) == wanted
        assert ("embedding: column 1 'street', 3 categories as 2 numbers" in out) == ("2" in options)
    code, _, err = run("train", tmp_path / "d.csv", "--embed", "-1")
    assert code == 2
    assert "must be at least 0" in err


def test_an_unknown_category_is_named(run, tmp_path):
    prices().to_csv(tmp_path / "d.csv", index=False)
    assert run("train", tmp_path / "d.csv", "-o", tmp_path / "m.safetensors", "--epochs", 1)[0] == 0
    (tmp_path / "new.csv").write_text("town,area\nBonn,50\nRom,60\n,70\n", encoding="utf-8")
    code, _, err = run("predict", tmp_path / "m.safetensors", tmp_path / "new.csv")
    assert code == 2
    assert "line 3, column 1 'town': 'Rom' is none of the categories" in err
    assert "Aa, Bonn, Köln; say --on-unknown zeros" in err
    code, out, err = run("predict", tmp_path / "m.safetensors", tmp_path / "new.csv", "--on-unknown", "zeros")
    assert code == 0, err
    rows = [float(row) for row in out.split()]
    (tmp_path / "new.csv").write_text("town,area\n,60\nBonn,50\n", encoding="utf-8")
    other = [float(row) for row in run("predict", tmp_path / "m.safetensors", tmp_path / "new.csv")[1].split()]
    assert rows[:2] == other[::-1]  # none of them is what a missing category is


def test_missing_numbers_are_what_they_were_in_training(run, tmp_path):
    """The mean of the samples to learn from, which is kept with the network."""
    table = with_gaps(prices(), ["area"])
    table.to_csv(tmp_path / "d.csv", index=False)
    model = tmp_path / "m.safetensors"
    assert run("train", tmp_path / "d.csv", "-o", model, "--epochs", 2, "--held-out", 0, "--dtype", "float64")[0] == 0
    mean = float(table["area"].mean())
    assert np.isclose(nbprop.views(*nbprop.load(model))["0.standardize.mean"][0], mean)
    answers = []
    for text in ("area,town\n,Bonn\n", f"area,town\n{mean!r},Bonn\n"):
        (tmp_path / "new.csv").write_text(text, encoding="utf-8")
        code, out, err = run("predict", model, tmp_path / "new.csv")
        assert code == 0, err
        answers.append(float(out))
    assert np.isclose(*answers, rtol=1e-12)


def test_what_was_filled_in_is_kept(run, tmp_path):
    """A number that replaces missing ones in training replaces them in use; integers for an embedding have none."""
    table, model = with_gaps(prices(), ["area"]), tmp_path / "m.safetensors"
    table.to_csv(tmp_path / "d.csv", index=False)
    assert run("train", tmp_path / "d.csv", "-o", model, "--epochs", 1, "--on-missing", -7)[0] == 0
    answers = []
    for text in ("area,town\n,Bonn\n", "area,town\n-7,Bonn\n"):
        (tmp_path / "new.csv").write_text(text, encoding="utf-8")
        answers.append(run("predict", model, tmp_path / "new.csv")[1])
    assert answers[0] == answers[1] != ""
    (tmp_path / "words.csv").write_text("a,b,y\n" + "1,x,0\n2,y,1\n0,x,1\n" * 9, encoding="utf-8")
    net = "embedding:3:2 flatten dense:2"
    assert run("train", tmp_path / "words.csv", "-o", model, "--epochs", 1, "--net", net)[0] == 0
    code, out, err = run("predict", model, tmp_path / "words.csv")
    assert (code, len(out.splitlines())) == (0, 27), err
    (tmp_path / "words.csv").write_text("a,b\n,x\n", encoding="utf-8")
    assert "line 2, column 1 'a' is missing" in run("predict", model, tmp_path / "words.csv")[2]


def test_parquet_is_read_as_csv(run, tmp_path):
    """The same samples in the same order, so the same network; pandas' categories, booleans and index included."""
    pytest.importorskip("pyarrow")
    table = with_gaps(penguins(), ["bill", "island"])
    table["wet"] = np.arange(len(table)) % 4 == 0
    table["seen"] = pandas.Timestamp("2020-01-01")
    columns = [*table.columns.drop("species"), "species"]
    table = table[columns]
    index = np.random.default_rng(3).permutation(len(table))
    table.astype({"island": "category"}).set_index(index).to_parquet(tmp_path / "d.parquet")
    table.drop(columns="seen").astype({"wet": int}).to_csv(tmp_path / "d.csv", index=False)
    models = []
    for name in ("d.parquet", "d.csv"):
        code, out, err = run("train", tmp_path / name, "-o", tmp_path / f"{name}.safetensors", "--epochs", 3)
        assert code == 0, err
        models.append(nbprop.load(tmp_path / f"{name}.safetensors"))
        if name == "d.parquet":
            assert "column 6 'seen', which holds timestamp" in out
            assert "'__index_level_0__', the index" in out
    assert models[0][0] == models[1][0]
    assert models[0][1].tobytes() == models[1][1].tobytes()
    answers = [
        run("predict", tmp_path / "d.csv.safetensors", tmp_path / name, "--probabilities")[1]
        for name in ("d.parquet", "d.csv")
    ]
    assert answers[0] == answers[1]
    assert np.allclose(np.loadtxt(answers[0].splitlines(), delimiter=",").sum(1), 1, atol=1e-5)


def test_parquet_without_pyarrow(run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "d.parquet").write_bytes(b"PAR1")
    code, _, err = run("train", tmp_path / "d.parquet")
    assert code == 2
    assert "reading parquet needs pyarrow" in err


def test_damaged_parquet_is_refused(run, tmp_path):
    pytest.importorskip("pyarrow")
    penguins().to_parquet(tmp_path / "whole.parquet")
    raw = (tmp_path / "whole.parquet").read_bytes()
    for name, content in {"cut": raw[: len(raw) // 2], "junk": b"PAR1" + b"\0" * 40 + b"PAR1"}.items():
        (tmp_path / f"{name}.parquet").write_bytes(content)
        code, _, err = run("train", tmp_path / f"{name}.parquet")
        assert code == 2
        assert f"{name}.parquet: not a readable parquet file" in err
        assert err.count("\n") == 1


def test_whole_numbers_are_classes_if_few(run, tmp_path):
    table = penguins()
    table["species"] = table["species"].rank(method="dense").astype(int) + 2
    table.to_csv(tmp_path / "d.csv", index=False)
    options = ("train", tmp_path / "d.csv", "-o", tmp_path / "m.safetensors", "--epochs", 1)
    assert "target: species, 3 classes: 3, 4, 5" in run(*options)[1]
    out = run("predict", tmp_path / "m.safetensors", tmp_path / "d.csv", "--classes")[1]
    assert set(out.split()) <= {"3", "4", "5"}
    assert "target: species, numbers from 3 to 5" in run(*options, "--task", "numbers")[1]
    code, _, err = run(*options, "--metric", "r2")
    assert code == 2
    assert "--metric r2 is not for classes, which the network predicts here; choose of accuracy" in err


def test_cross_validation_metrics_and_pictures(run, tmp_path):
    """Means over the folds, of samples that are not held out; a picture of either kind."""
    for name, (metric, other) in {"index": ("f1", "balanced_accuracy"), "categories": ("rmse", "mae")}.items():
        table, options, _, _ = FILES[name]
        table.to_csv(tmp_path / "d.csv", **options)
        more = ("--cv", 3, "--metric", metric, "--metric", other, "--picture", tmp_path / f"{name}.png")
        code, out, err = run("train", tmp_path / "d.csv", "-o", tmp_path / "m.safetensors", "--epochs", 30, *more)
        assert code == 0, err
        number = r"\d\S* \(\+- \d\S*\)"
        assert re.search(rf"^cross-validation, 3 folds: loss {number}, {metric} {number}, {other} {number}$", out, re.M)
        assert re.search(rf"^held-out loss: \S+, held-out {metric}: \S+, held-out {other}: \S+$", out, re.M)
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_scores_of_losses_that_predict_something_else(run, tmp_path):
    """Numbers are compared with what estimates them: not with a quantile, a logarithm of a rate, a variance."""
    rng = np.random.default_rng(0)
    a = rng.uniform(0, 2, 200)
    table = pandas.DataFrame({"a": a, "y": 3 * a + 0.1 * rng.standard_normal(200)})
    table.to_csv(tmp_path / "d.csv", index=False)
    options = ("train", tmp_path / "d.csv", "-o", tmp_path / "m.safetensors", "--epochs", 40, "--optimizer", "L-BFGS-B")
    out = run(*options, "--loss", "gaussian_nll", "--net", "dense:2")[1]
    assert float(re.search(r"held-out r2: (\S+)", out)[1]) > 0.9
    out = run(*options, "--loss", "quantile", "--net", "dense:2")[1]
    assert "r2" not in out
    assert "held-out loss" in out
    np.savez(tmp_path / "d.npz", x=a[:, None], y=np.stack([a > 1, a <= 1], 1) * 0.8 + 0.1)
    options = ("train", tmp_path / "d.npz", "-o", tmp_path / "m.safetensors", "--epochs", 40, "--optimizer", "L-BFGS-B")
    out = run(*options, "--loss", "soft_cross_entropy", "--net", "dense:2")[1]
    assert float(re.search(r"held-out accuracy: (\S+) %", out)[1]) > 90


def test_metrics_are_those_of_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    truth, guess = rng.integers(0, 4, 300), rng.integers(0, 4, 300)
    y, z = rng.standard_normal((2, 50, 3))
    theirs = {
        "accuracy": metrics.accuracy_score(truth, guess),
        "balanced_accuracy": metrics.balanced_accuracy_score(truth, guess),
        "f1": metrics.f1_score(truth, guess, average="macro"),
        "r2": metrics.r2_score(y, z),
        "mae": metrics.mean_absolute_error(y, z),
        "rmse": np.sqrt(metrics.mean_squared_error(y, z)),
    }
    for name, (_, of_classes) in scores.METRICS.items():
        assert np.isclose(scores.score(name, *((truth, guess) if of_classes else (y, z))), theirs[name], rtol=1e-12)
    assert (scores.confusion(truth, guess, list("abcd")) == metrics.confusion_matrix(truth, guess)).all()
