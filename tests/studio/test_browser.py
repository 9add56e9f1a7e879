"""The real page in headless Chromium, on the clip of the demo. Set STUDIO_PICTURES to a folder to keep screenshots."""

import os
import time
from pathlib import Path

import numpy as np
import pytest

from sinfusion.cli.studio import Studio
from sinfusion.media import read_media, write_video
from sinfusion.scene import render

pytestmark = pytest.mark.slow

RESULT = "[...document.querySelectorAll('main a.tile video')].some(video => video.readyState >= 2)"
TRAINED = "document.querySelector('.state')?.textContent === 'Trained'"
BADGE = "document.querySelector('.badge')?.textContent"
WIDE = "document.documentElement.scrollWidth > document.documentElement.clientWidth"
WATCH = """(() => {
  const shown = document.querySelector('[alt="The frame that is shown"]');
  window.widths = [];
  shown.addEventListener('load', () => window.widths.push(shown.naturalWidth));
})()"""
ENLARGE = """(() => {
  const fields = [...document.querySelectorAll('label.field')];
  const size = fields.find(e => e.textContent.startsWith('Size')).querySelector('input');
  size.value = 150;
  size.dispatchEvent(new Event('input', { bubbles: true }));
  return window.widths.length;
})()"""  # fmt: skip
CHANGE = "(e => {{ e.{}; e.dispatchEvent(new Event('{}')); }})(document.querySelector('{}'))"
MIDDLE = """(() => {
  const box = document.querySelector('canvas.paint').getBoundingClientRect();
  return [box.left + box.width / 2, box.top + box.height / 2];
})()"""
CONTROLS = ("button", "slider", "spinbutton", "combobox", "link", "checkbox", "progressbar", "application")


@pytest.fixture
def picture(browser):
    folder = os.environ.get("STUDIO_PICTURES")

    def take(name, whole=False):
        if folder:
            time.sleep(0.6)  # videos have their first frame by then
            browser.screenshot(Path(folder) / f"{name}.png", whole)

    return take


def nameless(browser):
    """Controls that a screen reader has no name for."""
    browser.do("Accessibility.enable")
    nodes = browser.do("Accessibility.getFullAXTree")["nodes"]
    return [
        node
        for node in nodes
        if not node["ignored"] and node["role"]["value"] in CONTROLS and not node.get("name", {}).get("value")
    ]


def key(browser, name):
    for kind in ("keyDown", "keyUp"):
        browser.do("Input.dispatchKeyEvent", type=kind, key=name, text=name if len(name) == 1 else "")


def test_drop_learn_play_change_branch_keep_download_and_compare(tmp_path, start_server, browser, picture):
    write_video(tmp_path / "demo.mp4", render(), fps=16)
    browser.dark(True)
    browser.size(1280, 900)
    took = {}
    with start_server(tmp_path / "studio") as studio:
        browser.go(studio.address)
        picture("empty")
        # Drop.
        began = time.monotonic()
        browser.drop(tmp_path / "demo.mp4")
        browser.until(RESULT)
        took["drop to first result"] = time.monotonic() - began
        assert browser.js("document.querySelector('main h1').textContent") == "demo.mp4"
        picture("clip")
        # Learn, for half a minute; the page may be closed meanwhile.
        browser.js("document.querySelector('main input[type=number]').value = 0.5")
        browser.click("Train")
        browser.until("location.hash.startsWith('#runs/')")
        browser.until("document.querySelectorAll('svg.chart polyline').length > 0")
        where = browser.js("location.href")
        browser.go("about:blank")
        step = studio.state()["runs"][0]["models"][0]["done"]
        studio.until(lambda: studio.state()["runs"][0]["models"][0]["done"] > step)
        browser.go(where)
        browser.until(f"document.querySelector('.preview:not([hidden])') || {TRAINED}")
        picture("learning")
        browser.until(TRAINED)
        # Play thirty frames.
        browser.js(WATCH)
        began = time.monotonic()
        browser.click("Play")
        browser.until(f"{BADGE} === 'frame 30'")
        took["30 frames"] = time.monotonic() - began
        # What a slider says holds from the next frame on, or from the one after that.
        before = browser.js(ENLARGE)
        browser.until(f"window.widths.length > {before + 2}")
        widths = browser.js("window.widths")
        changed = next(i for i, width in enumerate(widths) if width != widths[0])
        took["frames from slider to change"] = changed + 1 - before
        assert changed + 1 - before <= 2, (before, widths)
        browser.click("Pause")
        picture("play")
        # Rewind and branch.
        length = browser.js("document.querySelector('[aria-label=Frame]').max * 1 + 1")
        browser.js(CHANGE.format("value = 10", "input", "[aria-label=Frame]"))
        browser.until(f"{BADGE} === 'frame 11'")
        browser.click("Branch here")
        browser.until(f"{BADGE} === 'frame 14'")
        browser.click("Pause")
        browser.click("Branch 1")
        assert browser.js(BADGE) == f"frame {length}"
        browser.click("Branch 2")
        # With the keyboard alone.
        browser.js("document.querySelector('.screen').focus()")
        at = browser.js(BADGE)
        key(browser, "ArrowLeft")
        assert browser.js(BADGE) != at
        key(browser, " ")
        browser.until("[...document.querySelectorAll('button')].some(e => e.textContent === 'Pause')")
        key(browser, " ")
        assert nameless(browser) == []
        # Keep, download.
        browser.click("Keep up to here")
        browser.until("location.hash.startsWith('#results/')")
        browser.do("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
        browser.click("MP4")
        studio.until(lambda: list(tmp_path.glob("result-*.mp4")))
        kept = read_media(studio.until(lambda: list(tmp_path.glob("result-*.mp4")))[0])
        assert len(kept.frames) > 10 and np.ptp(kept.frames) > 100
        # Compare.
        browser.js(CHANGE.format("selectedIndex = 1", "change", "main select"))
        browser.until("document.querySelectorAll('main video').length === 2")
        browser.click("Measure")
        browser.until("document.querySelectorAll('main tbody tr').length === 5")
        browser.until("document.querySelectorAll('main thead th').length === 4")
        picture("compare")
        # Narrow, and light.
        browser.size(390, 844, 2)
        for page in ("results", "runs", "clips"):
            browser.js(f"document.querySelector('#{page} a').click()")
            browser.until(f"location.hash.startsWith('#{page}/')")
            assert not browser.js(WIDE), page
            assert nameless(browser) == []
            picture(f"narrow-{page}", whole=True)
        browser.js("document.querySelector('#look').click()")
        picture("narrow-light")
        browser.size(1280, 900)
        picture("light")
        own = (studio.origin, "blob:", "about:", "data:")  # the last: pictures of the browser's own controls
        foreign = [url for url in browser.requests if not url.startswith(own)]
        assert foreign == [] and len(browser.requests) > 100
        assert browser.messages == []
    # The server is gone.
    browser.until("!document.querySelector('#trouble').hidden")
    assert "sinfusion studio" in browser.js("document.querySelector('#trouble').textContent")
    print(took)


def test_the_file_that_the_command_opens_leads_to_the_page(browser, tmp_path, studio):
    door = tmp_path / "open.html"
    Studio(folder=tmp_path, open=False)._show(studio.address, door)
    assert not door.exists()
    with pytest.MonkeyPatch.context() as patch:
        opened = []
        patch.setattr("webbrowser.open", opened.append)
        Studio(folder=tmp_path)._show(studio.address, door)
    assert door.stat().st_mode & 0o077 == 0 and studio.address not in opened[0]
    browser.do("Page.navigate", url=opened[0])
    browser.until("document.querySelector('main h1')?.textContent === 'One clip is enough.'")


def test_painting_and_names_that_try_to_be_more(browser, picture, studio, fish):
    name = "<img src=x onerror=alert(1)>.mp4"
    status, found = studio.upload(fish / "fish.mp4", name)
    assert status == 201
    browser.size(1280, 900)
    browser.go(f"{studio.address}#clips/{found['id']}")
    browser.until("document.querySelector('main h1')")
    assert browser.js("document.querySelector('main h1').textContent") == name
    assert browser.js("document.querySelectorAll('[onerror]').length") == 0
    browser.js("document.querySelector('canvas.paint').scrollIntoView({ block: 'center' })")
    x, y = browser.js(MIDDLE)
    for kind, shift in (("mousePressed", 0), ("mouseMoved", 30), ("mouseReleased", 30)):
        browser.do("Input.dispatchMouseEvent", type=kind, x=x + shift, y=y, button="left", buttons=1, clickCount=1)
    picture("painted")
    before = len(studio.state()["results"])
    browser.click("Fill it in")
    studio.until(lambda: len(studio.state()["results"]) > before)
    assert studio.state()["results"][0]["verb"] == "inpaint"
    # An error is a sentence beside the button.
    browser.click("Clear")
    browser.click("Fill it in")
    browser.until("[...document.querySelectorAll('.tile')].some(e => e.textContent.includes('Nothing is painted'))")
    assert nameless(browser) == []
    assert browser.messages == []
