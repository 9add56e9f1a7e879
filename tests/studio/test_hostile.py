"""Requests that the studio's page never makes: each is refused, with a sentence, and changes nothing."""

import asyncio
import json
import os
import socket
import struct
import subprocess
import sys
import zlib

import pytest

from sinfusion.errors import SinfusionError
from sinfusion.studio import checking, workers

JSON = {"Content-Type": "application/json"}


@pytest.fixture
def names(studio):
    """All that lies in the studio's folder, but its log; must be the same after a test."""

    def listing():
        found = [path.relative_to(studio.folder).as_posix() for path in studio.folder.rglob("*")]
        return sorted(name for name in found if not name.startswith("studio.log"))

    before = listing()
    yield before
    assert listing() == before


def refused(answer, status, words=""):
    found, body = answer[0], answer[-1]
    sentence = body["error"] if isinstance(body, dict) else body.decode()
    assert found == status, (found, sentence)
    assert words in sentence and len(sentence) < 400, sentence
    assert "/tmp" not in sentence and "Traceback" not in sentence, sentence


# Who asks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/", "/api/state", "/wrong/", "/wrong/api/state", "//api/state", "/favicon.ico"])
def test_without_the_token_nothing_is_there(studio, names, path):
    refused(studio.raw("GET", path), 403, "token")


def test_a_part_of_the_token_is_not_enough(studio, names):
    for path in (studio.base[:-3] + "/", studio.base[:-1] + "x/", studio.base.upper(), studio.base[:-1]):
        refused(studio.raw("GET", path), 403, "token")


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:{port}", "127.0.0.1", "localhost:1", "0.0.0.0:{port}", ""]
)
def test_another_host_name_is_refused_though_it_points_here(studio, names, host):
    refused(studio.raw("GET", studio.base, headers={"Host": host.format(port=studio.port)}), 403, "127.0.0.1")


def test_localhost_is_this_machine_too(studio):
    host = f"localhost:{studio.port}"
    assert studio.raw("GET", studio.base, headers={"Host": host, "Origin": f"http://{host}"})[0] == 200


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "https://127.0.0.1:{port}", "http://127.0.0.1:1"])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_another_page_may_not_ask(studio, names, method, origin):
    headers = {"Origin": origin.format(port=studio.port), **JSON}
    refused(studio.raw(method, f"{studio.base}api/state", b"{}", headers), 403, "another page")


def test_what_changes_something_must_say_which_page_asks(studio, names, clip_id):
    for method, path in (("POST", "api/jobs"), ("PUT", "api/clips?name=a.mp4"), ("DELETE", f"api/clips/{clip_id}")):
        refused(studio.raw(method, studio.base + path, b"{}", JSON), 403, "another page")


def test_a_request_across_sites_is_refused(studio, names):
    for site in ("cross-site", "same-site"):
        refused(studio("GET", "api/state", Sec_Fetch_Site=site), 403, "another page")
        refused(studio("GET", "api/state", Sec_Fetch_Site=site, Sec_Fetch_Dest="document"), 403, "another page")
        refused(studio("GET", "", Sec_Fetch_Site=site, Sec_Fetch_Dest="iframe"), 403, "another page")
        assert studio("GET", "", Sec_Fetch_Site=site, Sec_Fetch_Dest="document")[0] == 200  # a link to the page


def test_a_form_cannot_pretend_to_be_json(studio, names, clip_id):
    body = json.dumps({"kind": "clips", "id": clip_id, "options": {}}).encode()
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""):
        refused(studio("POST", "api/train", body, Content_Type=kind), 415, "JSON")


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
def test_other_methods_do_nothing(studio, names, method):
    assert studio(method, "api/state")[0] in (404, 405)


def test_there_is_no_other_door(studio):
    """Neither another address of this machine nor a web socket."""
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.2", studio.port), timeout=5)
    headers = {
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Key": "x" * 24,
        "Sec-WebSocket-Version": "13",
    }
    assert studio.raw("GET", f"{studio.base}api/live", headers=headers)[0] == 404


# Where ---------------------------------------------------------------------------------------------------------------

UPWARD = [
    "../studio.log", "..%2fstudio.log", "%2e%2e/studio.log", "..%5cstudio.log", "api/clips/../../studio.log",
    "api/clips/..%2f..%2f/poster.png", "api/clips/%2e%2e/clip.json", "studio.log", "studio.json", "page.js%00.css",
    "api/runs/fish/run.json", "api/runs/..%2fruns%2ffish/frame.png", "//etc/passwd", "api/clips//etc/passwd",
]  # fmt: skip


@pytest.mark.parametrize("path", UPWARD)
def test_paths_lead_nowhere(studio, names, path):
    status, _, body = studio.raw("GET", studio.base + path)
    assert status in (400, 403, 404) and b"root:" not in body, (status, body)


@pytest.mark.parametrize("name", ["source.mp4", "clip.json", "../clip.json", "..", "download.mp4"])
def test_only_pictures_and_videos_of_a_clip_are_served(studio, names, clip_id, name):
    assert studio("GET", f"api/clips/{clip_id}/{name}")[0] == 404


def test_unknown_ids_are_unknown(studio, names, run_ids):
    for id in ("000000000000", "fish", "..", "%2e%2e", "a" * 250, ""):
        assert studio("GET", f"api/clips/{id}/poster.png")[0] == 404
    for id in ("fish", "../runs/fish", str(studio.folder / "runs" / "fish")):
        refused(studio("POST", "api/play", {"id": id, "options": {}}), 404, "no such run")
        refused(studio("POST", "api/jobs", {"verb": "loop", "kind": "runs", "id": id, "options": {}}), 404)
        refused(studio("POST", "api/train", {"kind": "runs", "id": id}), 404)
    refused(studio("POST", "api/jobs", {"verb": "loop", "kind": "/etc", "id": run_ids["fish"], "options": {}}), 400)


def test_links_out_of_the_folder_are_not_followed(studio, tmp_path, names, clip_id):
    name = studio.one("clips", clip_id)["name"]
    link, secret = studio.folder / "clips" / "clip-999", tmp_path / "secret"
    secret.mkdir()
    (secret / "clip.json").write_text('{"label": "secret"}')
    (secret / "poster.png").write_bytes(b"secret")
    link.symlink_to(secret)
    inside = studio.folder / "clips" / name / "view.png"
    inside.symlink_to(secret / "poster.png")
    try:
        assert "secret" not in json.dumps(studio.state())
        assert studio("GET", f"api/clips/{clip_id}/view.png")[0] == 404
    finally:
        link.unlink()
        inside.unlink()


def test_runs_are_not_removed(studio, names, run_ids):
    refused(studio("DELETE", f"api/runs/{run_ids['fish']}"), 403, "runs are not removed")


# What ----------------------------------------------------------------------------------------------------------------


def png_that_says(width, height):
    """A PNG whose header promises so many pixels, and that has few."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(10**6))) + chunk(b"IEND", b"")
    )


def gif_of(frames):
    """A GIF of so many frames of 1x1, of which each takes 20 bytes."""
    frame = b"\x21\xf9\x04\x00\x02\x00\x00\x00\x2c\x00\x00\x00\x00\x01\x00\x01\x00\x00\x02\x02\x44\x01\x00"
    return b"GIF89a\x01\x00\x01\x00\x80\x00\x00\x00\x00\x00\xff\xff\xff" + frame * frames + b";"


BROKEN = {
    "nothing.mp4": (b"", ""),
    "noise.mp4": (os.urandom(5000), ""),
    "short.png": (png_that_says(64, 64)[:60], ""),
    "bomb.png": (png_that_says(60000, 60000), ""),
    "endless.gif": (gif_of(6000), "cut it to at most"),
    "list.mp4": (b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n", "playlist"),
    "list.txt": (b"ffconcat version 1.0\nfile /etc/passwd\n", "playlist"),
    "page.svg": (b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>', ""),
    "weights.pt": (b"PK\x03\x04" + bytes(200), ""),
}


def test_what_cannot_be_decoded_does_not_count(studio, names):
    refused(studio("PUT", "api/clips?name=bomb.png", BROKEN["bomb.png"][0]), 400, "bomb.png")


@pytest.mark.parametrize("name", BROKEN)
def test_the_check_of_uploads_says_what_is_wrong(tmp_path, capsys, monkeypatch, name):
    content, words = BROKEN[name]
    source = tmp_path / f"source{os.path.splitext(name)[1]}"
    source.write_bytes(content)
    monkeypatch.setattr(checking, "limit", lambda: None)  # of this process, which has other things to do
    checking.main([str(source), str(tmp_path), name])
    error = json.loads(capsys.readouterr().out)["error"]
    assert name in error and words in error and str(tmp_path) not in error and "source." not in error
    assert list(tmp_path.iterdir()) == [source]


LIMITED = """
import resource
from sinfusion.studio.checking import MEMORY, limit
limit()
import torch, av
try:
    bytearray(MEMORY)
    print("given")
except MemoryError:
    print("refused", resource.getrlimit(resource.RLIMIT_CPU)[0], resource.getrlimit(resource.RLIMIT_FSIZE)[0])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the limit of memory is Linux's")
def test_the_check_of_uploads_has_limits():
    printed = subprocess.run([sys.executable, "-c", LIMITED], capture_output=True, text=True, check=True).stdout
    assert printed.split() == ["refused", str(checking.SECONDS), str(checking.WRITTEN)]


def test_a_check_that_does_not_end_is_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "CHECK_SECONDS", 0.1)
    (tmp_path / "source.gif").write_bytes(gif_of(2000))
    with pytest.raises(SinfusionError, match=r"a\.gif takes too long"):
        asyncio.run(workers.check_upload(tmp_path / "source.gif", tmp_path, "a.gif", tmp_path / "log"))


def test_what_is_too_large_is_refused_before_it_comes(studio, names):
    refused(studio("PUT", "api/clips?name=a.mp4", b"", Content_Length="3000000000"), 413, "larger")
    assert studio("PUT", "api/clips?name=a.mp4", b"", Content_Length="9" * 30)[0] in (400, 413)


def test_an_upload_must_say_how_long_it_is(studio, names):
    body = iter([b"abc", b"def"])  # sent in chunks
    refused(studio.raw("PUT", f"{studio.base}api/clips?name=a.mp4", body, {"Origin": studio.origin}), 411, "how long")


def test_an_upload_that_breaks_off_leaves_nothing(studio, names):
    with socket.create_connection(("127.0.0.1", studio.port)) as connection:
        head = f"PUT {studio.base}api/clips?name=a.mp4 HTTP/1.1\r\nHost: 127.0.0.1:{studio.port}\r\n"
        connection.sendall(f"{head}Origin: {studio.origin}\r\nContent-Length: 100000\r\n\r\n".encode() + b"x" * 500)
        studio.until(lambda: list((studio.folder / "clips").glob(".upload-*")))
    studio.until(lambda: not list((studio.folder / "clips").glob(".upload-*")))


def test_a_request_that_is_too_long_or_no_json_is_refused(studio, names):
    for body, status in (
        (b"x" * 70000, 413),
        (b"{", 400),
        (b"[" * 5000, 400),
        (b"[]", 400),
        (b'{"a": 1}', 400),
        (b"\xff", 400),
    ):
        refused(studio("POST", "api/jobs", body, **{"Content_Type": "application/json"}), status)


OUT_OF_RANGE = [
    {"size": [100000, 100000]}, {"size": [1, 1]}, {"size": "64x64"}, {"size": [64.5, 64]}, {"size": [10**400, 64]},
    {"frames": 10**9}, {"frames": 10**400}, {"frames": True}, {"seed": -1}, {"seed": 2**40}, {"noise": 1e300},
    {"noise": "much"}, {"max_side": 100000}, {"out": "/etc/passwd"}, {"input": "/etc/passwd"}, ["seed"], "seed",
]  # fmt: skip


@pytest.mark.parametrize("options", OUT_OF_RANGE, ids=range(len(OUT_OF_RANGE)))
def test_options_out_of_range_are_refused(studio, names, clip_id, options):
    refused(studio("POST", "api/jobs", {"verb": "patches", "kind": "clips", "id": clip_id, "options": options}), 400)


def test_what_is_no_number_is_out_of_range(studio, names, clip_id):
    for word in (b"NaN", b"Infinity", b"-Infinity", b"1e400"):
        body = b'{"verb": "patches", "kind": "clips", "id": "%s", "options": {"noise": %s}}' % (clip_id.encode(), word)
        refused(studio("POST", "api/jobs", body, Content_Type="application/json"), 400, "noise must be")


def test_verbs_that_are_none_are_refused(studio, names, clip_id, run_ids):
    for verb, kind, id in (("exec", "clips", clip_id), ("gif", "clips", clip_id), ("next", "runs", run_ids["fish"]),
                           ("inpaint", "clips", clip_id), ("patches", "runs", run_ids["fish"])):  # fmt: skip
        refused(studio("POST", "api/jobs", {"verb": verb, "kind": kind, "id": id, "options": {}}), 400)
    refused(studio("POST", "api/jobs", {"verb": ["patches"], "kind": "clips", "id": clip_id}), 400)


def test_a_painting_must_be_as_large_as_it_says(studio, names, clip_id):
    where = f"api/paintings?verb=inpaint&kind=clips&id={clip_id}"
    refused(studio("POST", f"{where}&width=24&height=x", b"1"), 400)
    refused(studio("POST", f"{where}&width=100000&height=100000", b"1"), 400)
    refused(studio("POST", f"{where}&width=24&height=16", b"x" * (5 << 20)), 413)
    assert studio.made(studio("POST", f"{where}&width=24&height=16", b"1"))["state"] == "failed"
    nothing = studio.made(studio("POST", f"{where}&width=24&height=16", bytes(24 * 16 * 4)))
    assert "nothing is painted" in nothing["error"]


def test_a_page_that_does_not_play_gets_no_frames(studio, names, run_ids):
    _, old = studio("POST", "api/play", {"id": run_ids["fish"], "options": {"start": 0}})
    _, new = studio("POST", "api/play", {"id": run_ids["fish"], "options": {"start": 0}})
    for session in ("", old["session"], "0" * 16, None, 5):
        status, answer = studio("POST", "api/next", {"session": session, "after": None, "settings": {}})
        assert status in (400, 409), answer
    for after in (0, 7, -1, "0"):  # nothing was generated yet
        refused(studio("POST", "api/next", {"session": new["session"], "after": after, "settings": {}}), 400)
    refused(studio("POST", "api/keep", {"session": new["session"], "frame": 0}), 400, "no frame")
    refused(studio("POST", "api/play", {"id": run_ids["fish"], "options": {"start": 500}}), 400, "does not exist")


def test_nothing_is_stopped_that_does_not_train(studio, names, run_ids):
    refused(studio("POST", "api/stop", {"id": run_ids["fish"]}), 400, "not being trained")
    refused(studio("POST", "api/stop", {"id": "1"}), 404)
