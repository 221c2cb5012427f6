"""Files written whole or not at all: what a killed writer leaves, several writers at once, devices and pipes."""

import os
import re
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from nbprop.io import atomic as writing


def text(contents):
    return lambda path: Path(path).write_text(contents)


def replacing(path):
    """As safetensors does it: the temporary file is one of another name first, in the same folder."""
    other = Path(path).parent / ".tmpAbCdEf"
    other.write_text("new")
    os.replace(other, path)


# The module alone: the processes of these tests need nothing else of the package.
MODULE = f"""
import runpy
write_atomically = runpy.run_path({writing.__file__!r})["write_atomically"]
"""

# A writer that stops before its file is done, and says so.
WAITS = f"""{MODULE}
import sys, time
def write(path):
    open(path, "w").write("half")
    open(path + ".more", "w").close()  # what a library makes beside it
    print("writing", flush=True)
    time.sleep(100)
write_atomically(sys.argv[1], write)
"""


@pytest.fixture
def waiting():
    """waiting(path): a process that has begun to write a file, and waits."""
    running = []

    def start(path):
        process = subprocess.Popen([sys.executable, "-c", WAITS, str(path)], stdout=subprocess.PIPE, text=True)
        running.append(process)
        assert process.stdout.readline() == "writing\n"
        return process

    yield start
    for process in running:
        process.kill()
        process.wait()
        process.stdout.close()


def test_the_next_writer_removes_what_killed_ones_left(tmp_path, waiting):
    path, other = tmp_path / "net", tmp_path / "net.more"
    for process in [waiting(path) for _ in range(2)]:
        process.send_signal(signal.SIGKILL)
        process.wait()
    (tmp_path / ".net.0123456789ab.tmp").write_text("of an older version")
    (tmp_path / ".net.mine.tmp").write_text("not of ours")
    assert len(os.listdir(tmp_path)) == 4
    writing.write_atomically(other, text("another name"))
    assert len(os.listdir(tmp_path)) == 5
    writing.write_atomically(path, replacing)
    assert sorted(os.listdir(tmp_path)) == [".net.mine.tmp", "net", "net.more"]
    assert path.read_text() == "new"


def test_what_a_living_writer_has_stays(tmp_path, waiting):
    path = tmp_path / "net"
    process = waiting(path)
    (folder,) = tmp_path.iterdir()
    for contents in ("first", "second"):
        writing.write_atomically(path, text(contents))
        assert path.read_text() == contents
        assert {found.name for found in folder.iterdir()} == {"net", "net.more"}
    process.kill()
    process.wait()
    writing.write_atomically(path, text("third"))
    assert os.listdir(tmp_path) == ["net"]


def test_many_writers_of_one_name_at_once(tmp_path):
    """Each meets folders of the others before and after they are locked; none takes another's away."""
    path, errors = tmp_path / "net", []

    def run(number):
        try:
            for _ in range(20):
                writing.write_atomically(path, text(str(number) * 1000))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert path.read_text() in {str(number) * 1000 for number in range(4)}
    assert os.listdir(tmp_path) == ["net"]


def test_a_writer_whose_folder_was_taken_for_a_dead_ones_makes_another(tmp_path, monkeypatch):
    """Between the making of the folder and its locking."""
    made, mkdir = [], os.mkdir

    def overtaken(path, mode):
        mkdir(path, mode)
        made.append(path)
        if len(made) == 1:
            os.rmdir(path)

    monkeypatch.setattr(writing.os, "mkdir", overtaken)
    writing.write_atomically(tmp_path / "net", text("new"))
    assert len(made) == 2
    assert os.listdir(tmp_path) == ["net"]


def test_where_there_are_no_locks_nothing_is_removed(tmp_path, monkeypatch):
    (tmp_path / ".net.0123456789ab.tmp").mkdir()

    def unsupported(descriptor, kind):
        raise OSError(9, "Bad file descriptor")

    monkeypatch.setattr(writing.system.fcntl, "flock", unsupported)
    writing.write_atomically(tmp_path / "net", text("new"))
    assert sorted(os.listdir(tmp_path)) == [".net.0123456789ab.tmp", "net"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), ValueError("other"), KeyboardInterrupt()])
def test_a_failing_writer_leaves_nothing(tmp_path, error):
    path = tmp_path / "net"
    path.write_text("old")

    def fail(temporary):
        Path(temporary).write_text("half")
        raise error

    with pytest.raises(type(error)):
        writing.write_atomically(path, fail)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["net"]


def test_names_of_every_length_and_kind(tmp_path):
    for name in ("n" * 255, "ä" * 120, "[a-z]*.csv", " ", b"bytes"):
        path = os.path.join(os.fsencode(tmp_path), os.fsencode(name))
        for contents in ("first", "second"):
            writing.write_atomically(path, text(contents))
            with open(path) as file:
                assert file.read() == contents
        os.unlink(path)
    assert os.listdir(tmp_path) == []


# -- devices and pipes ---------------------------------------------------------------------------------------


def test_devices_stay_devices(tmp_path, monkeypatch):
    """Directly and through a link; a full device is an error."""
    monkeypatch.delattr(writing.os, "replace")  # were it called, this machine would lose its /dev/null
    link = tmp_path / "link"
    link.symlink_to("/dev/null")
    for path in ("/dev/null", link):
        writing.write_atomically(path, text("gone"))
    assert stat.S_ISCHR(os.lstat("/dev/null").st_mode)
    assert link.is_symlink()
    with pytest.raises(OSError, match="/dev/full could not be written: No space left"):
        writing.write_atomically("/dev/full", text("too much"))
    assert stat.S_ISCHR(os.lstat("/dev/full").st_mode)


def test_pipes_get_the_bytes(tmp_path):
    pipe, found = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: found.append(pipe.read_text()), daemon=True)
    reader.start()
    writing.write_atomically(pipe, text("through the pipe" * 10_000))
    reader.join(timeout=30)
    assert found == ["through the pipe" * 10_000]
    assert stat.S_ISFIFO(os.lstat(pipe).st_mode)
    assert os.listdir(tmp_path) == ["pipe"]


PRINTS = f"""{MODULE}
import sys
from pathlib import Path
print("before")
write_atomically(sys.argv[1], lambda path: Path(path).write_text("contents\\n"))
print("after")
"""


@pytest.mark.parametrize("path", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"])
def test_standard_output_to_a_pipe_and_to_a_file(tmp_path, path):
    """What else is printed stays, and in its order; a file that it goes to is not replaced."""
    command = [sys.executable, "-c", PRINTS, path]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "before\ncontents\nafter\n"
    out = tmp_path / "out"
    out.write_text("old\n")
    for mode, wanted in (("a", "old\nbefore\ncontents\nafter\n"), ("w", "before\ncontents\nafter\n")):
        with out.open(mode) as file:
            subprocess.run(command, stdout=file, check=True)
        assert out.read_text() == wanted


def test_what_is_neither_file_nor_stream_is_refused(tmp_path):
    import socket

    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
        with pytest.raises(OSError, match="it is neither a file, a device nor a pipe"):
            writing.write_atomically(tmp_path / "socket", text("new"))
    with pytest.raises(IsADirectoryError, match="it is a folder"):
        writing.write_atomically(tmp_path, text("new"))
    assert os.listdir(tmp_path) == ["socket"]


@pytest.mark.parametrize("path", [None, 3, ["a"], "", "a\0b"])
def test_what_is_no_path_is_refused(path):
    with pytest.raises((TypeError, ValueError), match=re.escape("save: path must ")):
        writing.as_path("save: path", path)
