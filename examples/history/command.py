"""The command line that the scripts of this folder share: a seed, and a file for the picture."""

import argparse

from nbprop.io.pictures import add_picture


def options(description, seed=0, drawn="what was found"):
    """A parser with --seed and --picture."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=seed, help="of weights and data (default %(default)s)")
    add_picture(parser, drawn)
    return parser


def command(description, run, draw, seed=0):
    """Print what ``run(seed)`` returns; with --picture PATH, ``draw(seed, PATH)``."""
    given = options(description, seed).parse_args()
    for name, value in run(given.seed).items():
        print(f"{name.replace('_', ' ')}: {value}")
    if given.picture:
        draw(given.seed, given.picture)
        print("picture:", given.picture)
