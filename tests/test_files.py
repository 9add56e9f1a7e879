"""Files whole or not there, rows wholly or not at all, locks that outlive nobody, names that one process has."""

import errno
import json
import os
import platform
import subprocess
import sys
import threading

import pytest

from sinfusion import files
from sinfusion.errors import SinfusionError
from sinfusion.files import LOCK, Owner, acquire, append_row, atomic_write, put, release, remove, rows, sole_writer


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), KeyboardInterrupt()])
def test_what_is_not_whole_leaves_what_was_there_before(tmp_path, error):
    (tmp_path / "a").write_text("old")
    with pytest.raises(type(error)), atomic_write(tmp_path / "a") as temporary:
        temporary.write_text("ha")
        raise error
    assert names(tmp_path) == ["a"] and (tmp_path / "a").read_text() == "old"


@pytest.mark.parametrize("exchanged", [True, False])
def test_a_folder_takes_the_place_of_a_folder(tmp_path, monkeypatch, exchanged):
    if not exchanged:  # as where there is no renameat2
        monkeypatch.setattr(files.sys, "platform", "darwin")
    for content in ("old", "new"):
        with atomic_write(tmp_path / "a") as temporary:
            temporary.mkdir()
            (temporary / content).write_text(content)
    assert names(tmp_path) == ["a"] and names(tmp_path / "a") == ["new"]


@pytest.mark.parametrize("exchanged", [True, False])
def test_what_came_to_be_meanwhile_is_not_written_over_unasked(tmp_path, monkeypatch, exchanged):
    if not exchanged:
        monkeypatch.setattr(files.sys, "platform", "darwin")
    with (
        pytest.raises(SinfusionError, match="a exists; pass --overwrite"),
        atomic_write(tmp_path / "a", False) as temporary,
    ):
        temporary.write_text("mine")
        (tmp_path / "a").write_text("theirs")
    assert names(tmp_path) == ["a"] and (tmp_path / "a").read_text() == "theirs"


def test_file_and_folder_are_on_the_disk_before_and_after_the_name_is_given(tmp_path, monkeypatch):
    said, fsync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda d: said.append(os.readlink(f"/proc/self/fd/{d}")) or fsync(d))
    monkeypatch.setattr(os, "replace", lambda a, b: said.append("renamed") or replace(a, b))
    (tmp_path / "new").mkdir()
    (tmp_path / "new/part").write_text("x")
    put(tmp_path / "new", tmp_path / "a")
    assert said == [*(str(tmp_path / name) for name in ("new/part", "new")), "renamed", str(tmp_path)]


def test_a_folder_that_is_removed_is_never_seen_in_part(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/part").write_text("x")
    seen = []
    monkeypatch.setattr(files.shutil, "rmtree", lambda *_, **__: seen.append((tmp_path / "a").exists()))
    remove(tmp_path / "a")
    assert seen == [False]


def test_rows_come_back_and_one_cut_short_by_a_kill_harms_no_other(tmp_path):
    path = tmp_path / "rows.jsonl"
    assert rows(path) == []
    append_row(path, {"a": 1})
    with path.open("ab") as file:
        file.write(b'{"b": 2')
    append_row(path, {"c": 3})
    assert rows(path) == [{"a": 1}, {"c": 3}]


def test_a_row_that_a_full_disk_cuts_short_is_taken_back(tmp_path, monkeypatch):
    path, write = tmp_path / "rows.jsonl", os.write
    append_row(path, {"a": 1})
    calls = []

    def full(descriptor, data):
        calls.append(data)
        if len(calls) == 1:
            return write(descriptor, data[:3])
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="full"):
        append_row(path, {"b": 2})
    assert path.read_text() == '{"a": 1}\n'


def test_a_folder_has_one_writer_at_a_time(tmp_path):
    code = f"from sinfusion.files import *\nfrom pathlib import Path\nwith sole_writer(Path({str(tmp_path)!r})): pass"
    with sole_writer(tmp_path):
        owner = (tmp_path / LOCK).read_text().split("\n")
        assert owner[0] == str(os.getpid()) and platform.node() in owner
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment())
        assert f"{tmp_path} is being written by process {os.getpid()}: wait for it, or stop it." in done.stderr
        with pytest.raises(SinfusionError, match="is being written"), sole_writer(tmp_path):
            pass
        assert (tmp_path / LOCK).exists()
    assert names(tmp_path) == []
    assert subprocess.run([sys.executable, "-c", code], env=environment()).returncode == 0


def environment():
    from pathlib import Path

    return {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}


def stored(path, owner):
    path.write_text(f"{owner.process}\n{owner.started}\n{owner.machine}\n")


def test_the_lock_of_a_process_that_is_gone_is_taken_over(tmp_path):
    lock = tmp_path / "lock"
    child = subprocess.Popen([sys.executable, "-c", "pass"])
    child.wait()
    here = Owner.here()
    for stale in (Owner(child.pid, here.machine, "1"), Owner(here.process, here.machine, "1")):  # dead; a reused number
        stored(lock, stale)
        assert acquire(lock) is None
        release(lock)
        assert not lock.exists()
    lock.write_text("")  # killed before it wrote who it is
    assert acquire(lock) is None


def test_a_process_that_only_its_parent_still_knows_is_gone(tmp_path):
    child = os.fork()
    if child == 0:
        acquire(tmp_path / "lock")
        os._exit(0)
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    assert acquire(tmp_path / "lock") is None
    os.waitpid(child, 0)


def test_the_lock_of_another_machine_is_believed_and_named(tmp_path):
    stored(tmp_path / LOCK, Owner(1, "elsewhere", "1"))
    with pytest.raises(SinfusionError, match=r"by process 1 on elsewhere: .* if it is no longer there, remove "):
        with sole_writer(tmp_path):
            pass
    release(tmp_path / LOCK)
    assert (tmp_path / LOCK).exists()


def test_of_many_that_find_a_stale_lock_one_gets_it(tmp_path):
    stored(tmp_path / "lock", Owner(os.getpid(), platform.node(), "1"))
    start, got = threading.Barrier(8), []

    def try_it():
        start.wait()
        got.append(acquire(tmp_path / "lock"))

    threads = [threading.Thread(target=try_it) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got.count(None) == 1 and got.count(Owner.here()) == 7


def test_a_child_does_not_release_the_lock_of_its_parent(tmp_path):
    assert acquire(tmp_path / "lock") is None
    child = os.fork()
    if child == 0:
        release(tmp_path / "lock")
        os._exit(0)
    os.waitpid(child, 0)
    assert (tmp_path / "lock").exists()


def test_rows_are_json_lines(tmp_path):
    append_row(tmp_path / "a", {"x": [1, 2]}, durable=False)
    assert json.loads((tmp_path / "a").read_text()) == {"x": [1, 2]}
