"""The command line that the scripts of this folder share: a seed, and a file for the picture."""

import argparse


def command(description, run, draw, seed=0):
    """Print what ``run(seed)`` returns; with --picture FILE, ``draw(seed, FILE)``."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("seed", nargs="?", type=int, default=seed)
    parser.add_argument("--picture", metavar="FILE", help="draw it into this file")
    given = parser.parse_args()
    for name, value in run(given.seed).items():
        print(f"{name.replace('_', ' ')}: {value}")
    if given.picture:
        draw(given.seed, given.picture)
        print("picture:", given.picture)
