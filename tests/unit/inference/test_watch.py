"""Watching a folder: nothing is answered before it is complete, and each scan once, over restarts too."""

from __future__ import annotations

import csv
import json
import logging
import os
import shutil
import signal
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ignite.engine import Events
from monai.engines import SupervisedEvaluator

from fairlung.pipeline.data.dataset import NewScanDataset
from fairlung.pipeline.inference import watch as watch_module
from fairlung.pipeline.inference.prediction_writer import AppendingPredictionWriter, PredictionWriter
from fairlung.pipeline.inference.scan_readers import ScanLoader, collate
from fairlung.pipeline.inference.watch import PARTIAL_SUFFIXES, WatchError, watch, watch_scans

QUIET, POLL = 10.0, 1.0
OLD = 1_000_000_000  # a time that copying programs may give to a file


class Clock:
    """A clock that only sleeping moves; on the way things happen in the folder."""

    def __init__(self, *events: tuple[float, Callable[[], Any]]) -> None:
        self.now = 0.0
        self.events = sorted(events, key=lambda event: event[0])

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        while self.events and self.events[0][0] <= self.now:
            self.events.pop(0)[1]()


@dataclass(frozen=True)
class Source:
    """A scan that goes on in further folders, as a DICOM series may."""

    path: str
    more: tuple[str, ...] = ()

    def __fspath__(self) -> str:
        return self.path


def write(path: Path, content: str = "x") -> None:
    """A file with an old time, as a copy may have."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    os.utime(path, ns=(OLD, OLD))


def writing(path: Path, content: str = "x") -> Callable[[], None]:
    return lambda: write(path, content)


def find(root: Path) -> list[dict[str, Any]]:
    """Folders with .dcm files, and .nii and .mhd files."""
    if not root.is_dir():
        raise FileNotFoundError(root)
    paths = {path.parent if path.suffix == ".dcm" else path for path in root.rglob("*.[dnm][cih][mid]")}
    return [{"image": str(path), "scan": path.relative_to(root).as_posix()} for path in sorted(paths)]


def answers(
    root: Path,
    *events: tuple[float, Callable[[], Any]],
    idle: float = 40.0,
    answered: Collection[str] = (),
    states: dict[str, Any] | None = None,
    find: Callable[[Path], list[dict[str, Any]]] = find,
) -> list[tuple[str, float]]:
    """(scan, when it was answered) in order, of a watch that ends when it is idle."""
    clock = Clock(*events)
    given: list[tuple[str, float]] = []
    known = set(answered)

    def answer(scans: list[Any]) -> None:
        given.extend((scan["scan"], clock.now) for scan in scans)
        known.update(scan["scan"] for scan in scans)

    watch(root, find, answer, lambda: known, QUIET, POLL, idle, clock=clock, sleep=clock.sleep, states=states)
    assert not clock.events
    return given


# --- when a scan is answered -----------------------------------------------------------------------------------------


def test_a_scan_is_answered_when_its_study_has_been_quiet(tmp_path: Path) -> None:
    files = [(time, writing(tmp_path / "study" / f"{i}.dcm")) for i, time in enumerate((2, 5, 9, 18))]
    ((name, when),) = answers(tmp_path, *files)
    assert name == "study"
    assert 18 + QUIET <= when <= 18 + QUIET + POLL


def test_what_was_there_before_waits_for_its_quiet_time_as_well(tmp_path: Path) -> None:
    """An old time says nothing: a program that copies may have set it."""
    write(tmp_path / "study" / "0.dcm")
    ((_, when),) = answers(tmp_path)
    assert QUIET <= when <= QUIET + POLL


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: write(folder / "0.dcm", "more"),
        lambda folder: write(folder / "0.dcm", "y"),  # of the same size, with the same old time
        lambda folder: write(folder / "sub" / "deeper" / "1.txt"),
        lambda folder: write(folder / ".0.dcm.Xy12"),  # as rsync names what it is copying
        lambda folder: (folder / "1.dcm").unlink(),
        lambda folder: (folder / "1.dcm").rename(folder / "2.dcm"),
    ],
)
def test_any_change_begins_the_quiet_time_anew(tmp_path: Path, change: Callable[[Path], None]) -> None:
    write(tmp_path / "study" / "0.dcm")
    write(tmp_path / "study" / "1.dcm")
    ((_, when),) = answers(tmp_path, (7, lambda: change(tmp_path / "study")))
    assert 7 + QUIET <= when <= 7 + QUIET + POLL


def test_the_whole_study_must_be_quiet_and_no_other(tmp_path: Path) -> None:
    write(tmp_path / "one" / "series 1" / "0.dcm")
    write(tmp_path / "two" / "0.dcm")
    found = answers(
        tmp_path, *((float(t), writing(tmp_path / "one" / "series 2" / f"{t}.dcm")) for t in range(2, 30, 3))
    )
    assert [name for name, _ in found] == ["two", "one/series 1", "one/series 2"]
    assert found[0][1] <= QUIET + POLL
    assert found[1][1] == found[2][1] >= 29 + QUIET


@pytest.mark.parametrize("suffix", PARTIAL_SUFFIXES)
def test_a_file_that_is_not_complete_delays_and_is_told(
    tmp_path: Path, suffix: str, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path / "study" / "0.dcm")
    partial = tmp_path / "study" / f"1.dcm{suffix}"
    write(partial)
    ((_, when),) = answers(tmp_path, (35, lambda: partial.rename(tmp_path / "study" / "1.dcm")))
    assert 35 + QUIET <= when <= 35 + QUIET + POLL
    told = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert told == [f"study waits for study/1.dcm{suffix} to be completed or removed"]


def test_what_stays_incomplete_is_named_at_the_end(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path / "study" / "0.dcm.part")
    assert answers(tmp_path) == []
    assert caplog.messages[-1] == "not quiet yet, so left for the next time: study"


def test_files_of_one_name_belong_together_and_others_do_not(tmp_path: Path) -> None:
    write(tmp_path / "a.nii")
    write(tmp_path / "b.nii")
    events = [(float(t), writing(tmp_path / f"{t}.nii")) for t in range(3, 20, 4)]
    events += [(8, writing(tmp_path / "b.json")), (15, (tmp_path / "b.json").unlink)]
    found = dict(answers(tmp_path, *events))
    assert len(found) == 7
    assert found["a.nii"] <= QUIET + POLL
    assert found["19.nii"] <= 19 + QUIET + POLL
    assert 15 + QUIET <= found["b.nii"] <= 15 + QUIET + POLL


def test_a_header_waits_for_every_file_beside_it(tmp_path: Path) -> None:
    """Its voxels may lie in a file of any name."""
    write(tmp_path / "ct.mhd")
    found = dict(answers(tmp_path, (6, writing(tmp_path / "voxels.raw")), (12, writing(tmp_path / "voxels.raw", "xx"))))
    assert 12 + QUIET <= found["ct.mhd"] <= 12 + QUIET + POLL


def test_a_scan_waits_for_the_folders_in_which_it_goes_on(tmp_path: Path) -> None:
    write(tmp_path / "one" / "0.dcm")

    def joined(root: Path) -> list[dict[str, Any]]:
        return [{"image": Source(str(root / "one"), (str(root / "two"),)), "scan": "one"}]

    ((_, when),) = answers(tmp_path, (4, writing(tmp_path / "two" / "0.dcm")), find=joined)
    assert when >= 4 + QUIET


def test_slices_that_lie_in_the_folder_itself_wait_for_each_other(tmp_path: Path) -> None:
    write(tmp_path / "0.dcm")
    write(tmp_path / "study" / "0.dcm")
    found = dict(answers(tmp_path, (6, writing(tmp_path / "1.dcm")), (9, writing(tmp_path / "study" / "1.dcm"))))
    assert 6 + QUIET <= found["."] <= 6 + QUIET + POLL
    assert found["study"] >= 9 + QUIET


def test_a_scan_out_of_an_archive_waits_for_the_archive(tmp_path: Path) -> None:
    """Its path is elsewhere; its name begins with that of the archive."""
    write(tmp_path / "in" / "scans.zip")
    write(tmp_path / "in" / "other.zip")

    def unpacked(root: Path) -> list[dict[str, Any]]:
        return [{"image": str(tmp_path / "unpacked" / name), "scan": f"{name}.zip/ct"} for name in ("scans", "other")]

    found = dict(answers(tmp_path / "in", (5, writing(tmp_path / "in" / "scans.zip", "xx")), find=unpacked))
    assert found["other.zip/ct"] <= QUIET + POLL
    assert found["scans.zip/ct"] >= 5 + QUIET


def test_a_study_that_goes_on_while_scans_are_looked_for_waits(tmp_path: Path) -> None:
    write(tmp_path / "study" / "0.dcm")
    grown = []

    def slow(root: Path) -> list[dict[str, Any]]:
        found = find(root)
        if not grown:
            grown.append(write(root / "study" / "1.dcm"))
        return found

    ((_, when),) = answers(tmp_path, find=slow)
    assert when >= 2 * QUIET


# --- once ------------------------------------------------------------------------------------------------------------


def test_each_scan_is_answered_once_and_those_of_before_not_again(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        write(tmp_path / name / "0.dcm")
    found = answers(
        tmp_path, (20, writing(tmp_path / "d" / "0.dcm")), (35, writing(tmp_path / "e.nii")), answered={"b"}
    )
    assert [name for name, _ in found] == ["a", "c", "d", "e.nii"]


HALF = pytest.mark.fault(
    "wrong", "a copy that stalls for longer than quiet_seconds",
    before="is answered from its half, and never again", now="is answered again when it has gone on",
)  # fmt: skip


@HALF
@pytest.mark.parametrize(
    "change",
    [
        lambda folder: write(folder / "1.dcm"),
        lambda folder: write(folder / "0.dcm", "more"),
        lambda folder: (folder / "0.dcm").write_text("y"),  # a copy that takes all its room first, and keeps no time
    ],
)
def test_a_copy_that_had_stalled_is_answered_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, change: Callable[[Path], None]
) -> None:
    for name in ("a", "b"):
        write(tmp_path / name / "0.dcm")
    found = answers(tmp_path, (20, lambda: change(tmp_path / "a")), answered={"b"})
    assert [name for name, _ in found] == ["a", "a"]
    assert found[1][1] >= 20 + QUIET
    told = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert told == ["a has changed since it was answered, and is answered again"]


@HALF
def test_a_copy_that_goes_on_while_nobody_watches_is_answered_again(tmp_path: Path) -> None:
    states: dict[str, Any] = {}
    for name in ("a", "b"):
        write(tmp_path / name / "0.dcm")
    assert [name for name, _ in answers(tmp_path, states=states)] == ["a", "b"]
    write(tmp_path / "a" / "1.dcm")
    assert [name for name, _ in answers(tmp_path, states=states, answered={"a", "b"})] == ["a"]


def test_a_scan_that_is_tidied_away_keeps_its_answer(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for path in ("a/0.dcm", "b/0.dcm", "b/1.dcm"):
        write(tmp_path / path)
    events = [(20.0, lambda: shutil.rmtree(tmp_path / "a")), (20.0, lambda: (tmp_path / "b" / "1.dcm").unlink())]
    found = answers(tmp_path, *events, (90, writing(tmp_path / "c" / "0.dcm")), idle=90)
    assert [name for name, _ in found] == ["a", "b", "c"]
    told = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert told == ["b has lost files since it was answered; its answer stays"]


def test_a_series_that_comes_later_is_a_new_scan(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path / "study" / "1" / "0.dcm")
    found = answers(tmp_path, (20, writing(tmp_path / "study" / "2" / "0.dcm")))
    assert [name for name, _ in found] == ["study/1", "study/2"]
    assert not [record for record in caplog.records if record.levelno == logging.WARNING]


Change = tuple[float, int, int, str]


@settings(max_examples=40)
@given(
    st.lists(
        st.tuples(
            st.floats(0.5, 60), st.integers(0, 2), st.integers(0, 2), st.sampled_from(["write", "remove", "part"])
        ),
        max_size=25,
    )
)
def test_whatever_comes_when_nothing_is_answered_too_early_or_twice(changes: list[Change]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        last: dict[str, float] = {}
        clock = Clock()
        given: list[tuple[str, float]] = []

        def change(when: float, study: int, file: int, kind: str) -> None:
            path = root / f"study {study}" / f"series {file % 2}" / f"{file}.dcm"
            before = path.exists()
            if kind == "write":
                write(path, f"{when}")
            elif kind == "part" and before:
                path.rename(path.with_suffix(".dcm.part"))
            elif kind == "remove":
                path.unlink(missing_ok=True)
            if kind == "write" or before:
                last[f"study {study}"] = when

        def answer(scans: list[Any]) -> None:
            for scan in scans:
                study = Path(scan["scan"]).parts[0]
                assert clock.now - last[study] >= QUIET
                assert not list((root / study).rglob("*.part"))
                given.append((scan["scan"], clock.now))

        clock.events = [(when, lambda c=(when, *rest): change(*c)) for when, *rest in sorted(changes)]  # type: ignore[misc]
        watch(root, find, answer, lambda: (), QUIET, POLL, 61, clock=clock, sleep=clock.sleep)
        names = [name for name, _ in given]
        assert len(names) == len(set(names))
        if root.is_dir():
            complete = {scan["scan"] for scan in find(root) if not list((root / scan["scan"]).parent.rglob("*.part"))}
            assert complete <= set(names)


# --- the loop --------------------------------------------------------------------------------------------------------


def test_the_folder_may_come_later_and_fail_for_a_while(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    failures = [OSError(116, "Stale file handle"), PermissionError(13, "Permission denied")]

    def unsteady(root: Path) -> list[dict[str, Any]]:
        if failures:
            raise failures.pop(0)
        return find(root)

    root = tmp_path / "in"
    ((_, when),) = answers(root, (5, writing(root / "study" / "0.dcm")), find=unsteady)
    assert 5 + QUIET + 2 * POLL <= when <= 5 + QUIET + 3 * POLL
    told = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert told == [
        f"{root} cannot be searched for scans now: {why}" for why in ("Stale file handle", "Permission denied")
    ]


def test_scans_are_looked_for_only_when_something_new_is_quiet(tmp_path: Path) -> None:
    """Looking opens files; in a folder of thousands of studies that is not for every few seconds."""
    calls = []

    def counted(root: Path) -> list[dict[str, Any]]:
        calls.append(root)
        return find(root)

    write(tmp_path / "study" / "0.dcm")
    write(tmp_path / "notes.txt")
    answers(tmp_path, (60, writing(tmp_path / "later" / "0.dcm")), find=counted, idle=200)
    assert len(calls) == 2


def test_a_slow_folder_is_looked_at_less_often(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    looks = []

    def slow(root: Path) -> dict[str, Any]:
        looks.append(clock.now)
        clock.now += 3
        return {}

    monkeypatch.setattr(watch_module, "look", slow)
    watch(tmp_path, find, lambda scans: None, lambda: (), QUIET, POLL, 100, clock=clock, sleep=clock.sleep)
    assert looks == [0, 30, 60, 90, 120]


def test_it_ends_when_idle_but_not_before_what_came_is_answered(tmp_path: Path) -> None:
    """Idleness shorter than the quiet time must not leave a study behind."""
    assert [name for name, _ in answers(tmp_path, (3, writing(tmp_path / "a" / "0.dcm")), idle=4)] == ["a"]


def test_without_idle_seconds_it_goes_on_until_stopped(tmp_path: Path) -> None:
    clock = Clock()
    watch(
        tmp_path, find, pytest.fail, lambda: (), QUIET, POLL, None,
        stopped=lambda: clock.now > 10_000, clock=clock, sleep=clock.sleep,
    )  # fmt: skip
    assert clock.now > 10_000


@pytest.mark.parametrize(
    ("times", "said"),
    [
        ({"quiet_seconds": -1}, "quiet_seconds must be at least 0, got -1"),
        ({"poll_seconds": 0}, "poll_seconds must be positive, got 0"),
        ({"idle_seconds": -2}, "idle_seconds must be at least 0 or null, got -2"),
    ],
)
def test_times_out_of_range(tmp_path: Path, times: dict[str, float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        watch(tmp_path, find, pytest.fail, lambda: (), **times)


def test_a_file_cannot_be_watched(tmp_path: Path) -> None:
    write(tmp_path / "ct.nii")
    with pytest.raises(WatchError, match="only a folder can be watched"):
        watch(tmp_path / "ct.nii", find, pytest.fail, lambda: ())


def test_a_link_that_leads_back_up_is_followed_once(tmp_path: Path) -> None:
    write(tmp_path / "study" / "0.dcm")
    (tmp_path / "study" / "up").symlink_to(tmp_path)
    assert watch_module.look(tmp_path)["study"].keys() == {"study/0.dcm"}


@pytest.mark.slow
def test_a_slow_copy_is_answered_when_it_is_complete(tmp_path: Path) -> None:
    """With the real clock, and times that the copy keeps."""
    source = tmp_path / "source"
    for i in range(8):
        write(source / f"{i}.dcm", "x" * 100)
    (tmp_path / "in").mkdir()

    def copy() -> None:
        for i in range(8):
            target = tmp_path / "in" / "study" / f"{i}.dcm"
            target.parent.mkdir(exist_ok=True)
            with target.open("w") as file:
                for _ in range(2):
                    file.write("x" * 50)
                    file.flush()
                    time.sleep(0.06)
            shutil.copystat(source / target.name, target)

    seen = []

    def answer(scans: list[Any]) -> None:
        seen.extend((scan["scan"], [file.stat().st_size for file in Path(scan["image"]).iterdir()]) for scan in scans)

    thread = threading.Thread(target=copy)
    thread.start()
    watch(tmp_path / "in", find, answer, lambda: (), quiet_seconds=2.5, poll_seconds=0.02, idle_seconds=2.6)
    thread.join()
    assert seen == [("study", [100] * 8)]


# --- with an engine --------------------------------------------------------------------------------------------------

CLASSES = ["normal", "covid19"]


class Fill:
    """A volume filled with the number that stands in the scan's first file."""

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        return {"image": torch.full((1, 2, 2, 2), float((Path(item["image"]) / "0.dcm").read_text()))}


class Job:
    """An inference on a folder, as a new process sets it up."""

    def __init__(self, folder: Path, at_batch: Callable[[int], None] = lambda number: None) -> None:
        self.root = folder / "in"
        self.table = folder / "out" / "predictions.csv"
        self.predictions = AppendingPredictionWriter(self.table, CLASSES)
        network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(8, 2))
        self.evaluator = SupervisedEvaluator(
            "cpu",
            ScanLoader(NewScanDataset([], Fill(), (1, 2, 2, 2)), batch_size=2),
            network=network,
            val_handlers=[self.predictions],
            decollate=False,
        )
        self.evaluator.add_event_handler(Events.ITERATION_STARTED, lambda engine: at_batch(engine.state.iteration))

    def run(self, idle_seconds: float | None = 0.1) -> Job:
        watch_scans(self.evaluator, self.predictions, self.root, find, 0.05, 0.01, idle_seconds)
        return self

    def rows(self) -> list[tuple[str, str]]:
        with self.table.open(newline="") as file:
            return [(row["scan"], row["status"]) for row in csv.DictReader(file)]


@pytest.fixture
def handlers_stay() -> Iterator[None]:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    yield
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_run_answers_in_rounds_and_a_second_goes_on(tmp_path: Path, handlers_stay: None) -> None:
    for i in range(3):
        write(tmp_path / "in" / f"{i}" / "0.dcm", f"{i}")
    write(tmp_path / "in" / "3" / "0.dcm", "broken")
    late = threading.Timer(0.3, write, (tmp_path / "in" / "4" / "0.dcm", "4"))
    late.start()
    first = Job(tmp_path).run(idle_seconds=0.6)
    late.join()
    assert first.rows() == [("0", "ok"), ("1", "ok"), ("2", "ok"), ("3", "failed"), ("4", "ok")]
    assert first.predictions.counts["failed"] == 1
    write(tmp_path / "in" / "5" / "0.dcm", "5")
    assert [name for name, _ in Job(tmp_path).run().rows()] == ["0", "1", "2", "3", "4", "5"]


@HALF
def test_the_row_of_a_scan_that_changed_is_replaced(tmp_path: Path) -> None:
    for i in range(3):
        write(tmp_path / "in" / f"{i}" / "0.dcm", "broken" if i == 1 else f"{i}")
    assert Job(tmp_path).run().rows() == [("0", "ok"), ("1", "failed"), ("2", "ok")]
    write(tmp_path / "in" / "1" / "0.dcm", "1")
    write(tmp_path / "in" / "3" / "0.dcm", "3")
    second = Job(tmp_path).run()
    assert second.rows() == [(f"{i}", "ok") for i in range(4)]
    assert second.predictions.counts == Counter(ok=4)
    objects = json.loads(second.table.with_suffix(".json").read_text())
    assert [(found["scan"], found["status"]) for found in objects] == second.rows()


def test_a_row_stays_until_the_new_one_is_written(tmp_path: Path) -> None:
    class Killed(BaseException):
        pass

    def kill(number: int) -> None:
        if number == 2:
            raise Killed

    for i in range(4):
        write(tmp_path / "in" / f"{i}" / "0.dcm", "broken")
    Job(tmp_path).run()
    for i in range(4):
        write(tmp_path / "in" / f"{i}" / "0.dcm", f"{i}")
    again = Job(tmp_path, kill)
    with pytest.raises(Killed):
        again.run()
    assert again.rows() == [(f"{i}", "failed") for i in range(4)] + [("0", "ok"), ("1", "ok")]
    assert Job(tmp_path).run().rows() == [(f"{i}", "ok") for i in range(4)]


def test_what_a_killed_process_did_not_answer_the_next_one_does(tmp_path: Path) -> None:
    for i in range(7):
        write(tmp_path / "in" / f"{i}" / "0.dcm", f"{i}")

    class Killed(BaseException):
        pass

    def kill(number: int) -> None:
        if number == 3:
            raise Killed

    first = Job(tmp_path, kill)
    with pytest.raises(Killed):
        first.run()
    assert [name for name, _ in first.rows()] == ["0", "1", "2", "3"]
    with first.table.open("a") as file:
        file.write("4,normal,0.5")  # a row that was being written
    assert Job(tmp_path).run().rows() == [(f"{i}", "ok") for i in range(7)]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_after_the_running_batch(tmp_path: Path, number: int, handlers_stay: None) -> None:
    for i in range(7):
        write(tmp_path / "in" / f"{i}" / "0.dcm", f"{i}")
    first = Job(tmp_path, lambda batch: os.kill(os.getpid(), number) if batch == 2 else None)
    completed = []
    first.evaluator.add_event_handler(Events.EPOCH_COMPLETED, completed.append)
    first.run(idle_seconds=None)
    assert [name for name, _ in first.rows()] == ["0", "1", "2", "3"]
    assert len(completed) == 1
    assert [name for name, _ in Job(tmp_path).run().rows()] == [f"{i}" for i in range(7)]


def test_a_signal_ends_it_while_nothing_comes(tmp_path: Path, handlers_stay: None) -> None:
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGTERM)).start()
    begin = time.monotonic()
    Job(tmp_path).run(idle_seconds=None)
    assert time.monotonic() - begin < 60


def test_a_signal_ends_it_while_a_scan_is_being_read(tmp_path: Path, handlers_stay: None) -> None:
    """A scan that hangs must not hold up the end for the minutes that it may take."""

    class Hanging(ScanLoader):
        def with_data(self, data: Any) -> Hanging:
            return Hanging(self.dataset.with_data(data), self.batch_size)

        def __iter__(self) -> Iterator[dict[str, Any]]:
            if self._stopped:
                return
            yield collate([self.dataset[0], self.dataset[1]])
            os.kill(os.getpid(), signal.SIGTERM)
            deadline = time.monotonic() + 60
            while not self._stopped:
                assert time.monotonic() < deadline
                time.sleep(0.01)

    for i in range(5):
        write(tmp_path / "in" / f"{i}" / "0.dcm", f"{i}")
    first = Job(tmp_path)
    first.evaluator.data_loader = Hanging(first.evaluator.data_loader.dataset, 2)
    first.run(idle_seconds=None)
    assert [name for name, _ in first.rows()] == ["0", "1"]
    assert [name for name, _ in Job(tmp_path).run().rows()] == [f"{i}" for i in range(5)]


def test_a_table_that_each_round_would_begin_anew_is_refused(tmp_path: Path) -> None:
    job = Job(tmp_path)
    job.predictions = PredictionWriter(tmp_path / "predictions.csv", CLASSES)
    with pytest.raises(ValueError, match="append"):
        job.run()
