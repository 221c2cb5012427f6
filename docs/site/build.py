"""`make docs`: the site, from docs/, the docstrings and the examples, into build/docs/html. Warnings are errors.

python docs/site/build.py [--output FOLDER]
"""

import argparse
import shutil
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
from stage import ROOT, stage  # noqa: E402


def build(output):
    """Write the site into output/html; Sphinx's exit code."""
    from sphinx.cmd.build import main as sphinx

    source = output / "source"
    shutil.rmtree(output, ignore_errors=True)
    source.mkdir(parents=True)
    stage(source)
    code = sphinx(["-W", "--keep-going", "-q", "-b", "html", "-c", str(source), str(source), str(output / "html")])
    if code == 0:
        print(f"open {(output / 'html' / 'index.html').as_uri()}")
    return code


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "docs", help="the folder to write")
    return build(parser.parse_args().output.resolve())


if __name__ == "__main__":
    raise SystemExit(main())
