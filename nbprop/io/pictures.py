"""Pictures in files, for the demo and the examples."""

import argparse
from pathlib import Path

from nbprop.io.atomic import write_atomically

_KINDS = (".png", ".pdf", ".svg", ".jpg")


def picture_path(text):
    """An argparse type: the path of a picture, with a known suffix, in an existing folder."""
    path = Path(text)
    if path.suffix.lower() not in _KINDS:
        raise argparse.ArgumentTypeError(f"must end in {', '.join(_KINDS[:-1])} or {_KINDS[-1]}, got {text!r}")
    if not path.resolve().parent.is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {path.resolve().parent}")
    return path


def add_picture(parser, what):
    """Add the option --picture PATH to a parser."""
    parser.add_argument("--picture", metavar="PATH", type=picture_path, help=f"draw {what} into this file")


def picture_option(description, what):
    """The path that a script's --picture names, or None; for scripts without other arguments."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_picture(parser, what)
    return parser.parse_args().picture


def save_picture(figure, path, **options):
    """Write a matplotlib figure, atomically; options as in `savefig`."""

    kind = Path(path).suffix[1:].lower()
    write_atomically(path, lambda temporary: figure.savefig(temporary, format=kind, **options))
