"""What tests of the studio share: a server as users start it, someone who asks it, a browser."""

import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest

from sinfusion.media import write_image, write_video

BROWSERS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
PATIENCE = 120.0  # seconds, after which something has not happened


class Asker:
    """A page of a server, without a browser."""

    def __init__(self, address, process=None, folder=None):
        self.address, self.process, self.folder = address, process, folder
        parts = urllib.parse.urlparse(address)
        self.port, self.base = parts.port, parts.path
        self.origin = f"http://127.0.0.1:{self.port}"

    def raw(self, method, path, body=None, headers=None):
        """(status, headers, bytes) of a request with exactly these headers, beside the Host."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        try:
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            return response.status, {k.lower(): v for k, v in response.getheaders()}, response.read()
        finally:
            connection.close()

    def __call__(self, method, path, body=None, **headers):
        """(status, what was answered) of a request as the page makes it; a dict or a list is sent as JSON."""
        given = {"Origin": self.origin, **{name.replace("_", "-"): value for name, value in headers.items()}}
        if isinstance(body, dict | list):
            body, given = json.dumps(body).encode(), {"Content-Type": "application/json", **given}
        status, answered, content = self.raw(method, self.base + path, body, given)
        is_json = answered.get("content-type", "").startswith("application/json")
        return status, json.loads(content) if is_json else content

    def state(self):
        return self("GET", "api/state")[1]

    def one(self, kind, id):
        return next(one for one in self.state()[kind] if one["id"] == id)

    def upload(self, path, name=None):
        return self("PUT", f"api/clips?name={urllib.parse.quote(name or path.name)}", path.read_bytes())

    def until(self, ready):
        """What `ready` returns, once that is true."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            if found := ready():
                return found
            time.sleep(0.05)
        raise AssertionError(f"has not happened: {self.state()}")

    def made(self, answer):
        """The job of an answer, once it has ended."""
        status, begun = answer
        assert status == 202, begun

        def ended():
            job = next(job for job in self.state()["jobs"] if job["id"] == begun["job"])
            return job if job["state"] in ("done", "failed", "cancelled") else None

        return self.until(ended)

    def make(self, verb, kind, id, **options):
        """The result of a job, which must succeed."""
        job = self.made(self("POST", "api/jobs", {"verb": verb, "kind": kind, "id": id, "options": options}))
        assert job["state"] == "done", job
        return self.one("results", job["result"])


@contextmanager
def serving(folder, *words):
    """A server as `sinfusion studio` starts it; ended as Ctrl-C does."""
    command = [sys.executable, "-m", "sinfusion", "studio", str(folder), "--no-open", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        address = process.stdout.readline().strip()
        assert address.startswith("http://127.0.0.1:"), process.communicate(timeout=10)
        yield Asker(address, process, folder)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        try:
            process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()


@pytest.fixture(scope="session")
def start_server():
    return serving


@pytest.fixture(scope="session")
def fish(tmp_path_factory, clip):
    folder = tmp_path_factory.mktemp("files")
    write_video(folder / "fish.mp4", clip, fps=10)
    write_image(folder / "fish.png", clip[0])
    return folder


@pytest.fixture(scope="session")
def studio(tmp_path_factory, video_run, image_run):
    """A server whose folder has a run of a video and one of an image; tests add to it."""
    folder = tmp_path_factory.mktemp("studio")
    for name, run in (("fish", video_run), ("photo", image_run)):
        shutil.copytree(run.path, folder / "runs" / name, ignore=shutil.ignore_patterns("outputs"))
    with serving(folder) as asker:
        yield asker


@pytest.fixture(scope="session")
def clip_id(studio, fish):
    status, found = studio.upload(fish / "fish.mp4")
    assert status == 201, found
    return found["id"]


@pytest.fixture(scope="session")
def run_ids(studio):
    return {run["name"]: run["id"] for run in studio.state()["runs"]}


class Browser:
    """A page in headless Chromium, driven by its DevTools protocol."""

    def __init__(self, socket):
        self.socket, self.last, self.requests, self.messages = socket, 0, [], []
        for domain in ("Page", "Runtime", "Network", "Log", "DOM"):
            self.do(f"{domain}.enable")

    def do(self, method, **arguments):
        self.last += 1
        self.socket.send(json.dumps({"id": self.last, "method": method, "params": arguments}))
        while True:
            message = json.loads(self.socket.recv(timeout=PATIENCE))
            self._note(message)
            if message.get("id") == self.last:
                assert "error" not in message, message
                return message["result"]

    def _note(self, message):
        if message.get("method") == "Network.requestWillBeSent":
            self.requests.append(message["params"]["request"]["url"])
        if message.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded"):
            self.messages.append(json.dumps(message["params"]))

    def js(self, expression):
        """What a JavaScript expression is, awaited."""
        found = self.do("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def until(self, expression, patience=PATIENCE):
        """Seconds until a JavaScript expression is true."""
        began = time.monotonic()
        while time.monotonic() < began + patience:
            if self.js(f"Boolean({expression})"):
                return time.monotonic() - began
            time.sleep(0.05)
        raise AssertionError(f"not so: {expression}; {self.messages}")

    def go(self, address):
        self.do("Page.navigate", url=address)
        self.until("document.readyState === 'complete'")

    def size(self, width, height=900, scale=1):
        self.do("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale,
                mobile=width < 600)  # fmt: skip

    def dark(self, yes):
        features = [{"name": "prefers-color-scheme", "value": "dark" if yes else "light"}]
        self.do("Emulation.setEmulatedMedia", features=features)

    def click(self, words):
        """Click the visible button or link with these words."""
        is_it = f"e.textContent.trim() === {words!r} && e.offsetParent"
        found = f"[...document.querySelectorAll('button, a')].find(e => {is_it})"
        self.until(f"Boolean({found}) && !{found}.disabled")
        self.js(f"{found}.click()")

    def drop(self, path, x=100, y=150):
        data = {"items": [], "files": [str(path)], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            self.do("Input.dispatchDragEvent", type=kind, x=x, y=y, data=data)

    def screenshot(self, path, whole=False):
        import base64

        found = self.do("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        Path(path).write_bytes(base64.b64decode(found["data"]))


@contextmanager
def browsing():
    """A browser; AssertionError if it does not start."""
    from websockets.sync.client import connect

    program = next(filter(None, map(shutil.which, BROWSERS)))
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as home:
        flags = ["--headless", "--remote-debugging-port=0", f"--user-data-dir={home}", "--no-first-run"]
        flags += ["--disable-background-networking", "--disable-component-update", "--disable-gpu"]
        flags += ["--no-sandbox"] if os.getuid() == 0 else []  # which it refuses to have as root
        command = [program, *flags, "about:blank"]
        quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
        process = subprocess.Popen(command, text=True, start_new_session=True, **quiet)
        try:
            line = next(line for line in process.stderr if "DevTools listening on" in line)
            port = urllib.parse.urlparse(line.split()[-1]).port
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list") as answer:
                target = next(one for one in json.load(answer) if one["type"] == "page")
            with connect(target["webSocketDebuggerUrl"], max_size=None) as socket:
                yield Browser(socket)
        finally:
            os.killpg(process.pid, signal.SIGKILL)  # the program is a script, which has started others
            process.wait()


@pytest.fixture
def browser():
    if not any(map(shutil.which, BROWSERS)):
        pytest.skip(f"there is no {BROWSERS[0]}")
    pytest.importorskip("websockets", reason="there is no websockets")
    with browsing() as found:
        yield found
