"""The page: small, of one piece, and with nothing that its policy forbids."""

import re
from pathlib import Path

import sinfusion.studio
from sinfusion.studio.safety import POLICY

PAGE = Path(sinfusion.studio.__file__).parent / "page"


def test_the_page_is_small():
    assert sum(path.stat().st_size for path in PAGE.iterdir()) < 60_000
    assert sorted(path.name for path in PAGE.iterdir()) == ["icon.svg", "index.html", "page.css", "page.js"]


def test_nothing_is_inline_and_nothing_is_foreign():
    html = (PAGE / "index.html").read_text()
    assert not re.search(r"<style|\sstyle=|\son\w+=|javascript:|<script(?![^>]*\ssrc=)", html)
    for path in PAGE.iterdir():
        text = path.read_text().replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?://|url\((?!#)|@import|eval\(|innerHTML|insertAdjacentHTML|document\.write", text)


def test_every_control_of_the_page_has_a_name():
    html = (PAGE / "index.html").read_text()
    assert 'lang="en"' in html and "viewport" in html and "<main" in html and 'role="status"' in html
    assert all("aria-label" in tag for tag in re.findall(r"<(?:nav|progress)[^>]*>", html))
    assert html.count("<label") == len(re.findall(r"<input", html))


def test_every_answer_has_the_headers_of_safety(studio, clip_id):
    for path in (
        "",
        "page.css",
        "page.js",
        "icon.svg",
        "api/state",
        f"api/clips/{clip_id}/poster.png",
        "api/nothing",
        "x",
    ):
        _, headers, _ = studio.raw("GET", studio.base + path)
        assert headers["content-security-policy"] == POLICY, path
        assert headers["x-content-type-options"] == "nosniff" and headers["referrer-policy"] == "no-referrer"
        assert headers["cache-control"] == "no-store" and "access-control-allow-origin" not in headers
        assert "server" not in headers
    assert studio.raw("GET", "/")[1]["content-security-policy"] == POLICY
    assert "unsafe" not in POLICY and "*" not in POLICY and POLICY.startswith("default-src 'none'")


def test_the_page_and_its_files_are_served(studio):
    kinds = {"": "text/html", "page.css": "text/css", "page.js": "text/javascript", "icon.svg": "image/svg+xml"}
    for name, kind in kinds.items():
        status, headers, content = studio.raw("GET", studio.base + name)
        assert status == 200 and headers["content-type"].startswith(kind)
        assert content == (PAGE / (name or "index.html")).read_bytes()
