"""One process a folder, by a lock that says who holds it; and temporary folders that a kill leaves to the next process.

The lock is the system's (flock), so it ends with its process, however that ends. Beside it stands who holds it. What a
process of another host says there is believed, as not every network file system knows the other's locks: where that
host is gone, the error names the files to remove. The empty lock file stays in the folder: a process that has opened it
would lock a file that is gone while the next one locks a new one, and both would work there.
"""

import atexit
import json
import logging
import multiprocessing
import os
import platform
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from .errors import UserError
from .files import json_or_nothing

logger = logging.getLogger(__name__)

LOCK, OWNER = ".fairlung.lock", ".fairlung.owner.json"
PATIENCE = 60.0  # seconds; the loader processes of a killed training hold its lock until they notice
POLL = 0.2  # seconds
BOOT = Path("/proc/sys/kernel/random/boot_id")  # one for all containers of a machine, another after each start of it
_held: dict[tuple[int, Path], FileLock] = {}  # by process: one that is forked inherits them, and holds none


class FolderError(UserError, OSError):
    """A folder in which another process works, or that cannot be written to."""


def claim(folder: str | Path) -> None:
    """Make this process the one that works in a folder, until :func:`release` or its end; it may claim it twice.

    Of the processes of one training the first one claims. FolderError: another process has it, or it cannot be written.
    """
    from .distributed import is_primary  # brings torch, which archives do without

    if is_primary():
        _claim(Path(folder).resolve())


def release(folder: str | Path) -> None:
    """Let others work in a folder; nothing where this process has not claimed it."""
    folder = Path(folder).resolve()
    if lock := _held.pop((os.getpid(), folder), None):
        with suppress(OSError):
            (folder / OWNER).unlink(missing_ok=True)
        lock.release(force=True)


@contextmanager
def claimed(folder: str | Path) -> Iterator[None]:
    """:func:`claim` for the block."""
    claim(folder)
    try:
        yield
    finally:
        release(folder)


def _claim(folder: Path) -> None:
    if (os.getpid(), folder) in _held:
        return
    lock = FileLock(folder / LOCK, thread_local=False)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _acquire(lock, folder)
        owner = json_or_nothing(folder / OWNER)
        if owner and not _is_here(owner):
            lock.release()
            raise FolderError(_in_use(folder, owner, OWNER))
        (folder / OWNER).write_text(json.dumps(_this_process()))
    except FolderError:
        raise
    except OSError as error:
        lock.release()
        raise FolderError(f"{folder} cannot be written to: {error.strerror or error}") from error
    _held[os.getpid(), folder] = lock


def _acquire(lock: FileLock, folder: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            lock.acquire(blocking=False)
            return
        except Timeout:
            owner = json_or_nothing(folder / OWNER)
        if (owner and _lives(owner)) or time.monotonic() > deadline:
            raise FolderError(_in_use(folder, owner, OWNER, LOCK))
        time.sleep(POLL)  # it has only begun, or it was killed and a process that it began has not ended yet


@atexit.register
def _release_all() -> None:
    for _, folder in list(_held):
        release(folder)


def _in_use(folder: Path, owner: dict[str, Any], *left: str) -> str:
    """Who has a folder, and what to do; of a process that is not known to live, what it has left is named."""
    process = f"process {owner.get('pid')} on {owner.get('host')}, since {owner.get('since')}"
    ended = f"if it has ended, remove {' and '.join(str(folder / name) for name in left)}; else "
    known = owner and _is_here(owner) and _lives(owner)
    who = process if owner else "another process"
    return f"{folder} is in use by {who}; {'' if known else ended}wait for its end, or choose another folder"


def _this_process() -> dict[str, Any]:
    import psutil  # type: ignore[import-untyped]

    begun, now = psutil.Process().create_time(), datetime.now().astimezone().isoformat(timespec="seconds")
    return {"pid": os.getpid(), "host": platform.node(), "boot": _boot(), "begun": begun, "since": now}


def _boot() -> str:
    with suppress(OSError):
        return BOOT.read_text().strip()
    return platform.node()


def _is_here(owner: dict[str, Any]) -> bool:
    """Whether an owner is, or was, a process of this machine, in whichever container, before whichever start."""
    return owner.get("boot") == _boot() or owner.get("host") == platform.node()


def _lives(owner: dict[str, Any]) -> bool:
    """Whether an owner still runs, as far as is known; a later process may have been given its number."""
    import psutil  # type: ignore[import-untyped]

    if not _is_here(owner):
        return True
    try:
        return abs(psutil.Process(owner["pid"]).create_time() - owner["begun"]) < 1
    except (psutil.Error, KeyError, TypeError, ValueError):
        return False


@contextmanager
def temporary_folder(parent: str | Path | None = None, prefix: str = "fairlung-") -> Iterator[Path]:
    """A folder for the block. One of this prefix that a killed process left beside it is removed; no stranger's is."""
    try:
        parent = Path(parent or tempfile.gettempdir())
        remove_abandoned(parent, prefix)
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent)).resolve()
    except OSError as error:
        raise FolderError(f"no temporary folder can be made: {error}") from error
    owner = os.getpid()
    try:
        _claim(folder)
        yield folder
    finally:
        if os.getpid() == owner:  # not a process that was forked meanwhile
            release(folder)
            shutil.rmtree(folder, ignore_errors=True)


def remove_abandoned(parent: Path, prefix: str) -> None:
    """Remove the temporary folders that processes of this user on this machine left when they were killed."""
    for folder in (parent / name for name in os.listdir(parent) if name.startswith(prefix)):
        with suppress(OSError):
            if folder.is_symlink() or folder.stat().st_uid != os.getuid():
                continue
            owner = json_or_nothing(folder / OWNER)  # written under the lock: who is about to claim has none yet
            if not owner or not _is_here(owner) or (os.getpid(), folder.resolve()) in _held:
                continue
            with suppress(Timeout), FileLock(folder / LOCK, blocking=False):
                logger.info("removing %s, which process %s left on %s", folder, owner.get("pid"), owner.get("since"))
                shutil.rmtree(folder, ignore_errors=True)


@cache
def process_folder() -> Path:
    """The temporary folder of this process, which goes when it ends."""
    stack = ExitStack()
    folder = stack.enter_context(temporary_folder())
    atexit.register(stack.close)
    return folder


def exit_on_sigterm() -> None:
    """Let SIGTERM, a scheduler's stop, end this process as sys.exit does, unless it has a handler already."""
    main = threading.current_thread() is threading.main_thread()
    if main and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))


def end_in_order() -> None:
    """:func:`exit_on_sigterm`, and let nothing of this process stay in the temporary folder after a kill."""
    exit_on_sigterm()
    with suppress(OSError):  # where multiprocessing puts its sockets; else in folders pymp-* that nobody removes
        multiprocessing.current_process()._config.setdefault("tempdir", str(process_folder()))  # type: ignore[attr-defined]
