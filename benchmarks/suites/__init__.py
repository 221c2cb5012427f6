"""asv suites, sharing the rows and the timing of `make bench`, which lie in the folder above.

Nothing here imports nbprop when a module loads: old commits lack features, and a suite that cannot run says
so in `setup` by NotImplementedError, which asv shows as a gap and not as a failure. The folder above is put
on the path by hand, since asv imports this package without it; the repository itself must stay off it, or
every commit would be measured with the working tree's nbprop.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
