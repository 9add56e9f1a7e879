"""Files that are whole or not there, and names that one process has for itself.

with beside(path) as temporary: write(temporary)    # it has its own name, and is on the disk, when it is whole
with sole_writer(folder): ...                       # or a sentence that names the process which writes there
append_row(path, {"step": 3})                       # a line of JSON, wholly or not at all; `rows` reads them back
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
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

TEMPORARY = ".writing-"  # how names begin of what is not whole yet, or is being removed
LOCK = ".writer"  # in a folder that one process at a time may write to
_NO_REPLACE, _EXCHANGE = 1, 2  # of renameat2, on Linux
_CANNOT = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP)  # what a file system says that does not know a request


# Whole or not there --------------------------------------------------------------------------------------------------


@contextmanager
def atomic_write(final: Path, overwrite: bool = True) -> Iterator[Path]:
    """Another name to write a file or a folder under: renamed when whole and on the disk, removed after an error.

    overwrite: whether to replace what has the name by then; otherwise that is a SinfusionError.
    """
    temporary = temporary_name(final)
    discard(temporary)
    try:
        yield temporary
        put(temporary, final, overwrite)
    finally:
        discard(temporary)


def temporary_name(final: Path) -> Path:
    """Where this process writes what will be `final`."""
    return final.with_name(f"{TEMPORARY}{os.getpid()}-{final.name}")


def put(temporary: Path, final: Path, overwrite: bool = True) -> None:
    """Give a whole file or folder its name, at once; all of it is on the disk then. What it replaces is removed."""
    for path in temporary.rglob("*") if temporary.is_dir() else ():
        synchronise(path)
    synchronise(temporary)
    if not overwrite:
        try:
            _rename(temporary, final, _NO_REPLACE)
        except FileExistsError:
            raise SinfusionError(f"{final} exists; pass --overwrite or choose another name.") from None
    elif final.exists() and (final.is_dir() or temporary.is_dir()):  # a folder is not renamed over something
        _rename(temporary, final, _EXCHANGE)
    else:
        os.replace(temporary, final)
    synchronise(final.parent)
    discard(temporary)


def _rename(temporary: Path, final: Path, flag: int) -> None:
    """Linux's renameat2; where there is none, two calls for one."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None) if sys.platform == "linux" else None
    if rename is not None:
        if rename(-100, os.fsencode(temporary.absolute()), -100, os.fsencode(final.absolute()), flag) == 0:
            return
        if (error := ctypes.get_errno()) not in _CANNOT:
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
    """Remove a file or a folder; a folder is never seen with a part of its files."""
    if path.is_dir() and not path.is_symlink():
        hidden = path.with_name(f"{TEMPORARY}{os.getpid()}-{path.name}-old")
        discard(hidden)
        os.replace(path, hidden)
        path = hidden
    discard(path)


def discard(path: Path) -> None:
    """Remove a file or a folder, if it is there and as far as that is possible."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def discard_leftovers(folder: Path, of: str | None = None) -> None:
    """Remove what a killed process has left half-written in a folder, or of one name, that no other process writes."""
    for path in folder.glob(f"{TEMPORARY}*"):
        if of is None or path.name.removeprefix(TEMPORARY).partition("-")[2] in (of, f"{of}-old"):
            discard(path)


def synchronise(path: Path) -> None:
    """Have a file, or the entries of a folder, on the disk; nothing where a platform cannot do that."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except PermissionError:
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (*_CANNOT, errno.EBADF, errno.EACCES):
            raise
    finally:
        os.close(descriptor)


# Lines ---------------------------------------------------------------------------------------------------------------


def append_row(path: Path, row: dict[str, Any], durable: bool = True) -> None:
    """Add a line of JSON to a file, wholly or not at all. durable: it is on the disk on return."""
    is_new = not path.exists()
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        size = os.fstat(descriptor).st_size
        ended = size == 0 or os.pread(descriptor, 1, size - 1) == b"\n"  # not so after a kill in the middle of a line
        line = ("" if ended else "\n") + json.dumps(row) + "\n"
        left = line.encode()
        try:
            while left:
                left = left[os.write(descriptor, left) :]
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
    """The rows of a file that were written wholly; none if it does not exist."""
    found = []
    for line in path.read_text(errors="replace").splitlines() if path.exists() else []:
        try:
            row = json.loads(line)
        except ValueError:  # a line cut short by a kill
            continue
        if isinstance(row, dict):
            found.append(row)
    return found


# One at a time -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Owner:
    """A process that holds a lock: its number, its machine, and when it began, since numbers are used again."""

    process: int
    machine: str
    began: str

    @staticmethod
    def here() -> Owner:
        """This process."""
        return Owner(os.getpid(), platform.node(), _began(os.getpid()) or "")

    def is_gone(self) -> bool:
        """Whether it has ended; of another machine nobody knows."""
        if self.machine != platform.node():
            return False
        began = _began(self.process)
        return began is None or (began != self.began and began != "")

    def __str__(self) -> str:
        return f"process {self.process}" + ("" if self.machine == platform.node() else f" on {self.machine}")


def _began(process: int) -> str | None:
    """When a process began, in the system's own units; None if it has ended, "" if the system does not tell."""
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
    """Take a lock file for this process, also from one that is gone; returns who holds it if that is another."""
    while True:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _alone(descriptor)
            if not _is(lock, descriptor):  # removed by its owner just now
                continue
            owner = _owner(os.pread(descriptor, 4096, 0))
            if owner is not None and not owner.is_gone():
                return owner
            os.ftruncate(descriptor, 0)
            try:
                here = Owner.here()
                os.pwrite(descriptor, f"{here.process}\n{here.began}\n{here.machine}\n".encode(), 0)
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
            _alone(descriptor)
            if _is(lock, descriptor) and _owner(os.pread(descriptor, 4096, 0)) == Owner.here():
                lock.unlink()
        finally:
            os.close(descriptor)


def _alone(descriptor: int) -> None:
    """Wait until no other process looks at the lock file; of no use on file systems without such locks."""
    with suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_EX)


def _is(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _owner(text: bytes) -> Owner | None:
    """Who a lock file names; None for one that a kill left empty."""
    try:
        process, began, machine, *_ = text.decode().split("\n")
        return Owner(int(process), machine, began)
    except ValueError:
        return None


@contextmanager
def sole_writer(folder: Path) -> Iterator[None]:
    """A folder, made if need be, that only this process writes to; SinfusionError while another one does."""
    made = make_folders(folder)
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
        remove_empty(made)


def make_folders(folder: Path) -> list[Path]:
    """Make a folder and those above it; returns the new ones, inner ones first."""
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in new:
        synchronise(path.parent)
    return new


def remove_empty(folders: list[Path]) -> None:
    """Remove those of the folders that nothing came into."""
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()
