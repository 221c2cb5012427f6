"""The nbprop command: demo, train, predict, summary, check, cache.

Exit codes: 0 done, 1 an error (told in one line on standard error), 2 wrong usage, 130 stopped with Ctrl-C.
"""

import argparse
import os
import sys
from pathlib import Path

import numpy as np

_EXAMPLES = """examples:
  nbprop demo
  nbprop train iris.csv --net "dense:16:tanh dense:3" -o iris.safetensors
  nbprop train iris.csv --net "dense:64 batchnorm relu dropout:0.2 dense:3"
  nbprop predict iris.safetensors new.csv --classes
  nbprop summary iris.safetensors
  nbprop check --net "dense:8:gelu dense:2" --input 3 --loss mse
  nbprop cache --clear

`nbprop COMMAND --help` tells more."""

_NETWORK_HELP = (
    'the layers, each a word: "dense:64:tanh dense:10"; an activation may stand alone, as in "dense:64 relu dense:10"'
)


def _parser():
    parser = argparse.ArgumentParser(
        prog="nbprop",
        description="Backpropagation as a compiled numerical toolkit.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=_version())
    commands = parser.add_subparsers(title="commands", dest="command", metavar="COMMAND", required=True)
    for add in (_add_demo, _add_train, _add_predict, _add_summary, _add_check, _add_cache):
        add(commands)
    return parser


def _version():
    import nbprop

    return f"nbprop {nbprop.__version__}"


def _command(commands, name, purpose, run, example):
    command = commands.add_parser(
        name,
        help=purpose,
        description=purpose[0].upper() + purpose[1:] + ".",
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.set_defaults(run=run, usage_error=command.error)
    return command


def _counting(text):
    """A positive whole number."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return value


def _fraction(text):
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 0 and below 1, got {text}")
    return value


def _shape(text):
    """64 or 28,28,1."""
    return tuple(map(_counting, text.split(",")))


# argparse quotes these names in its errors.
_counting.__name__, _fraction.__name__, _shape.__name__ = "whole number", "fraction", "shape"


# -- demo ----------------------------------------------------------------------------------------------------


def _add_demo(commands):
    command = _command(
        commands,
        "demo",
        "learn to read real handwritten digits, and show each step of backpropagation",
        _demo,
        "nbprop demo --picture digits.png",
    )
    command.add_argument("--seeds", type=_counting, default=5, help="runs with other splits and weights (default 5)")
    command.add_argument(
        "--picture",
        default="nbprop-demo.png",
        help="where to draw the loss and the error signals when matplotlib is installed (default nbprop-demo.png)",
    )


def _demo(arguments):
    from nbprop.demo import demo

    demo(arguments.seeds, arguments.picture)


# -- train and predict ---------------------------------------------------------------------------------------


def _add_train(commands):
    command = _command(
        commands,
        "train",
        "train a network on a file of data and save it",
        _train,
        'nbprop train digits.npz --net "dense:128:relu dense:10" --epochs 30 --lr 0.005 -o digits.safetensors',
    )
    command.add_argument("data", help=".npz with arrays x and y, or .csv whose last column is the target")
    command.add_argument("--net", required=True, help=_NETWORK_HELP)
    command.add_argument("-o", "--output", default="model.safetensors", help="the file to write (default %(default)s)")
    command.add_argument("--targets", type=_counting, default=1, help="how many last columns of a .csv are the target")
    command.add_argument("--loss", help="by default softmax_cross_entropy for classes and mse for the rest")
    command.add_argument("--optimizer", default="adam", help="adam (default), sgd, ...; or SciPy's L-BFGS-B, BFGS, CG")
    command.add_argument("--lr", type=float, default=1e-3, help="learning rate (default %(default)s)")
    command.add_argument("--batch", type=_counting, default=32, help="samples a step (default %(default)s)")
    command.add_argument("--epochs", type=_counting, default=20, help="or SciPy's iterations (default %(default)s)")
    command.add_argument("--seed", type=int, default=0, help="of weights, split and shuffling (default %(default)s)")
    command.add_argument("--held-out", type=_fraction, default=0.2, help="share kept for testing (default %(default)s)")
    command.add_argument("--dtype", choices=("float32", "float64"), default="float32")
    command.add_argument("--threads", type=_counting, default=1)


def _train(arguments):
    import nbprop
    from nbprop.compiling import telling
    from nbprop.minimizing import METHODS
    from nbprop.reading import read_data, read_network

    x, y = read_data(arguments.data, arguments.targets)
    x = np.ascontiguousarray(x, arguments.dtype)
    net = read_network(arguments.net, x.shape[1:])
    loss = arguments.loss or ("softmax_cross_entropy" if _are_classes(y) and net.output_shape != (1,) else "mse")
    y = _target_for(net, loss, y, x.dtype)
    _check_place(arguments.output)
    order = np.random.default_rng(arguments.seed).permutation(len(x))
    held = round(len(x) * arguments.held_out)
    test, train = order[:held], order[held:]
    params = nbprop.init(net, arguments.seed, x.dtype)
    print(f"{len(train):,} samples to learn from, {held:,} held out; {net.n_params:,} parameters, loss {loss}")
    state = None
    with telling(_tell):
        if arguments.optimizer in METHODS:
            plan = nbprop.plan(net, loss, len(train), x.dtype, arguments.threads)
            result = nbprop.minimize(plan, params, x[train], y[train], arguments.optimizer, maxiter=arguments.epochs)
            print(f"{arguments.optimizer}: {result.nit} iterations, {result.message}")
        else:
            state = _fit(net, params, x[train], y[train], loss, arguments)
        nbprop.save(arguments.output, net, params, state)
        _report(arguments.output, loss, "training", x[train], y[train])
        if held:
            _report(arguments.output, loss, "held-out", x[test], y[test])
    print(f"wrote {arguments.output}")


def _fit(net, params, x, y, loss, arguments):
    """Train; the layer state that goes with the parameters, where the network has some."""
    import nbprop

    batch = min(arguments.batch, len(x))
    state = nbprop.layer_state(nbprop.plan(net, loss, batch, x.dtype))
    nbprop.fit(
        net,
        params,
        x,
        y,
        loss=loss,
        optimizer=arguments.optimizer,
        lr=arguments.lr,
        batch=batch,
        epochs=arguments.epochs,
        seed=arguments.seed,
        threads=arguments.threads,
        state=state,
    )
    return state if state.size else None


def _are_classes(y):
    return y.ndim == 1 and y.dtype.kind == "i"


def _target_for(net, loss, y, dtype):
    """The target as the loss wants it: classes as they are, numbers in the plan's dtype."""
    import nbprop

    plan = nbprop.plan(net, loss, 1, dtype)
    if plan.classes:
        if y.dtype.kind != "i":
            raise ValueError(f"{loss} needs classes 0, 1, ... as target, one whole number a sample")
        return y
    return np.ascontiguousarray(y[:, None] if y.ndim == 1 else y, dtype)


def _check_place(path):
    """Before the training, not after it: the folder of what will be written."""
    folder = Path(path).resolve().parent
    if not folder.is_dir():
        raise FileNotFoundError(f"{path}: there is no folder {folder}")


def _in_use(model, loss, batch, dtype):
    """(plan, params, state) of a saved network as in use; its state is None where it has none."""
    import nbprop

    net, params = nbprop.load(model)
    plan = nbprop.plan(net, loss, batch, dtype, mode="inference")
    return plan, params, nbprop.load_state(model, plan) if plan.state_size else None


def _report(model, loss, name, x, y):
    """The loss of some data, and the accuracy where the target is a class."""
    import nbprop

    plan, params, state = _in_use(model, loss, len(x), x.dtype)
    work = nbprop.workspace(plan)
    line = f"{name} loss: {nbprop.value(plan, params, x, y, work, state=state):.6g}"
    if plan.classes:
        logits = np.empty((len(x), *plan.output_shape), x.dtype)
        nbprop.forward(plan, params, x, logits, work, state)
        line += f", {name} accuracy: {100 * np.mean(logits.argmax(-1) == y):.1f} %"
    print(line)


def _add_predict(commands):
    command = _command(
        commands,
        "predict",
        "run a saved network on a file of data",
        _predict,
        "nbprop predict digits.safetensors new.csv --classes -o classes.csv",
    )
    command.add_argument("model", help="what nbprop train has written")
    command.add_argument("data", help=".npz with an array x, or .csv")
    command.add_argument("--targets", type=int, default=0, help="last columns of a .csv to leave out (default 0)")
    command.add_argument("--classes", action="store_true", help="the most likely class in place of the outputs")
    command.add_argument("-o", "--output", help="a .csv or .npy to write; without it the lines are printed")


def _predict(arguments):
    import nbprop
    from nbprop.compiling import telling
    from nbprop.reading import read_data

    net, params = nbprop.load(arguments.model)
    x = np.ascontiguousarray(read_data(arguments.data, arguments.targets)[0], params.dtype)
    if x.shape[1:] != net.input_shape:
        raise ValueError(f"{arguments.data} has samples of shape {x.shape[1:]}, the network takes {net.input_shape}")
    if arguments.output and Path(arguments.output).suffix not in (".csv", ".npy"):
        raise ValueError(f"{arguments.output}: the output must be a .csv or a .npy file")
    y = np.empty((len(x), *net.output_shape), x.dtype)
    with telling(_tell):
        plan, params, state = _in_use(arguments.model, None, len(x), x.dtype)
        nbprop.forward(plan, params, x, y, nbprop.workspace(plan), state)
    _write_predictions(y.argmax(-1) if arguments.classes else y, arguments.output)


def _write_predictions(y, output):
    from nbprop.storage import write_atomically

    if output and Path(output).suffix == ".npy":

        def write(path):
            with open(path, "wb") as file:
                np.save(file, y)

        write_atomically(output, write)
        return
    rows = y.reshape(len(y), -1)
    fmt = "%d" if y.dtype.kind == "i" else "%.9g"
    if output:
        write_atomically(output, lambda path: np.savetxt(path, rows, fmt, delimiter=","))
    else:
        np.savetxt(sys.stdout, rows, fmt, delimiter=",")


# -- summary, check, cache -----------------------------------------------------------------------------------


def _add_network_arguments(command):
    command.add_argument("--net", help=_NETWORK_HELP)
    command.add_argument("--input", type=_shape, default=(4,), help="shape of one sample: 64 or 28,28,1 (default 4)")


def _add_summary(commands):
    command = _command(
        commands,
        "summary",
        "describe a saved or written-out network: shapes, parameters, arithmetic, memory",
        _summary,
        'nbprop summary --net "dense:64:tanh dense:10" --input 64',
    )
    command.add_argument("model", nargs="?", help="what nbprop train has written; or give --net")
    _add_network_arguments(command)


def _summary(arguments):
    import nbprop
    from nbprop.reading import read_network

    if (arguments.model is None) == (arguments.net is None):
        arguments.usage_error("give either a saved model or --net")
    net = nbprop.load(arguments.model)[0] if arguments.model else read_network(arguments.net, arguments.input)
    print(nbprop.summary(net))


def _add_check(commands):
    command = _command(
        commands,
        "check",
        "compare gradients with central differences: of a network, or of every activation and loss",
        _check,
        'nbprop check --net "dense:8:gelu dense:2" --input 3 --loss mse',
    )
    _add_network_arguments(command)
    command.add_argument("--loss", help="by default a random linear function of the output")


def _check(arguments):
    import nbprop
    from nbprop.compiling import telling
    from nbprop.layers import ACTIVATIONS
    from nbprop.losses import LOSSES
    from nbprop.reading import read_network

    if arguments.net:
        cases = {arguments.net: (read_network(arguments.net, arguments.input), arguments.loss)}
    else:
        dense = nbprop.dense
        cases = {name: (nbprop.network((3,), dense(5, name), dense(4)), None) for name in ACTIVATIONS}
        cases |= {name: (nbprop.network((3,), dense(5, "tanh"), dense(4)), name) for name in LOSSES}
    with telling(_tell):
        for name, (net, loss) in cases.items():
            errors = nbprop.gradcheck(net, loss)
            worst = max(errors, key=errors.get)
            print(f"{name:24} largest relative error {errors[worst]:.1e} (at {worst})")


def _add_cache(commands):
    command = _command(
        commands,
        "cache",
        "show or clear the folder of compiled code",
        _cache,
        "nbprop cache --clear",
    )
    command.add_argument("--clear", action="store_true", help="delete the compiled code; it is made again when needed")


def _cache(arguments):
    from nbprop.jit import cache_root

    root = cache_root()
    files = [path for pattern in ("*.nbc", "*.tmp") for path in root.glob(f"??/{pattern}")]
    size = sum(path.stat().st_size for path in files) / 1e6
    if not arguments.clear:
        print(f"{root}: {len(files)} files, {size:.1f} MB")
        return
    for path in files:
        path.unlink(missing_ok=True)
    print(f"{root}: {len(files)} files deleted, {size:.1f} MB")


# -- the command ---------------------------------------------------------------------------------------------


def _tell(text):
    """Progress goes to standard error, so that standard output can be piped on."""
    sys.stderr.write(text)
    sys.stderr.flush()


def main(arguments=None):
    """Run the command with a list of arguments (sys.argv's by default); returns the exit code."""
    parsed = _parser().parse_args(arguments)
    # SciPy's L-BFGS-B works on short vectors. Threads of its BLAS gain nothing there, and on a busy machine they wait
    # for each other (20 times slower, measured); nbprop's own threads are those of --threads.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    try:
        parsed.run(parsed)
        sys.stdout.flush()
    except KeyboardInterrupt:
        print("nbprop: stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # Whoever read our output has had enough (head, less): not an error of ours, and nothing more can be written.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ValueError, TypeError, OSError, RuntimeError, MemoryError) as error:
        print(f"nbprop: error: {_one_line(error)}", file=sys.stderr)
        return 1
    return 0


def _one_line(error):
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split()) or type(error).__name__
