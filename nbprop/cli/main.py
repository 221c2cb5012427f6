"""The nbprop command: demo, train, predict, summary, export, check, cache.

Exit codes: 0 done, 1 the training failed (it diverged, or did not lower the loss), 2 wrong usage or a file that does
not fit or cannot be read or written, 130 stopped with Ctrl-C, 141 the reader of the output left. Errors are one line on
standard error.
"""

import argparse
import contextlib
import os
import sys
import warnings

from nbprop.cli.data_options import add_data_arguments, choices_of
from nbprop.cli.values import folds, fraction, positive_integer, positive_number, seed, shape, whole_number
from nbprop.io.pictures import picture_path

_EXAMPLES = """examples:
  nbprop demo
  nbprop train iris.csv --net "dense:16:tanh dense:3" -o iris.safetensors
  nbprop train iris.csv --net "dense:64 batchnorm relu dropout:0.2 dense:3"
  nbprop predict iris.safetensors new.csv --classes
  nbprop summary iris.safetensors
  nbprop export iris.safetensors -o iris
  nbprop check --net "dense:8:gelu dense:2" --input 3 --loss mse
  nbprop cache --warm

`nbprop COMMAND --help` describes a command."""

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
    for add in (_add_demo, _add_train, _add_predict, _add_summary, _add_export, _add_check, _add_cache):
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


# -- demo ----------------------------------------------------------------------------------------------------


def _add_demo(commands):
    command = _command(
        commands,
        "demo",
        "learn to read real handwritten digits, and show each step of backpropagation",
        _demo,
        "nbprop demo --picture digits.png",
    )
    command.add_argument(
        "--seeds", type=positive_integer, default=5, help="runs with other splits and weights (default 5)"
    )
    command.add_argument(
        "--picture",
        metavar="PATH",
        type=picture_path,
        default="nbprop-demo.png",
        help="where to draw the loss and the error signals when matplotlib is installed (default nbprop-demo.png)",
    )


def _demo(arguments):
    from nbprop.cli.demo import demo

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
    command.add_argument(
        "data",
        help=".csv, .tsv or .parquet, .npz with arrays x and y, or .npy; a table's last column is the target",
    )
    command.add_argument("--net", help=f"{_NETWORK_HELP}; by default two layers of 64, with scaling, for the target")
    command.add_argument("-o", "--output", default="model.safetensors", help="the file to write (default %(default)s)")
    command.add_argument(
        "--loss",
        help="by default softmax_cross_entropy for classes, binary_cross_entropy for two named ones and one output, "
        "mse for the rest",
    )
    command.add_argument("--optimizer", default="adam", help="adam (default), sgd, ...; or SciPy's L-BFGS-B, BFGS, CG")
    command.add_argument("--lr", type=positive_number, default=1e-3, help="learning rate (default %(default)s)")
    command.add_argument("--batch", type=positive_integer, default=32, help="samples a step (default %(default)s)")
    command.add_argument(
        "--epochs", type=positive_integer, default=20, help="or SciPy's iterations (default %(default)s)"
    )
    command.add_argument("--seed", type=seed, default=0, help="of weights, split and shuffling (default %(default)s)")
    command.add_argument(
        "--held-out",
        "--holdout",
        type=fraction,
        default=0.2,
        metavar="SHARE",
        help="share kept for testing (default %(default)s)",
    )
    command.add_argument(
        "--embed",
        type=whole_number,
        metavar="N",
        help="learn N numbers for each category of a column, an embedding; 0: ones and zeros (default: half as many as "
        "there are categories, for columns of more than 20, unless --net is given)",
    )
    command.add_argument("--cv", type=folds, metavar="K", help="also cross-validate, with K folds")
    command.add_argument(
        "--metric", action="append", default=[], metavar="NAME", help="accuracy, balanced_accuracy, f1, r2, mae, rmse"
    )
    command.add_argument(
        "--task",
        choices=("classes", "numbers"),
        help="what whole numbers as a target are; by default classes if few, or if the network has several outputs",
    )
    command.add_argument(
        "--scale",
        action=argparse.BooleanOptionalAction,
        help="begin the network with standardize, and end it in rescale for a target of numbers",
    )
    command.add_argument(
        "--picture", type=picture_path, metavar="PATH", help="draw the losses, and what was predicted, into this file"
    )
    command.add_argument("--dtype", choices=("float32", "float64"), default="float32")
    command.add_argument("--threads", type=positive_integer, default=1)
    add_data_arguments(
        command,
        "fill (default for tables) fills in the mean of its column, drop leaves the row out, a number replaces it",
    )


def _train(arguments):
    from nbprop.cli.training import train

    if arguments.targets == 0:
        arguments.usage_error("train needs a target: --targets must be at least 1")
    arguments.choices = choices_of(arguments)
    train(arguments)


def _add_predict(commands):
    command = _command(
        commands,
        "predict",
        "run a saved network on a file of data",
        _predict,
        "nbprop predict digits.safetensors new.csv --classes -o classes.csv",
    )
    command.add_argument("model", help="what nbprop train has written")
    command.add_argument("data", help=".csv or .tsv, .parquet, .npz with an array x, or .npy")
    kind = command.add_mutually_exclusive_group()
    kind.add_argument("--classes", action="store_true", help="the most likely class instead of the outputs")
    kind.add_argument("--probabilities", action="store_true", help="the probabilities of the classes")
    command.add_argument("--loss", help="for these two, of a network that nbprop train has not written")
    command.add_argument(
        "--on-unknown",
        choices=("refuse", "zeros"),
        default="refuse",
        help="a category that training has not seen is refused, or taken as none of them",
    )
    command.add_argument("-o", "--output", help="a .csv or .npy to write; without it the lines are printed")
    add_data_arguments(command, "fill (default) fills in the column's mean in training, a number replaces it")


def _predict(arguments):
    from nbprop.cli.predicting import predict

    if arguments.on_missing == "drop":
        arguments.usage_error("predict needs every row, so --on-missing must be fill or a number")
    arguments.choices = choices_of(arguments)
    predict(arguments)


# -- summary, export, check, cache -----------------------------------------------------------------------------------


def _add_network_arguments(command):
    command.add_argument("--net", help=_NETWORK_HELP)
    command.add_argument("--input", type=shape, default=(4,), help="shape of one sample: 64 or 28,28,1 (default 4)")


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
    from nbprop.cli.networks import read_network
    from nbprop.io.networks import load_notes

    if (arguments.model is None) == (arguments.net is None):
        arguments.usage_error("give either a saved model or --net")
    if arguments.net:
        print(nbprop.summary(read_network(arguments.net, arguments.input)))
        return
    print(nbprop.summary(nbprop.load(arguments.model)[0]))
    for name, value in load_notes(arguments.model).items():
        if name == "columns":
            value = [_column_in_words(one) for one in value]
        if value is not None:
            print(f"{name}: {value if isinstance(value, str) else ', '.join(map(str, value))}")


def _column_in_words(noted):
    """A feature as the model's notes have it."""
    if "fill" in noted:
        return "number" if noted["fill"] is None else f"number (missing: {noted['fill']:.6g})"
    return "/".join(kind or "(missing)" for kind in noted["categories"])


def _add_export(commands):
    command = _command(
        commands,
        "export",
        "write a saved network with its derivatives as C",
        _export,
        "nbprop export digits.safetensors -o digits",
    )
    command.add_argument("model", help="what nbprop train has written")
    command.add_argument("-o", "--output", required=True, metavar="STEM", help="writes STEM.c and STEM.h")
    command.add_argument("--loss", help="for functions that need one; by default what the network was trained with")
    command.add_argument(
        "--functions", metavar="NAMES", help="forward,vjp,jvp,hvp,value_and_grad (default: all there are)"
    )
    command.add_argument(
        "--batch", type=positive_integer, default=1, help="the most samples of a call (default %(default)s)"
    )
    command.add_argument("--dtype", choices=("float32", "float64"), help="by default the model's")


def _export(arguments):
    from nbprop.cli.predicting import export

    export(arguments)


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
    from nbprop.cli.networks import read_network
    from nbprop.cli.places import say
    from nbprop.compiler.report import reporting
    from nbprop.layers import ACTIVATIONS
    from nbprop.losses import LOSSES

    if arguments.net:
        cases = {arguments.net: (read_network(arguments.net, arguments.input), arguments.loss)}
    else:
        dense = nbprop.dense
        cases = {name: (nbprop.network((3,), dense(5, name), dense(4)), None) for name in ACTIVATIONS}
        exact = [name for name, loss in LOSSES.items() if loss.exact_gradient]
        cases |= {name: (nbprop.network((3,), dense(5, "tanh"), dense(4)), name) for name in exact}
    with reporting(say):
        for name, (net, loss) in cases.items():
            errors = nbprop.gradcheck(net, loss)
            worst = max(errors, key=errors.__getitem__)
            print(f"{name:24} largest relative error {errors[worst]:.1e} (at {worst})")


def _add_cache(commands):
    command = _command(
        commands,
        "cache",
        "show, fill or clear the folder of compiled code",
        _cache,
        "nbprop cache --warm",
    )
    what = command.add_mutually_exclusive_group()
    what.add_argument("--clear", action="store_true", help="delete the compiled code; it is compiled again when needed")
    what.add_argument(
        "--warm", action="store_true", help="compile all that neither the cache nor the package has, some minutes"
    )
    what.add_argument(
        "--native", action="store_true", help="as --warm, and for this very processor what the package has, too"
    )
    what.add_argument(
        "--pack", metavar="FOLDER", help="write the packs of generic code that a wheel carries into FOLDER"
    )
    command.add_argument(
        "--workers", type=int, metavar="N", help="processes that compile; as many as cores if left out"
    )


def _cache(arguments):
    from nbprop.compiler.cache import cache_root

    if arguments.workers is not None and arguments.workers < 1:
        raise ValueError(f"--workers must be at least 1, got {arguments.workers}")
    if arguments.pack is not None:
        from nbprop.cli import warming

        for target in warming.targets():
            print(warming.pack(arguments.pack, target, workers=arguments.workers, tell=_tell_compiled(target)))
        return
    if arguments.warm or arguments.native:
        from nbprop.cli import warming

        count = warming.warm(workers=arguments.workers, native=arguments.native, tell=_tell_compiled("this processor"))
        print(f"{count} functions are compiled")
        return
    root = cache_root()
    files = [path for pattern in ("*.nbc", "*.tmp") for path in root.glob(f"??/{pattern}")]
    size = 0.0
    for path in files:
        with contextlib.suppress(FileNotFoundError):  # a file that another process has renamed or deleted
            size += path.stat().st_size / 1e6
    if not arguments.clear:
        print(f"{root}: {len(files)} files, {size:.1f} MB")
        return
    for path in files:
        path.unlink(missing_ok=True)
    print(f"{root}: {len(files)} files deleted, {size:.1f} MB")


def _tell_compiled(target):
    """A function that tells on standard error how far compiling is: one line, written over where that is seen."""
    ends = "\r" if sys.stderr.isatty() else "\n"

    def tell(done, total, name, dtype):
        last = done == total
        if last or sys.stderr.isatty():
            line = f"{target}: {done} of {total} compiled, {name.rpartition('.')[2]} {dtype}"
            print(f"{line:<100.100}", end="\n" if last else ends, file=sys.stderr, flush=True)

    return tell


# -- the command ---------------------------------------------------------------------------------------------


def main(arguments=None):
    """Run the command with a list of arguments (sys.argv's by default); returns the exit code."""
    parsed = _parser().parse_args(arguments)
    # SciPy's L-BFGS-B works on short vectors. The threads of its BLAS do not speed it up, and on a busy machine they
    # wait for each other (measured: 20 times slower). nbprop's own threads are set by --threads.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from nbprop.cli.places import Failed

    with warnings.catch_warnings():
        warnings.showwarning = _warn
        try:
            parsed.run(parsed)
            sys.stdout.flush()
        except KeyboardInterrupt:
            print("nbprop: stopped", file=sys.stderr)
            return 130
        except BrokenPipeError:
            # The reader of our output has closed it (head, less): not an error, but nothing more can be written. The
            # exit code is that of a command ended by SIGPIPE.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 141
        except Failed as failure:
            print(f"nbprop: {_one_line(failure)}", file=sys.stderr)
            return 1
        except (ValueError, TypeError, OSError) as error:
            print(f"nbprop: error: {_one_line(error)}", file=sys.stderr)
            return 2
        except (RuntimeError, MemoryError) as error:
            print(f"nbprop: error: {_one_line(error)}", file=sys.stderr)
            return 1
    return 0


def _warn(message, category, filename, lineno, file=None, line=None):
    """Print a warning without the line of code that it comes from."""
    print(f"nbprop: warning: {_one_line(message)}", file=sys.stderr)


def _one_line(error):
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split()) or type(error).__name__
