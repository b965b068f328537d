"""Answering a folder that fills: each scan once, as soon as nothing of its study has changed for a while.

The folder is looked at again and again, because a file server's reports of changes are not to be relied on.
"""

import hashlib
import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import FrameType
from typing import Any

from ignite.engine import Events
from monai.engines import Evaluator

from fairlung.transforms.addresses import is_remote, shown
from fairlung.transforms.checks import check_setting

from ..common.distributed import gather_interleaved, world_size
from ..common.errors import UserError
from ..common.files import append_durably
from ..common.text import one_line
from .parts import own_share
from .prediction_writer import AppendingPredictionWriter, PredictionWriter
from .scan_readers import ScanLoader

logger = logging.getLogger(__name__)
Scan = Mapping[str, Any]
State = tuple[int, str]  # how many files a scan has, and the digest of their names, sizes and times
Stamp = tuple[int, int, int]  # size in bytes, times of the last change of content and of the file, in nanoseconds

# what copying programs call a file that is not complete
PARTIAL_SUFFIXES = (".part", ".partial", ".filepart", ".tmp", ".temp", ".crdownload", ".download", "~")
HEADER_SUFFIXES = (".mhd", ".nhdr")  # of files whose voxels lie in a file of any name beside them
LOOKING_SHARE = 10  # looking at a huge or slow folder takes at most one part in so many of the time
WAKE_SECONDS = 0.2  # how long a signal may wait


class WatchError(UserError, ValueError):
    """A folder cannot be watched."""


def look(root: str | Path) -> dict[str, dict[str, Stamp]]:
    """Stamps of the readable files below a folder, hidden ones too: {name of its entry: {relative path: stamp}}."""
    found: dict[str, dict[str, Stamp]] = {}
    for path, stamp in _files(os.fspath(root), "", frozenset()):
        found.setdefault(path.partition("/")[0], {})[path] = stamp
    return found


def _files(folder: str, prefix: str, above: frozenset[str]) -> Iterator[tuple[str, Stamp]]:
    here = os.path.realpath(folder)
    if here in above:  # a link that leads back up
        return
    entries: list[os.DirEntry[str]] = []
    with suppress(OSError):
        entries = list(os.scandir(folder))
    for entry in entries:
        with suppress(OSError):
            if entry.is_dir():
                yield from _files(entry.path, f"{prefix}{entry.name}/", above | {here})
            else:
                status = entry.stat()
                yield prefix + entry.name, (status.st_size, status.st_mtime_ns, status.st_ctime_ns)


@dataclass
class _Entry:
    """A file or folder of the watched folder, as it was last seen."""

    files: dict[str, Stamp]
    since: float  # when it was first seen so
    is_file: bool
    settled: bool = False  # scans were looked for in it as it is
    told: bool = False  # that it waits for an incomplete file

    @cached_property
    def partial(self) -> str | None:
        """A file in it that is not complete."""
        return next((path for path in self.files if path.lower().endswith(PARTIAL_SUFFIXES)), None)


class _Folder:
    """The watched folder: what was seen, and since when by our own clock, as copies keep the times of the original."""

    def __init__(self, root: Path, quiet_seconds: float, now: float) -> None:
        self.root, self.quiet_seconds = root, quiet_seconds
        self.entries: dict[str, _Entry] = {}
        self.changed = now  # when anything last did
        self._by_stem: dict[str, set[str]] = {}

    def update(self, now: float) -> None:
        seen = look(self.root)
        gone = self.entries.keys() - seen.keys()
        for name in gone:
            del self.entries[name]
            for other in self._by_stem.get(_stem(name), set()) - gone:
                self.entries[other].since = now
        for name, files in seen.items():
            if name not in self.entries or self.entries[name].files != files:
                self.entries[name] = _Entry(files, now, name in files)
                self.changed = now
        if gone:  # another may have waited for it
            self.changed = now
            for entry in self.entries.values():
                entry.settled = False
        self._by_stem = {}
        for name, entry in self.entries.items():
            if entry.is_file:
                self._by_stem.setdefault(_stem(name), set()).add(name)

    def is_quiet(self, name: str, now: float) -> bool:
        entry = self.entries[name]
        return now - entry.since >= self.quiet_seconds and entry.partial is None

    def tell_partial(self, now: float) -> None:
        """Say once of each entry that an incomplete file, which does not grow, keeps its scans from an answer."""
        for name, entry in self.entries.items():
            if entry.partial and not entry.told and now - entry.since >= self.quiet_seconds:
                entry.told = True
                logger.warning("%s waits for %s to be completed or removed", name, entry.partial)

    def entries_of(self, scan: Scan) -> set[str]:
        """Names of the entries that must be quiet before a scan is read; of a scan that lies elsewhere, all."""
        names: set[str] = set()
        for path in self._paths(scan):
            first, _, below = path.partition("/")
            entry = self.entries.get(first)
            if path == "." or (path.lower().endswith(HEADER_SUFFIXES) and not below):
                names |= {name for name, each in self.entries.items() if each.is_file}
            elif entry is None:
                names |= set(self.entries)
            else:
                names |= self._by_stem[_stem(first)] if entry.is_file else {first}
        return names

    def state(self, scan: Scan) -> State:
        """Of a scan's files: itself, or the files directly in its folders."""
        wanted = set(self._paths(scan))
        files = sorted(
            (path, size, changed)
            for name in self.entries_of(scan)
            for path, (size, changed, _) in self.entries[name].files.items()
            if path in wanted or (path.rpartition("/")[0] or ".") in wanted
        )
        return len(files), hashlib.sha256(repr(files).encode()).hexdigest()

    def _paths(self, scan: Scan) -> list[str]:
        """A scan's paths (``more`` of a source too), relative to the folder; its name for what lies elsewhere."""
        paths = [os.fspath(scan["image"]), *getattr(scan["image"], "more", ())]
        relative = [Path(os.path.relpath(path, self.root)).as_posix() for path in paths]
        return [scan["scan"] if path.split("/")[0] == ".." else path for path in relative]


def _stem(name: str) -> str:
    """A file's name up to the first dot; a hidden one's, as copying programs use them, after its leading dot."""
    return name.lstrip(".").partition(".")[0]


def watch(
    root: str | Path,
    find: Callable[[Path], Sequence[Scan]],
    answer: Callable[[list[Scan]], None],
    answered: Callable[[], Collection[str]],
    quiet_seconds: float = 60.0,
    poll_seconds: float = 5.0,
    idle_seconds: float | None = None,
    *,
    states: dict[str, State] | None = None,
    stopped: Callable[[], bool] = lambda: False,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Answer the scans of a folder as they arrive, each once, and again when it has changed.

    A scan is answered when names, sizes and times of all files of its study have been the same for ``quiet_seconds``,
    and none of them has the name of an incomplete one. The study is the entry of ``root`` that the scan lies in, with
    everything below it; of a file that lies in ``root`` itself, the files of the same name up to the first dot.
    A scan whose files have changed since it was answered, such as by a copy that had stalled, is answered again; one
    that has lost files keeps its answer.

    Args:
        root: the folder; it may not exist yet, and a file is a WatchError.
        find: the scans in it, ``{"image": path or source, "scan": name}``; FileNotFoundError is none.
        answered: names of the scans that have an answer, from an earlier run as well.
        states: of the scans when they were answered, by this run or an earlier one; what is answered is added.
        idle_seconds: end when nothing has changed for so long, and nothing waits for its quiet time; None = never.
        stopped: whether to end; asked between rounds, and before each look.
    """
    check_setting("quiet_seconds", quiet_seconds, quiet_seconds >= 0, "at least 0")
    check_setting("poll_seconds", poll_seconds, poll_seconds > 0, "positive")
    check_setting("idle_seconds", idle_seconds, idle_seconds is None or idle_seconds >= 0, "at least 0 or null")
    if is_remote(root):
        raise WatchError(f"only a local folder can be watched, and {shown(str(root))} is an address")
    root = Path(root).expanduser()
    if root.exists() and not root.is_dir():
        raise WatchError(f"only a folder can be watched, and {root} is a file")
    folder = _Folder(root, quiet_seconds, clock())
    rounds = _Rounds(folder, find, answer, answered, clock, {} if states is None else states)
    logger.info("watching %s: a scan is answered when its study has not changed for %g s", root, quiet_seconds)
    while not stopped():
        now = clock()
        folder.update(now)
        took = clock() - now
        given = rounds.run(now)
        if stopped():
            break
        if given:
            logger.info("%d scans answered; watching %s", given, root)
        # now, not the time after the round: what became quiet meanwhile is not looked for yet
        if idle_seconds is not None and now - folder.changed >= max(idle_seconds, quiet_seconds):
            logger.info("nothing new for %g s", idle_seconds)
            break
        sleep(max(poll_seconds, (LOOKING_SHARE - 1) * took))
    now = clock()
    if waiting := [name for name in folder.entries if not folder.is_quiet(name, now)]:
        logger.warning("not quiet yet, so left for the next time: %s", ", ".join(waiting))


@dataclass
class _Rounds:
    """After each look at the folder: which scans are to be answered, and which have changed since they were."""

    folder: _Folder
    find: Callable[[Path], Sequence[Scan]]
    answer: Callable[[list[Scan]], None]
    answered: Callable[[], Collection[str]]
    clock: Callable[[], float]
    states: dict[str, State]  # of the scans when they were answered
    done: set[str] = field(default_factory=set)  # by this run, whatever a table says

    def run(self, now: float) -> int:
        """How many scans were given to be answered."""
        entries = self.folder.entries.items()
        fresh = [entry for name, entry in entries if not entry.settled and self.folder.is_quiet(name, now)]
        self.folder.tell_partial(now)
        if not fresh or (scans := self._found()) is None:
            return 0
        now = self.clock()
        self.folder.update(now)  # finding may take long, and a study may have gone on meanwhile
        answered = {*self.answered(), *self.done}
        ready: list[Scan] = []
        states: dict[str, State] = {}
        for scan in scans:
            name = scan["scan"]
            if not all(self.folder.is_quiet(entry, now) for entry in self.folder.entries_of(scan)):
                continue
            state = states[name] = self.folder.state(scan)
            known = self.states.get(name, state)
            if name not in answered:
                ready.append(scan)
            elif state[0] < known[0]:  # somebody tidies up
                logger.warning("%s has lost files since it was answered; its answer stays", one_line(name))
            elif state != known:
                logger.warning("%s has changed since it was answered, and is answered again", one_line(name))
                ready.append(scan)
        for entry in fresh:
            entry.settled = True
        if ready:
            self.answer(ready)
            self.done |= {scan["scan"] for scan in ready}
            self.folder.changed = self.clock()
        answered = set(self.answered())
        new = {name: state for name, state in states.items() if name in answered and self.states.get(name) != state}
        if new:
            self.states.update(new)
        return len(ready)

    def _found(self) -> Sequence[Scan] | None:
        try:
            return self.find(self.folder.root)
        except FileNotFoundError:  # there is none
            return []
        except OSError as error:
            logger.warning("%s cannot be searched for scans now: %s", self.folder.root, error.strerror or error)
            return None


class _States(dict[str, State]):
    """States of scans by name, which :meth:`update` also adds to a file; the last line of a scan counts."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        for line in path.read_bytes().splitlines() if path.exists() else []:
            with suppress(ValueError):  # it was cut off
                name, count, digest = json.loads(line)
                self[name] = count, digest

    def update(self, states: Mapping[str, State]) -> None:  # type: ignore[override]
        super().update(states)
        append_durably(
            self.path, b"".join(json.dumps([name, *state]).encode() + b"\n" for name, state in states.items())
        )


def run_inference(evaluator: Evaluator, predictions: PredictionWriter, *watched: Any) -> None:
    """In place of ``evaluator.run()``: :func:`watch_scans` of what is to be watched, else :func:`run_until_stopped`."""
    if watched:
        watch_scans(evaluator, predictions, *watched)
    else:
        run_until_stopped(evaluator, predictions)


def watch_scans(
    evaluator: Evaluator, predictions: PredictionWriter, root: str | Path, find: Callable[[Path], Sequence[Scan]],
    quiet_seconds: float = 60.0, poll_seconds: float = 5.0, idle_seconds: float | None = None,
) -> None:  # fmt: skip
    """In place of ``evaluator.run()``: an epoch for each round of :func:`watch`, until a signal or idleness ends it.

    SIGINT and SIGTERM end it after the running batch, and at once while it waits for scans to come or to be read; what
    is not answered then, the next process answers. A second signal has its usual effect.

    The evaluator's data loader is a :class:`~.ScanLoader`, whose data are replaced; among its handlers is
    ``predictions``, an :class:`~.AppendingPredictionWriter`, which knows what earlier processes answered.
    """
    if not isinstance(predictions, AppendingPredictionWriter):
        raise ValueError("predictions must be written with append, or each round would begin the table anew")
    if world_size() > 1:
        raise WatchError("a folder is watched by one process, not by several")
    predictions.begin()
    loader = evaluator.data_loader
    stop = Stop(evaluator)
    states = _States(predictions.path.with_name(f".{predictions.path.stem}.watched.jsonl"))

    def answer(scans: list[Scan]) -> None:
        predictions.answer_again(scan["scan"] for scan in scans)
        _run(evaluator, loader, scans, stop)

    with stop.by_signals():
        pauses = quiet_seconds, poll_seconds, idle_seconds
        stops: dict[str, Any] = {"stopped": lambda: stop.asked != 0, "sleep": stop.sleep}
        watch(root, find, answer, lambda: predictions.answered, *pauses, states=states, **stops)


def run_until_stopped(evaluator: Evaluator, predictions: PredictionWriter) -> None:
    """In place of ``evaluator.run()``: SIGINT and SIGTERM end it in order, with exit code 128 and their number.

    That is after the running batch, or at once while it waits for scans to be read; the table is completed with what
    was answered until then. A second signal has its usual effect. Scans that have a row already (``append``) are not
    read again. The data loader is a :class:`~.ScanLoader`. Several processes share the scans, and end together.
    """
    stop, loader = Stop(evaluator), evaluator.data_loader
    answer_left(loader.dataset.data, predictions, stop, lambda scans: _run(evaluator, loader, scans, stop))


def answer_left(
    scans: Sequence[Scan], predictions: PredictionWriter, stop: "Stop", answer: Callable[[Sequence[Scan]], None]
) -> None:
    """Have this process's share of the scans that have no row yet answered, until a signal ends it with its exit code.

    ``answer`` ends when ``stop`` is asked, and leaves a table of what was answered until then.
    """
    predictions.begin()
    left = [scan for scan in scans if scan["scan"] not in predictions.answered]
    if len(left) < len(scans):
        logger.info("%d of %d scans have a row in %s", len(scans) - len(left), len(scans), predictions.path)
    with stop.by_signals():
        if share := own_share(left, lambda scan: scan["scan"]):
            answer(share)
        stop.asked = max(gather_interleaved([stop.asked]))
        predictions.join([scan["scan"] for scan in scans])
    if stop.asked:
        said = "stopped by signal %d: the scans answered until then are in %s; --append True goes on with the others"
        logger.warning(said, stop.asked, predictions.path)
        sys.exit(128 + stop.asked)


def _run(evaluator: Evaluator, loader: ScanLoader, scans: Sequence[Scan], stop: "Stop") -> None:
    """An epoch over scans."""
    evaluator.data_loader = loader.with_data(scans)
    evaluator.state.epoch_length = len(evaluator.data_loader)
    stop.ends(evaluator.data_loader.stop)
    evaluator.run()


class Stop:
    """The signal that has asked a run, such as an engine's, for its end; 0: none. It is a plain number: a handler must
    not wait."""

    def __init__(self, engine: Evaluator | None = None) -> None:
        self.asked = 0
        self._end: Callable[[], None] = lambda: None

        def end_if_stopped(engine: Evaluator) -> None:
            if self.asked:
                engine.terminate_epoch()  # not terminate(): the epoch's handlers complete the table

        if engine is not None:
            engine.add_event_handler(Events.ITERATION_COMPLETED, end_if_stopped)

    def sleep(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while not self.asked and (left := until - time.monotonic()) > 0:
            time.sleep(min(left, WAKE_SECONDS))

    def ends(self, end: Callable[[], None]) -> None:
        """Have a signal call ``end``; at once if one has come already."""
        self._end = end
        if self.asked:
            end()

    @contextmanager
    def by_signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():  # others may not handle signals
            yield
            return

        def ask(number: int, frame: FrameType | None) -> None:
            restore()
            self.asked = number
            self._end()

        previous = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}

        def restore() -> None:
            for number, handler in previous.items():
                signal.signal(number, handler)

        try:
            yield
        finally:
            restore()
