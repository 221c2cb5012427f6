"""A controller that nbprop has trained, taken to where there is no Python: C, Fortran, CasADi and a web page.

    python examples/deploy/deploy.py FOLDER

trains the controller of examples/simulation.py, which holds a pendulum upright, and writes it into the folder with
programs that run it. It then builds and runs those whose compilers are here, and says which are not.
"""

import argparse
import base64
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from simulation import STEPS, cost_and_gradient, net, plan  # noqa: E402

import nbprop  # noqa: E402

# What is built of the exported files: (compilers, commands).
C = ["gcc -std=c99 -O2 -Wall -Wextra controller.c loop.c -o loop -lm", "./loop"]
FORTRAN = [
    "gcc -std=c99 -O2 -c controller.c",
    "gfortran -O2 controller.f90 loop.f90 controller.o -o loop_fortran -lm",
    "./loop_fortran",
]
CASADI = [
    "gcc -std=c99 -O2 -fPIC -shared controller.c controller_casadi.c -o controller.so -lm",
    f"{sys.executable} stability.py",
]
WASM = [
    f"clang --target=wasm32 -std=c99 -O2 -nostdlib -ffreestanding -I {HERE / 'wasm'} -Wl,--no-entry "
    "-Wl,--export=controller_forward -Wl,--export=controller_params -Wl,--export=__heap_base "
    "controller.c -o controller.wasm"
]


def train():
    """Parameters after a few hundred simulated falls: backpropagation through time, as in simulation.py."""
    params, rng = nbprop.init(net, seed=0), np.random.default_rng(1)
    grads, velocity = np.empty_like(params), np.zeros_like(params)
    states, torque = np.empty((STEPS + 1, 2)), np.empty((STEPS, 1))
    works = np.empty((STEPS, nbprop.workspace(plan).size))
    for _ in range(1000):
        cost_and_gradient(plan, params, rng.uniform(-0.6, 0.6, 2), states, torque, works, grads)
        velocity = 0.9 * velocity + grads * min(1.0, 1.0 / np.linalg.norm(grads))
        params -= 0.02 * velocity
    cost_and_gradient(plan, params, np.array([0.5, 0.0]), states, torque, works, grads)
    return params, states[-1, 0]


def build(name, commands, folder, needs):
    """Run commands in the folder, and print what they print; say so where something is not there."""
    missing = [program for program in needs if shutil.which(program) is None]
    if missing:
        print(f"{name}: there is no {', '.join(missing)} here")
        return False
    for command in commands:
        done = subprocess.run(command.split(), cwd=folder, capture_output=True, text=True, check=True)
        if done.stdout:
            print(f"{name}: {done.stdout.strip()}")
    return True


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where to write")
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    params, angle = train()
    print(f"Python: released at 0.5 rad, after 5 s the angle is {angle:+.6f} rad")
    box = np.array([-0.6, -2.0]), np.array([0.6, 2.0])
    nbprop.export_c(folder / "controller", net, params, ["forward"], "float64", box=box, bindings=["fortran", "casadi"])
    for name in ("loop.c", "loop.f90", "stability.py"):
        shutil.copy(HERE / name, folder)
    build("C", C, folder, ["gcc"])
    build("Fortran", FORTRAN, folder, ["gcc", "gfortran"])
    try:
        import casadi  # noqa: F401
    except ImportError:
        print("CasADi: there is no casadi here")
    else:
        build("CasADi", CASADI, folder, ["gcc"])
    if build("WebAssembly", WASM, folder, ["clang", "wasm-ld"]):
        page, code = (HERE / "page.html").read_text(encoding="utf-8"), (folder / "controller.wasm").read_bytes()
        text = page.replace("@WASM@", base64.b64encode(code).decode())
        (folder / "pendulum.html").write_text(text, encoding="utf-8")
        print(f"WebAssembly: {len(code):,} bytes; open {folder / 'pendulum.html'} in a browser")


if __name__ == "__main__":
    main()
