"""How tests start a script of this folder on several ranks."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

MPIEXEC = shutil.which("mpiexec", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")


def run(script, size, *arguments, timeout=600, mpiexec=(MPIEXEC,), **environment):
    """Run a function of a script on so many ranks; the finished process. After the time-out, all ranks are ended."""
    command = [*mpiexec, "-n", str(size), sys.executable, str(script), *map(str, arguments)]
    environment = {**os.environ, **environment}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as started:
        try:
            said = started.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            started.terminate()  # mpiexec ends its ranks; killed, it would leave them
            started.communicate()
            raise
    return subprocess.CompletedProcess(command, started.returncode, *said)


def result(script, size, *arguments, **options):
    """What the function returned on rank 0."""
    done = run(script, size, *arguments, **options)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])
