"""asv suites, with the rows and the timing of `make bench`, which are in the folder above.

No module here imports nbprop when it is loaded: old commits lack features, and a suite that cannot run raises
NotImplementedError in `setup`, which asv shows as a gap, not as a failure. asv imports this package without the folder
above on the path, so it is added here. The repository itself must stay off the path, or every commit would be measured
with the working tree's nbprop.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
