"""Chromium for tests, driven by the DevTools protocol over a pipe: no driver, no port, no package.

Two file descriptors carry JSON messages, each ended by a zero byte: Chromium reads commands from 3 and writes to 4.
"""

import contextlib
import fcntl
import itertools
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from dashboard import vendor

AXE = Path(__file__).resolve().parent / "axe"  # npm's package-lock.json pins axe-core
NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--remote-debugging-pipe",
    "--host-resolver-rules=MAP * ~NOTFOUND",  # the network is off: no name resolves
)  # fmt: skip


def find():
    """The browser's path, or None."""
    return next((path for path in map(shutil.which, NAMES) if path), None)


class Page:
    """One tab. `problems` gathers console errors, exceptions and failed requests; `requests` every address."""

    def __init__(self, read, write):
        self._read, self._write = read, write
        self._ids = itertools.count(1)
        self._buffer = b""
        self._session = None
        self._loaded = False
        self.problems, self.requests = [], []
        target = self.command("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.command("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.command(f"{domain}.enable")
        self.command(
            "Network.emulateNetworkConditions", offline=True, latency=0, downloadThroughput=0, uploadThroughput=0
        )

    def command(self, method, **parameters):
        """Send a command and wait for its result; events that arrive meanwhile are noted."""
        number = next(self._ids)
        message = {"id": number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive(30)
            if answer.get("id") == number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]
            self._note(answer)

    def _receive(self, seconds):
        end = time.monotonic() + seconds
        while b"\0" not in self._buffer:
            left = end - time.monotonic()
            if left <= 0 or not select.select([self._read], [], [], left)[0]:
                raise TimeoutError("Chromium did not answer")
            chunk = os.read(self._read, 1 << 20)
            if not chunk:
                raise RuntimeError("Chromium ended")
            self._buffer += chunk
        message, self._buffer = self._buffer.split(b"\0", 1)
        return json.loads(message)

    def _note(self, event):
        method, parameters = event.get("method"), event.get("params", {})
        if method == "Page.loadEventFired":
            self._loaded = True
        elif method == "Runtime.exceptionThrown":
            self.problems.append(parameters["exceptionDetails"].get("exception", parameters["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled" and parameters["type"] in ("error", "assert"):
            self.problems.append(parameters["args"])
        elif method == "Log.entryAdded" and parameters["entry"]["level"] == "error":
            self.problems.append(parameters["entry"])
        elif method == "Network.requestWillBeSent":
            self.requests.append(parameters["request"]["url"])

    def open(self, address):
        self._loaded = False
        self.command("Page.navigate", url=address)
        while not self._loaded:
            self._note(self._receive(30))

    def js(self, expression):
        """The value of an expression in the page."""
        answer = self.command(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True, userGesture=True
        )
        if "exceptionDetails" in answer:
            raise RuntimeError(f"{expression}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def wait(self, expression, seconds=15):
        """Until an expression is true."""
        end = time.monotonic() + seconds
        while not self.js(expression):
            if time.monotonic() > end:
                raise TimeoutError(f"still false after {seconds} s: {expression}; problems: {self.problems}")
            time.sleep(0.05)

    def size(self, width, height, mobile=False):
        self.command(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=mobile
        )

    def key(self, name, code):
        for kind in ("rawKeyDown", "keyUp"):
            self.command("Input.dispatchKeyEvent", type=kind, key=name, code=name, windowsVirtualKeyCode=code)

    def close(self):
        """End the browser; it may be gone before it answers."""
        self._session = None
        with contextlib.suppress(RuntimeError, OSError):
            self.command("Browser.close")

    def screenshot(self, whole=False):
        """PNG bytes, base64 as the protocol gives them."""
        return self.command("Page.captureScreenshot", format="png", captureBeyondViewport=whole)["data"]


def violations(tab):
    """What axe-core finds wrong with an open page (contrast, headings, labels, landmarks): "rule: element" each."""
    vendor.install(AXE)
    tab.js((AXE / "node_modules" / "axe-core" / "axe.min.js").read_text(encoding="utf-8"))
    gather = "done.violations.flatMap(v => v.nodes.map(n => [v.id, n.html.slice(0, 200)]))"
    found = tab.js(f"axe.run({{ preload: false }}).then(done => {gather})")  # preload: stylesheets, by requests
    return [f"{rule}: {element}" for rule, element in found]


# Moves the two pipes to the descriptors that Chromium expects, and becomes Chromium.
LAUNCH = "import os, sys; a, b, *c = sys.argv[1:]; os.dup2(int(a), 3); os.dup2(int(b), 4); os.execv(c[0], c)"


def high(descriptor):
    """The same pipe on a number above 9, out of the way of 3 and 4."""
    moved = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 10)
    os.close(descriptor)
    return moved


@contextlib.contextmanager
def page():
    """A browser with one empty profile and one tab, ended at the end."""
    (to_browser, from_us), (from_browser, to_us) = (map(high, os.pipe()) for _ in range(2))
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        process = subprocess.Popen(
            [sys.executable, "-c", LAUNCH, str(to_browser), str(to_us), find(), *FLAGS, f"--user-data-dir={profile}"],
            pass_fds=(to_browser, to_us),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_browser)
        os.close(to_us)
        try:
            tab = Page(from_browser, from_us)
            yield tab
            tab.close()
        finally:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            os.close(from_us)
            os.close(from_browser)
