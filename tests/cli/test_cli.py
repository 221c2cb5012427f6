"""The nbprop command: what it does, what it says when something is wrong, and its exit codes."""

import os
import re
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import numba
import numpy as np
import pytest

import nbprop
from nbprop.cli import warming
from nbprop.cli.main import main
from nbprop.cli.networks import read_network
from nbprop.compiler.report import reporting

COMMANDS = ("demo", "train", "predict", "summary", "export", "check", "cache")


@pytest.fixture
def run(capsys):
    """run(arguments...) -> (exit code, standard output, standard error), in this process."""

    def run(*arguments):
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as ended:  # argparse's way to end
            code = ended.code
        return (code, *capsys.readouterr())

    return run


@pytest.fixture
def flowers(tmp_path):
    """A .csv of three separable classes of three features, with a line of names."""
    rng = np.random.default_rng(0)
    y = np.arange(90) % 3
    table = np.column_stack([rng.standard_normal((90, 3)) + 3 * np.eye(3)[y], y])
    path = tmp_path / "flowers.csv"
    np.savetxt(path, table, "%.6g", delimiter=",", header="length,width,height,kind", comments="")
    return path


# -- what it does --------------------------------------------------------------------------------------------


def test_demo(tmp_path):
    """The whole demo, as a user runs it: the four steps, the picture, the accuracy that is promised."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "nbprop", "demo"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    (accuracy,) = re.findall(r"^held-out accuracy: (\d+\.\d) %$", done.stdout, re.M)
    assert float(accuracy) >= 96.5
    places = [
        done.stdout.index(words) for words in ("1 forward", "2 error", "3 backward", "4 update", "L-BFGS-B", "time:")
    ]
    assert places == sorted(places)
    before, after = re.search(r"loss on the same images: (\S+) -> (\S+)", done.stdout).groups()
    assert float(after) < float(before)
    assert (tmp_path / "nbprop-demo.png").read_bytes().startswith(b"\x89PNG")
    shown = done.stdout.partition("most wrong:\n")[2].splitlines()[:9]
    assert all(set(line) <= set(" .:-=+*#%@") for line in shown[:8])  # eight rows of pixels
    assert re.fullmatch(r"( +\d \([01]\.\d\d\)){5}, a \d", shown[8])


@pytest.mark.more
def test_demo_without_matplotlib(run, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for name in [name for name in sys.modules if name.startswith("nbprop.plot")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr(nbprop, "plot", raising=False)
    code, out, _ = run("demo", "--seeds", 1, "--picture", tmp_path / "none.png")
    assert code == 0
    assert "held-out accuracy: " in out
    assert "picture" not in out
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("optimizer", ["adam", "L-BFGS-B"])
def test_train_predict_summary(run, flowers, tmp_path, optimizer):
    model, answers = tmp_path / "flowers.safetensors", tmp_path / "answers.csv"
    options = ("--net", "dense:8:relu dense:3", "--optimizer", optimizer, "--lr", 0.02, "--epochs", 30, "-o", model)
    code, out, _ = run("train", flowers, *options)
    assert code == 0
    assert "72 samples to learn from, 18 held out; 59 parameters, loss softmax_cross_entropy" in out
    assert float(re.search(r"held-out accuracy: (\S+) %", out)[1]) > 80

    code, _, _ = run("predict", model, flowers, "--targets", 1, "--classes", "-o", answers)
    assert code == 0
    assert np.mean(np.loadtxt(answers) == np.arange(90) % 3) > 0.9
    code, out, _ = run("predict", model, flowers, "--targets", 1)
    assert code == 0
    assert np.loadtxt(out.splitlines(), delimiter=",").shape == (90, 3)
    code, _, _ = run("predict", model, flowers, "--targets", 1, "-o", tmp_path / "y.npy")
    assert np.load(tmp_path / "y.npy").dtype == np.float32

    code, out, _ = run("summary", model)
    assert code == 0
    assert out.startswith(nbprop.summary(nbprop.load(model)[0]))
    assert "loss: softmax_cross_entropy\nfeatures: length, width, height\ntarget: kind\n" in out


def test_train_numbers_from_npz(run, tmp_path):
    x = np.linspace(-1, 1, 60).reshape(20, 3)
    np.savez(tmp_path / "data.npz", x=x, y=x.sum(1) + 0.5)
    output = tmp_path / "model.safetensors"
    code, out, _ = run("train", tmp_path / "data.npz", "--net", "dense:1", "--optimizer", "L-BFGS-B", "-o", output)
    assert code == 0
    assert "loss mse" in out
    assert float(re.search(r"held-out loss: ([^\s,]+)", out)[1]) < 1e-4
    assert float(re.search(r"held-out r2: (\S+)", out)[1]) > 0.99


def test_scaling_in_the_network_is_set_from_the_samples_to_learn_from(run, tmp_path):
    """Data far from 0, in units of their own, go in and come out as they are."""
    x = np.random.default_rng(0).normal([1e4, -3e-3], [5.0, 1e-5], (80, 2))
    np.savez(tmp_path / "data.npz", x=x, y=1e3 * x[:, 0] + 2)
    model, layers = tmp_path / "model.safetensors", "standardize dense:1 rescale"
    options = ("--optimizer", "L-BFGS-B", "--dtype", "float64", "-o", model)
    code, _, error = run("train", tmp_path / "data.npz", "--net", layers, *options)
    assert code == 0, error
    net, params = nbprop.load(model)
    kept = np.random.default_rng(0).permutation(80)[round(0.2 * 80) :]
    assert np.allclose(nbprop.views(net, params)["0.standardize.mean"], x[kept].mean(0), rtol=1e-12)
    code, predicted, _ = run("predict", model, tmp_path / "data.npz")
    assert np.allclose(np.array(predicted.split(), float), 1e3 * x[:, 0] + 2, rtol=1e-6)


def test_train_and_predict_with_statistics_and_dropout(run, flowers, tmp_path):
    """predict repeats what train reported: the network as in use, with its running statistics."""
    model, data = tmp_path / "model.safetensors", np.loadtxt(flowers, delimiter=",", skiprows=1)
    layers = "dense:16 batchnorm:0.2 relu dropout:0.1 dense:3"
    more = ("--epochs", "20", "--lr", "0.02", "--batch", "16", "--held-out", "0")
    code, out, error = run("train", flowers, "--net", layers, *more, "-o", model)
    assert code == 0, error
    code, predicted, _ = run("predict", model, flowers, "--targets", "1", "--classes")
    assert code == 0
    accuracy = np.mean(np.array(predicted.split(), int) == data[:, -1])
    assert float(re.search(r"training accuracy: (\S+) %", out)[1]) == round(100 * accuracy, 1) > 70
    assert "1.batchnorm.running_mean" in run("summary", model)[1]
    code, _, error = run("train", flowers, "--net", layers, "--optimizer", "BFGS", "-o", model)
    assert code == 2
    assert "layer 1.batchnorm differs between training and use" in error


def test_export(run, flowers, tmp_path):
    """The loss and the running statistics are the model's; errors are told in one line."""
    model, stem = tmp_path / "model.safetensors", tmp_path / "flowers"
    assert run("train", flowers, "--net", "dense:16 batchnorm relu dense:3", "--epochs", 2, "-o", model)[0] == 0
    code, out, _ = run("export", model, "-o", stem, "--batch", 4, "--functions", "forward,value_and_grad")
    assert (code, out) == (0, f"wrote {stem}.c and {stem}.h\n")
    header = stem.with_suffix(".h").read_text()
    assert "float flowers_value_and_grad(const float *params, int n, const float *x, const int *target" in header
    assert "flowers_vjp" not in header
    assert "static const float state[]" in stem.with_suffix(".c").read_text()
    code, _, error = run("export", model, "-o", tmp_path / "2nd")
    assert (code, error.count("\n")) == (2, 1)
    assert "must end in a C identifier" in error


def test_check_tells_every_activation_and_loss(run):
    code, out, _ = run("check")
    assert code == 0
    names = {line.split()[0] for line in out.splitlines()}
    assert {*nbprop.layers.ACTIVATIONS, "mse", "huber"} <= names


def test_cache_shows_and_clears_only_what_is_nbprops(run, monkeypatch, tmp_path):
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    ours, other = tmp_path / "nbprop" / "ab" / "f-ab.nbc", tmp_path / "nbprop" / "ab" / "notes.txt"
    ours.parent.mkdir(parents=True)
    ours.write_bytes(bytes(1000))
    other.write_text("kept")
    code, out, _ = run("cache")
    assert (code, out.strip()) == (0, f"{tmp_path / 'nbprop'}: 1 files, 0.0 MB")
    code, out, _ = run("cache", "--clear")
    assert code == 0
    assert "1 files deleted" in out
    assert not ours.exists()
    assert other.exists()
    assert run("cache")[1].startswith(f"{tmp_path / 'nbprop'}: 0 files")


def test_cache_compiles_ahead_of_time(run, monkeypatch, tmp_path):
    """What is asked for reaches `warm` and `pack`; tests/compiler/test_prebuilt.py lets them compile."""
    asked = []
    monkeypatch.setattr(warming, "warm", lambda **given: asked.append(given) or 7)
    monkeypatch.setattr(warming, "pack", lambda folder, target, **given: f"{folder}/{target}.zip")
    assert run("cache", "--warm")[:2] == (0, "7 functions are compiled\n")
    assert run("cache", "--native", "--workers", "3")[0] == 0
    assert [(given["native"], given["workers"]) for given in asked] == [(False, None), (True, 3)]
    assert run("cache", "--pack", tmp_path)[1].split() == [f"{tmp_path}/{name}.zip" for name in warming.targets()]
    code, _, err = run("cache", "--warm", "--workers", "0")
    assert (code, "--workers must be at least 1, got 0" in err) == (2, True)


def test_compiling_is_told_once():
    """The name of what is compiled, and nothing when nothing is."""

    @numba.njit
    def seldom_seen(x):
        return x + 1

    told = []
    with reporting(told.append) as reporter:
        seldom_seen(1)
    assert " seldom_seen" in told
    assert reporter.functions == 1
    assert reporter.seconds > 0
    told.clear()
    with reporting(told.append):
        seldom_seen(1)
    assert told == []


def test_read_network():
    expected = nbprop.network((4,), nbprop.dense(8, activation="tanh"), nbprop.activation("relu"), nbprop.dense(2))
    assert read_network("dense:8:tanh relu dense:2", (4,)) == expected
    assert read_network("flatten, dense:2", (2, 2)).output_shape == (2,)


# -- what the library knows, the command line uses -----------------------------------------------------------


@pytest.fixture
def trained(run, tmp_path):
    """trained(text of a .csv, options...) -> (exit code, standard output, standard error, path of the model)."""

    def trained(text, *options):
        (tmp_path / "d.csv").write_text(text)
        model = tmp_path / "m.safetensors"
        return *run("train", tmp_path / "d.csv", "--held-out", "0", "-o", model, *options), model

    return trained


def two_classes(labels):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((300, 2))
    return x, [labels[int(one > 0)] for one in x.sum(1)]


def as_csv(names, *columns):
    rows = zip(*(np.asarray(column).tolist() for column in columns), strict=True)
    return "\n".join(",".join(map(str, row)) for row in [names, *rows]) + "\n"


@pytest.mark.parametrize("labels", [(0, 1), ("well", "ill")])
@pytest.mark.parametrize("outputs", [1, 2])
def test_classes_are_those_of_the_loss(run, trained, labels, outputs):
    """By the sign of one logit, or the largest of several; as the target wrote them."""
    x, y = two_classes(labels)
    loss = ("--loss", "binary_cross_entropy") if outputs == 1 else ()
    options = ("--net", f"dense:8:tanh dense:{outputs}", "--epochs", 60, "--lr", 0.02, *loss)
    code, out, err, model = trained(as_csv(["a", "b", "kind"], *x.T, y), *options)
    assert code == 0, err
    told = float(re.search(r"training accuracy: (\S+) %", out)[1])
    code, predicted, err = run("predict", model, model.with_name("d.csv"), "--classes")
    assert code == 0
    assert "left out: column 3 'kind', which the network was not trained with" in err
    right = np.mean([answer == str(wanted) for answer, wanted in zip(predicted.split(), y, strict=True)])
    assert round(100 * right, 1) == told > 95


def test_classes_are_refused_where_outputs_are_none(run, trained, flowers, tmp_path):
    code, _, _, model = trained(as_csv(["a", "b"], [5, 6, 7, 9], [0.5, 0.6, 0.7, 0.9]), "--net", "dense:1")
    assert code == 0
    code, out, err = run("predict", model, tmp_path / "d.csv", "--classes")
    assert (code, out) == (2, "")
    assert "was trained with mse: its outputs are numbers, not classes" in err
    net = nbprop.network((3,), nbprop.dense(3))
    nbprop.save(model, net, nbprop.init(net, dtype=np.float32))
    code, _, err = run("predict", model, flowers, "--targets", 1, "--classes")
    assert code == 2
    assert "does not name the loss" in err
    code, out, _ = run("predict", model, flowers, "--targets", 1, "--classes", "--loss", "softmax_cross_entropy")
    assert code == 0
    assert set(out.split()) <= {"0", "1", "2"}


@pytest.mark.parametrize(
    ("notes", "told"),
    [
        ({"loss": "softmax_cross_entropy", "labels": ["a", "b"]}, "names 2 classes for outputs of shape \\(3,\\)"),
        ({"labels": "abc"}, "notes of labels are damaged"),
        ({"features": [1, 2, 3]}, "notes of features are damaged"),
        ({"loss": 7}, "note of the loss is damaged"),
        ({"loss": "no"}, "loss: unknown name 'no'"),
        ({"columns": [{"fill": "3"}]}, "notes of columns are damaged"),
        ({"columns": [{"fill": 3.0}], "features": ["a", "b"]}, "1 columns for 2 features"),
    ],
)
def test_notes_that_do_not_fit_are_refused(run, flowers, tmp_path, notes, told):
    net = nbprop.network((3,), nbprop.dense(3))
    nbprop.save(tmp_path / "m.safetensors", net, nbprop.init(net, dtype=np.float32), notes=notes)
    code, out, err = run("predict", tmp_path / "m.safetensors", flowers, "--classes")
    assert (code, out) == (2, "")
    assert re.search(told, err), err


@pytest.mark.parametrize("options", [("--optimizer", "sgd", "--lr", 0.01), ("--optimizer", "BFGS")])
def test_a_training_that_fails_is_exit_code_one_and_writes_nothing(trained, options):
    x = np.random.default_rng(0).uniform(1e3, 9e4, (40, 3))
    scale = 1e25 if "BFGS" in options else 1
    text = as_csv(["a", "b", "c", "price"], *(x * scale).T, x @ [2.0, 5.0, -1.0])
    code, _, err, model = trained(text, "--net", "dense:16:relu dense:1", *options)
    assert code == 1
    assert re.search("^nbprop: (training diverged|the loss at the start is inf).* nothing was written", err, re.M)
    assert not model.exists()


def test_features_are_taken_by_their_names(run, trained, tmp_path):
    x, y = two_classes((0, 1))
    _, _, _, model = trained(as_csv(["a", "b", "kind"], *x.T, y), "--net", "dense:2")
    code, expected, _ = run("predict", model, tmp_path / "d.csv")
    assert code == 0
    (tmp_path / "other.csv").write_text(as_csv(["", "b", "z", "a"], range(300), x[:, 1], y, x[:, 0]))
    code, got, err = run("predict", model, tmp_path / "other.csv")
    assert (code, got) == (0, expected)
    for told in ("features: 2: a, b", "left out: column 1, which", "left out: column 3 'z', which", "rows: 300"):
        assert told in err
    (tmp_path / "other.csv").write_text(as_csv(["a", "c"], *x.T))
    code, _, err = run("predict", model, tmp_path / "other.csv")
    assert code == 2
    assert "was trained with 2: a, b; of these the file lacks, or has more than once, 'b'" in err


def test_a_target_of_noise_is_not_predicted_from_the_index(trained):
    """The rows stand sorted by their class, so that their numbers tell it."""
    noise = np.random.default_rng(0).standard_normal((200, 2))
    text = as_csv(["", "a", "b", "kind"], range(200), *noise.T, [0] * 100 + [1] * 100)
    code, out, _, _ = trained(text, "--net", "dense:16:tanh dense:2", "--held-out", 0.5, "--epochs", 20)
    assert code == 0
    assert "features: 2: a, b\nleft out: column 1, which has no name and counts the rows" in out
    assert float(re.search(r"held-out accuracy: (\S+) %", out)[1]) < 70


@pytest.mark.parametrize("dtype", ["u1", "i2", "u8", "f4", "?"])
def test_class_numbers_of_any_dtype(run, tmp_path, dtype):
    y = np.arange(40) % 2
    np.savez(tmp_path / "d.npz", x=np.stack([y, 1 - y], 1).astype(np.uint8), y=y.astype(dtype))
    options = ("--net", "dense:2", "--epochs", 2, "-o", tmp_path / "m.safetensors")
    code, out, err = run("train", tmp_path / "d.npz", *options)
    assert code == 0, err
    assert "loss softmax_cross_entropy" in out


def test_embeddings_take_integers(run, trained, tmp_path):
    words = np.arange(60) % 5
    text = as_csv(["word", "other", "kind"], words, words[::-1], words % 2)
    options = ("--net", "embedding:5:4 flatten dense:2", "--epochs", 40, "--lr", 0.05)
    code, out, err, model = trained(text, *options)
    assert code == 0, err
    assert "training accuracy: 100.0 %" in out
    code, out, _ = run("predict", model, tmp_path / "d.csv", "--classes")
    assert (code, out.split()) == (0, [str(word % 2) for word in words])
    for wrong, place in {"5": "line 7, column 1 'word' is 5", "0.5": "line 7, column 1 'word' is 0.5"}.items():
        lines = text.splitlines()
        lines[6] = f"{wrong},1,0"
        code, _, err, _ = trained("\n".join(lines), *options)
        assert code == 2
        assert f"{place}; the network's first layer takes integers in 0..4" in err


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_predictions_keep_their_digits(run, trained, tmp_path, dtype):
    x = np.random.default_rng(0).standard_normal((30, 2))
    _, _, _, model = trained(as_csv(["a", "b", "y"], *x.T, x.sum(1)), "--net", "dense:3:tanh dense:1", "--dtype", dtype)
    net, params = nbprop.load(model)
    expected = np.empty((30, 1), dtype)
    plan = nbprop.plan(net, batch=30, dtype=dtype, mode="inference")
    nbprop.forward(plan, params, x.astype(dtype), expected, nbprop.workspace(plan))
    for option in ((), ("-o", tmp_path / "y.csv"), ("-o", tmp_path / "y.npy")):
        code, out, _ = run("predict", model, tmp_path / "d.csv", *option)
        assert code == 0
        text = out or (tmp_path / "y.csv").read_text()
        got = np.load(option[1]) if option and option[1].suffix == ".npy" else np.array(text.split(), dtype)[:, None]
        assert got.tobytes() == expected.tobytes()


@pytest.mark.skipif(os.name != "posix", reason="devices")
def test_outputs_go_into_pipes_and_devices(run, trained, tmp_path):
    x = np.arange(8).reshape(4, 2) + 0.5
    _, expected, _, model = trained(as_csv(["a", "b", "y"], *x.T, x.sum(1)), "--net", "dense:1", "--epochs", 1)
    expected = run("predict", model, tmp_path / "d.csv")[1]
    os.mkfifo(tmp_path / "pipe")
    with subprocess.Popen(["cat", tmp_path / "pipe"], stdout=subprocess.PIPE, text=True) as reader:
        try:
            code, _, err = run("predict", model, tmp_path / "d.csv", "-o", tmp_path / "pipe")
            assert code == 0, err
            assert reader.communicate(timeout=30)[0] == expected
        finally:
            reader.kill()
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    assert run("predict", model, tmp_path / "d.csv", "-o", os.devnull)[0] == 0
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)


# -- what it says --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [(), *((name,) for name in COMMANDS)])
def test_help_has_an_example(run, command):
    code, out, _ = run(*command, "--help")
    assert code == 0
    assert "example" in out
    assert f"nbprop {' '.join(command)}" in out


def test_version(run):
    assert run("--version")[:2] == (0, f"nbprop {nbprop.__version__}\n")


def wrong_data():
    """name -> (content of a .csv or arrays of a .npz, what the error says)."""
    x, y = np.zeros((4, 2)), np.array([0, 1, 0, 1])
    infinite, absent = np.where(np.eye(4, 2) > 0, np.inf, 0), np.where(np.eye(4, 2, -1) > 0, np.nan, 0)
    one_hot = np.eye(2)[y]
    return {
        "word.csv": ("1,2,0\n1,two,1\n", "line 2, column 2: 'two' is not a number"),
        "ragged.csv": ("1,2,0\n1,1\n", "line 2 has 2 fields and line 1 3"),
        "empty.csv": ("", "no samples"),
        "blank.csv": ("\n\n", "no samples"),
        "names.csv": ("a,b,c\n", "line 1 holds names and nothing follows"),
        "narrow.csv": ("5\n2\n", "leave none for x"),
        "nan.csv": ("a,b,c\n\n1,2,0\n1,nan,1\n", r"line 4, column 2 'b' is missing; .* --on-missing drop or a number"),
        "gap.csv": ("a,b,c\n1,2,0\n1,3,\n", "line 3, target 'c' is missing; .* --on-missing drop$"),
        "inf.csv": ("a,b,c\n1,inf,0\n1,2,1\n", "line 2, column 2 'b': inf is not finite"),
        "huge.csv": ("a,b,c\n1,1e300,0\n1,2,1\n", r"line 2, column 2 'b' is 1.*e\+300; float32 cannot represent it"),
        "running.csv": ("0,1,2\n4,5,1\n", "line 1 .0,1,2.: names or a sample.* --header yes or --header no"),
        "mixed.csv": ("2019,price,x\n4,5,1\n4,5,0\n", "'price' is not a number like those below it"),
        "quoted.csv": ('"7","8","9"\n4,5,1\n', "all of it is quoted, and the next line is not"),
        "na.csv": ("NA,NA,NA\n4,5,1\n", "line 1, column 1 is missing"),
        "comment.csv": ("# made by hand\n4,5,1\n", "line 2 has 3 fields and line 1 1; .* --comment '#'"),
        "open.csv": ('a,b,c\n1,"2,0\n1,2,1\n', "quote without its partner"),
        "latin.csv": ("a,b,gr\xf6\xdfe\n1,2,0\n".encode("latin-1"), "line 1: not text in utf-8: .*--encoding"),
        "zero.csv": (b"a,b,c\n1,2,0\n1,\0,1\n", "line 3: not text in utf-8: it holds a zero byte"),
        "semicolons.csv": ("a;b;c\n1,5;2,5;1\n3;x,y;0\n", "'x,y' is not a number; if ',' separates .* --delimiter ','"),
        "thousands.csv": ("a;b\n1,234;5\n5,678;6\n", "is 1,234 a number with a decimal comma.* --decimal comma"),
        "unnamed.csv": (",a,b\n7,1,0\n3,2,1\n9,2,1\n", "column 1 has no name and does not count the rows"),
        "counting.csv": ("0,5,1\n1,2,0\n2,3,0\n", "column 1 has no name and counts the rows"),
        "text.csv": (
            "a,b,c\n1,2,x\n1,2,y\n1,2,z\n",
            "text of 3 classes .x, y, z., and the network's outputs are for 2",
        ),
        "class.csv": ("a,b,c\n1,2,0\n1,2,5\n", r"line 3, target 'c' must hold classes in 0\.\.1, got 5"),
        "broken.npz": ("PK", "not a readable .npz file"),
        "unnamed.npz": ({"a": x, "b": y}, "needs an array named x; it holds a, b"),
        "short.npz": ({"x": x, "y": y[:3]}, "y must bring as many samples as x, got 3 for 4"),
        "words.npz": ({"x": np.array(["a", "b"]), "y": y[:2]}, "x must be an array of numbers"),
        "objects.npz": ({"x": np.array([{}, []], object), "y": y[:2]}, "never unpickled"),
        "inf.npz": ({"x": infinite, "y": y}, r"x\[0, 0\] is inf; remove"),
        "nan.npz": ({"x": absent, "y": y}, r"x\[1, 0\] is missing"),
        "none.npz": ({"x": x[:0], "y": y[:0]}, "no samples"),
        "single.npz": ({"x": np.float64(3), "y": y}, "samples along its first axis"),
        "data.txt": ("1,2", "must be a .npz, .npy, .csv, .tsv or .parquet file"),
        "x.npy": ("junk", "not a readable .npy file"),
        "hot.npz": ({"x": x, "y": one_hot}, r"these are one-hot, np.argmax\(y, axis=-1\)"),
    }


@pytest.mark.parametrize("name", list(wrong_data()))
def test_wrong_data_is_told_in_one_line(run, tmp_path, name):
    content, expected = wrong_data()[name]
    path = tmp_path / name
    if isinstance(content, dict):
        np.savez(path, **content)
    else:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    more = ("--loss", "softmax_cross_entropy") if name == "hot.npz" else ("--on-missing", "refuse")
    code, _, err = run("train", path, "--net", "dense:2", "-o", tmp_path / "model.safetensors", *more)
    assert code == 2
    assert err.startswith(f"nbprop: error: {path}: ")
    assert err.count("\n") == 1
    assert re.search(expected, err.rstrip()), err
    assert not (tmp_path / "model.safetensors").exists()


def test_errors_name_the_thing_and_the_remedy(run, flowers, tmp_path):
    for arguments, expected in {
        ("train", flowers, "--net", "dens:8 dense:3"): "unknown name 'dens'; did you mean 'dense'",
        ("train", flowers, "--net", "dense:8:tahn dense:3"): "unknown name 'tahn'; did you mean 'tanh'",
        ("train", flowers, "--net", "dense dense:3"): "network: 'dense': .*units",
        ("train", flowers, "--net", " "): "network: no layers",
        ("train", flowers, "--net", "dense:3", "--loss", "msee"): "did you mean 'mse'",
        ("train", flowers, "--net", "dense:3", "--optimizer", "adm"): "did you mean 'adam'",
        ("train", flowers, "--net", "dense:2"): r"classes in 0\.\.1, got 2",
        ("train", flowers, "--net", "dense:3", "-o", tmp_path / "no" / "m"): "there is no folder",
        ("train", flowers, "--net", "dense:3", "-o", tmp_path): "it is a folder",
        ("train", flowers, "--net", "dense:3", "-o", flowers): "is the file that is read",
        ("train", flowers, "--net", "dense:3", "--target", "knd"): "no column named 'knd'; did you mean 'kind'",
        ("train", flowers, "--net", "dense:3", "--target", "5"): "no column 5; it has 4",
        ("train", flowers, "--net", "dense:3", "--drop", "kind", "--target", "kind"): "named twice",
        ("train", flowers, "--net", "dense:3", "--index", "drop"): "column 1 'length' has a name",
        ("train", flowers, "--net", "dense:3", "--encoding", "utf-9"): "no encoding is named 'utf-9'",
        ("train", flowers, "--net", "dense:3", "--held-out", "0.999"): "of 90 samples leaves none to learn from",
        ("train", tmp_path / "no.csv", "--net", "dense:3"): "no.csv: No such file",
        ("train", os.devnull, "--net", "dense:3"): "must be a .npz, .npy, .csv, .tsv or .parquet file",
        ("predict", flowers, flowers): "not a safetensors file|truncated, or not safetensors",
        ("predict", tmp_path / "no.safetensors", flowers): "no.safetensors: No such file",
        ("check", "--net", "dense:3", "--loss", "no"): "loss: unknown name 'no'",
    }.items():
        code, _, err = run(*arguments)
        assert code == 2, arguments
        assert re.search(expected, err), (arguments, err)
        assert "Traceback" not in err


def test_wrong_usage_is_two(run, flowers):
    for arguments in (
        (),
        ("no",),
        ("train",),
        ("train", flowers, "--net", "dense:3", "--batch", 0),
        ("train", flowers, "--cv", 1),
        ("train", flowers, "--net", "dense:3", "--held-out", 1),
        ("train", flowers, "--net", "dense:3", "--lr", "nan"),
        ("train", flowers, "--net", "dense:3", "--lr", "-1"),
        ("train", flowers, "--net", "dense:3", "--seed", "-1"),
        ("train", flowers, "--net", "dense:3", "--targets", "0"),
        ("train", flowers, "--net", "dense:3", "--targets", "1", "--target", "kind"),
        ("train", flowers, "--net", "dense:3", "--delimiter", ",,"),
        ("train", flowers, "--net", "dense:3", "--on-missing", "inf"),
        ("predict", "model", flowers, "--on-missing", "drop"),
        ("demo", "--picture", "no/such/folder.png"),
        ("demo", "--picture", "picture.docx"),
        ("predict", "model"),
        ("summary",),
        ("summary", "model", "--net", "dense:3"),
    ):
        code, _, err = run(*arguments)
        assert code == 2, arguments
        assert "usage: nbprop" in err


def test_predict_refuses_another_shape(run, tmp_path):
    net = nbprop.network((2,), nbprop.dense(1))
    nbprop.save(tmp_path / "m.safetensors", net, nbprop.init(net, dtype=np.float32))
    (tmp_path / "x.csv").write_text("4,2,3\n")
    code, _, err = run("predict", tmp_path / "m.safetensors", tmp_path / "x.csv")
    assert code == 2
    assert "samples of shape (3,), the network takes (2,)" in err


# -- how it ends ---------------------------------------------------------------------------------------------


@pytest.mark.skipif(os.name != "posix", reason="signals are sent the POSIX way")
def test_ctrl_c_is_130(flowers, tmp_path):
    command = [sys.executable, "-m", "nbprop", "train", flowers, "--net", "dense:8 dense:3", "--epochs", "100000000"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert any("samples to learn from" in line for line in iter(process.stdout.readline, ""))
            time.sleep(2)
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130
    assert err.endswith("nbprop: stopped\n")
    assert "Traceback" not in err


@pytest.mark.skipif(os.name != "posix", reason="needs a shell")
def test_a_reader_that_leaves_is_no_traceback(flowers, tmp_path):
    net = nbprop.network((4,), nbprop.dense(1))
    nbprop.save(tmp_path / "m.safetensors", net, nbprop.init(net, dtype=np.float32))
    np.savez(tmp_path / "x.npz", x=np.ones((200_000, 4)))
    command = f"{sys.executable} -m nbprop predict m.safetensors x.npz | head -1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.stdout.split()[1:] == ["141"]
    for complaint in ("Traceback", "Exception", "error"):
        assert complaint not in done.stderr


def test_module_and_command_are_the_same():
    module = subprocess.run([sys.executable, "-m", "nbprop", "--version"], capture_output=True, text=True, check=True)
    command = Path(sys.executable).with_name("nbprop")
    if command.exists():
        installed = subprocess.run([command, "--version"], capture_output=True, text=True, check=True)
        assert installed.stdout == module.stdout
    assert module.stdout == f"nbprop {nbprop.__version__}\n"
