"""``python -m nbprop`` is the ``nbprop`` command."""

import sys

from nbprop.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
