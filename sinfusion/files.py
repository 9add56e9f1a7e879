"""Atomic writes of files and folders, JSON lines, and locks between processes.

with atomic_write(path) as temporary: write(temporary)   # `path` is complete and on the disk, or as it was before
with sole_writer(folder): ...                            # SinfusionError while another process writes there
append_row(path, {"step": 3})                            # a line of JSON, complete or not there; `rows` reads them
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import SinfusionError

TEMPORARY = ".writing-"  # prefix of the names of files that are being written or removed
LOCK = ".writer"  # name of the lock file in a folder that one process at a time may write to
_NO_REPLACE, _EXCHANGE = 1, 2  # of renameat2, on Linux
_UNSUPPORTED = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP)  # errors of file systems that lack an operation


# Atomic writes -------------------------------------------------------------------------------------------------------


@contextmanager
def atomic_write(final: Path, overwrite: bool = True) -> Iterator[Path]:
    """A temporary path to write a file or a folder to; it becomes `final` at the end, or is removed after an error.

    overwrite: whether to replace what is at `final` by then; if not, that is a SinfusionError.
    """
    temporary = temporary_name(final)
    discard(temporary)
    try:
        yield temporary
        put(temporary, final, overwrite)
    finally:
        discard(temporary)


def temporary_name(final: Path) -> Path:
    """The temporary path of this process for `final`, in the same folder."""
    return final.with_name(f"{TEMPORARY}{os.getpid()}-{final.name}")


def put(temporary: Path, final: Path, overwrite: bool = True) -> None:
    """Rename a complete file or folder to `final` atomically, after all of it is on the disk; remove what was there."""
    for path in temporary.rglob("*") if temporary.is_dir() else ():
        synchronise(path)
    synchronise(temporary)
    if not overwrite:
        try:
            _rename(temporary, final, _NO_REPLACE)
        except FileExistsError:
            raise SinfusionError(f"{final} exists; pass --overwrite or choose another name.") from None
    elif final.exists() and (final.is_dir() or temporary.is_dir()):  # a folder cannot be renamed onto another
        _rename(temporary, final, _EXCHANGE)
    else:
        os.replace(temporary, final)
    synchronise(final.parent)
    discard(temporary)


def _rename(temporary: Path, final: Path, flag: int) -> None:
    """Rename with renameat2 of Linux; where it is missing, by several calls, which a kill can come between."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None) if sys.platform == "linux" else None
    if rename is not None:
        if rename(-100, os.fsencode(temporary.absolute()), -100, os.fsencode(final.absolute()), flag) == 0:
            return
        if (error := ctypes.get_errno()) not in _UNSUPPORTED:
            raise OSError(error, os.strerror(error), str(final))
    if flag == _NO_REPLACE:
        if final.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(final))
        os.replace(temporary, final)
        return
    old = temporary.with_name(f"{temporary.name}-old")
    os.replace(final, old)
    os.replace(temporary, final)
    discard(old)


def remove(path: Path) -> None:
    """Remove a file or a folder; a folder disappears at once with all of its files."""
    if path.is_dir() and not path.is_symlink():
        hidden = path.with_name(f"{TEMPORARY}{os.getpid()}-{path.name}-old")
        discard(hidden)
        os.replace(path, hidden)
        path = hidden
    discard(path)


def discard(path: Path) -> None:
    """Remove a file or a folder if it exists; errors are ignored."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def discard_leftovers(folder: Path, of: str | None = None) -> None:
    """Remove temporary files that killed processes left in a folder; `of`: only those of the file with this name.

    No other process may be writing there.
    """
    for path in folder.glob(f"{TEMPORARY}*"):
        if of is None or path.name.removeprefix(TEMPORARY).partition("-")[2] in (of, f"{of}-old"):
            discard(path)


def synchronise(path: Path) -> None:
    """Write a file, or the entries of a folder, through to the disk, if the platform can do that."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except PermissionError:
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (*_UNSUPPORTED, errno.EBADF, errno.EACCES):
            raise
    finally:
        os.close(descriptor)


def sha256(path: Path) -> str:
    """Of a file, in hexadecimal digits."""
    digest, block = hashlib.sha256(), bytearray(1 << 22)
    with path.open("rb", buffering=0) as file:
        while size := file.readinto(block):
            digest.update(memoryview(block)[:size])
    return digest.hexdigest()


# JSON lines ----------------------------------------------------------------------------------------------------------


def append_row(path: Path, row: dict[str, Any], durable: bool = True) -> None:
    """Append a line of JSON to a file, completely or not at all. durable: it is on the disk on return."""
    is_new = not path.exists()
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        size = os.fstat(descriptor).st_size
        ended = size == 0 or os.pread(descriptor, 1, size - 1) == b"\n"  # not so after a kill in the middle of a line
        line = ("" if ended else "\n") + json.dumps(row) + "\n"
        remaining = line.encode()
        try:
            while remaining:
                remaining = remaining[os.write(descriptor, remaining) :]
            if durable:
                os.fsync(descriptor)
        except BaseException:
            os.ftruncate(descriptor, size)
            raise
    finally:
        os.close(descriptor)
    if is_new and durable:
        synchronise(path.parent)


def rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a file that were written completely; none if the file does not exist."""
    found = []
    for line in path.read_text(errors="replace").splitlines() if path.exists() else []:
        try:
            row = json.loads(line)
        except ValueError:  # a line that a kill cut short
            continue
        if isinstance(row, dict):
            found.append(row)
    return found


# Locks ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Owner:
    """A process that holds a lock."""

    process: int  # its number
    machine: str
    started: str  # when it started, because numbers are used again

    @staticmethod
    def here() -> Owner:
        """This process."""
        return Owner(os.getpid(), platform.node(), _start_of(os.getpid()) or "")

    def is_gone(self) -> bool:
        """Whether the process has ended; False on another machine, where that cannot be known."""
        if self.machine != platform.node():
            return False
        started = _start_of(self.process)
        return started is None or (started != self.started and started != "")

    def __str__(self) -> str:
        return f"process {self.process}" + ("" if self.machine == platform.node() else f" on {self.machine}")


def _start_of(process: int) -> str | None:
    """When a process started, in units of the system; None if it has ended, "" if the system does not say."""
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return None
    except PermissionError:  # another user's
        pass
    with suppress(OSError):
        state, *fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        return None if state in "ZX" else fields[18]
    words = ["ps", "-o", "lstart=", "-p", str(process)]
    with suppress(OSError):
        return subprocess.run(words, capture_output=True, text=True, check=False).stdout.strip()
    return ""


def acquire(lock: Path) -> Owner | None:
    """Take a lock for this process, also from a process that has ended.

    Returns None, or the process that holds the lock.
    """
    while True:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _flock(descriptor)
            if not _is_same(lock, descriptor):  # removed by its owner just now
                continue
            owner = _owner(os.pread(descriptor, 4096, 0))
            if owner is not None and not owner.is_gone():
                return owner
            os.ftruncate(descriptor, 0)
            try:
                here = Owner.here()
                os.pwrite(descriptor, f"{here.process}\n{here.started}\n{here.machine}\n".encode(), 0)
            except BaseException:  # a full disk
                lock.unlink()
                raise
            return None
        finally:
            os.close(descriptor)


def release(lock: Path) -> None:
    """Remove a lock file if this process holds it."""
    with suppress(FileNotFoundError):
        descriptor = os.open(lock, os.O_RDWR)
        try:
            _flock(descriptor)
            if _is_same(lock, descriptor) and _owner(os.pread(descriptor, 4096, 0)) == Owner.here():
                lock.unlink()
        finally:
            os.close(descriptor)


def _flock(descriptor: int) -> None:
    """Wait until no other process examines the lock file; without effect on file systems without flock."""
    with suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_EX)


def _is_same(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _owner(text: bytes) -> Owner | None:
    """The process that a lock file names; None if a kill left it empty."""
    try:
        process, started, machine, *_ = text.decode().split("\n")
        return Owner(int(process), machine, started)
    except ValueError:
        return None


def writer_of(folder: Path) -> Owner | None:
    """The process that `sole_writer` has given a folder to, if it is not known to have ended."""
    try:
        owner = _owner((folder / LOCK).read_bytes())
    except OSError:
        return None
    return None if owner is None or owner.is_gone() else owner


@contextmanager
def sole_writer(folder: Path) -> Iterator[None]:
    """Create a folder if needed, and lock it for this process; SinfusionError while another process has it."""
    new_folders = make_folders(folder)
    lock = folder / LOCK
    if owner := acquire(lock):
        hint = "wait for it, or stop it"
        if owner.machine != platform.node():
            hint += f"; if it is no longer there, remove {lock}"
        raise SinfusionError(f"{folder} is being written by {owner}: {hint}.")
    try:
        yield
    finally:
        release(lock)
        remove_empty(new_folders)


def make_folders(folder: Path) -> list[Path]:
    """Create a folder and its parents; returns those that are new, inner ones first."""
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in new:
        synchronise(path.parent)
    return new


def remove_empty(folders: list[Path]) -> None:
    """Remove those of the folders that are empty."""
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()
