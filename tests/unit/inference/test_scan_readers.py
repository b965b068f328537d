"""Loading for inference: every scan once and in order, whatever its reading does to the process that reads it."""

from __future__ import annotations

import ctypes
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from monai.engines import SupervisedEvaluator
from monai.transforms import Compose

from fairlung.pipeline.data.dataset import NewScanDataset
from fairlung.pipeline.inference.scan_readers import ReaderStartError, ScanLoader, collate
from fairlung.transforms.scan import new_record

SHAPE = (1, 2, 3, 4)
CRASHES = {"exit": 11, "segfault": -signal.SIGSEGV, "abort": -signal.SIGABRT}


class Read:
    """A transform that does what the name of the scan says; else the image is filled with the number in the name."""

    def __init__(self, log: Path | None = None, shape: tuple[int, ...] = SHAPE) -> None:
        self.log = log
        self.shape = shape

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        does, _, number = str(item["image"]).partition("-")
        if self.log is not None:
            with self.log.open("a") as file:
                file.write(f"{item['image']}\n")
        match does:
            case "hang":
                time.sleep(100)
            case "exit":
                os._exit(11)
            case "segfault":
                ctypes.string_at(0)
            case "abort":
                os.abort()
            case "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            case "killed once":
                marker = Path(number)
                if not marker.exists():
                    marker.touch()
                    os.kill(os.getpid(), signal.SIGKILL)
                return {"image": torch.ones(self.shape)}
            case "memory":
                raise MemoryError
            case "sys.exit":
                sys.exit(3)
            case "error":
                raise ValueError(f"{item['image']}: no scan")
            case "unpicklable":
                return {"image": torch.ones(self.shape), "intake": {"status": "ok", "reason": "", "odd": lambda: None}}
            case "noisy":
                print("NAME^PATIENT")
                os.system("echo NAME^PATIENT >&2")
            case "slow":
                time.sleep(0.3)
            case "threads":
                return {"image": torch.full(self.shape, float(torch.get_num_threads()))}
        return {"image": torch.full(self.shape, float(number)), "intake": {"status": "ok", "reason": "", "n": number}}


def loader(names: list[str], batch_size: int = 4, num_workers: int = 2, **settings: Any) -> ScanLoader:
    log, shape = settings.pop("log", None), settings.pop("shape", SHAPE)
    data = [{"image": name, "scan": f"scan {i}"} for i, name in enumerate(names)]
    return ScanLoader(NewScanDataset(data, Read(log, shape), shape), batch_size, num_workers, **settings)


def items(batches: Any) -> list[dict[str, Any]]:
    """The items of batches, one after the other."""
    return [{key: values[i] for key, values in batch.items()} for batch in batches for i in range(len(batch["scan"]))]


def readers() -> list[psutil.Process]:
    """Processes below this one that may be reading: all but the fork server and the resource tracker."""
    below = psutil.Process().children(recursive=True)
    servers = [child for child in psutil.Process().children() if "multiprocessing" in " ".join(child.cmdline())]
    return [child for child in below if child not in servers and child.status() != psutil.STATUS_ZOMBIE]


def wait_for(condition: Callable[[], bool]) -> None:
    """However busy the machine is."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """However an iteration ends, its processes end."""
    yield
    wait_for(lambda: readers() == [])


@pytest.mark.slow
def test_a_scan_that_hangs_or_crashes_its_reader_costs_no_other() -> None:
    names = ["ok-0", "exit-", "ok-2", "segfault-", "hang-", "ok-5", "abort-", "killed-", "ok-8", "memory-", "error-"]
    names += ["sys.exit-", "unpicklable-", "ok-13"]
    found = items(loader(names, timeout=4))
    assert [item["scan"] for item in found] == [f"scan {i}" for i in range(14)]
    for i, (name, item) in enumerate(zip(names, found, strict=True)):
        if name.startswith("ok"):
            assert item["reason"] == "" and item["intake"] == {"status": "ok", "reason": "", "n": str(i)}
            assert torch.equal(item["image"], torch.full(SHAPE, float(i)))
        else:
            assert item["intake"]["status"] == "refused" and item["intake"]["reason"] == item["reason"]
            assert torch.equal(item["image"], torch.zeros(SHAPE))
    reasons = {name: item["reason"] for name, item in zip(names, found, strict=True)}
    for kind, code in CRASHES.items():
        assert reasons[f"{kind}-"] == f"the reader crashed (exit code {code})"
    assert reasons["killed-"] == "the reader crashed (exit code -9): killed twice, most likely as memory ran out"
    assert reasons["hang-"] == "reading it took more than 4 s, stopped"
    assert reasons["memory-"] == "MemoryError: "
    assert reasons["error-"] == "error-: no scan"
    assert reasons["sys.exit-"] == "SystemExit: 3"
    assert "pickle" in reasons["unpicklable-"]


def test_sixty_scans_with_crashes_at_random_places(tmp_path: Path) -> None:
    draw = random.Random(7)
    bad = {place: draw.choice([*CRASHES, "error"]) for place in draw.sample(range(60), 15)}
    names = [f"{bad.get(i, 'ok')}-{i}" for i in range(60)]
    log = tmp_path / "log"
    batches = list(loader(names, log=log))
    assert [len(batch["scan"]) for batch in batches] == [4] * 15
    found = items(batches)
    assert [item["scan"] for item in found] == [f"scan {i}" for i in range(60)]
    assert {i for i, item in enumerate(found) if item["reason"]} == set(bad)
    assert all(item["image"].eq(i).all() for i, item in enumerate(found) if i not in bad)
    assert sorted(log.read_text().split()) == sorted(names)  # each was begun once, those beside a crash too


def test_a_scan_whose_reader_was_killed_gets_a_second_chance(tmp_path: Path) -> None:
    """When memory runs out the system may end the wrong process."""
    names = [f"killed once-{tmp_path / str(i)}" for i in range(3)]
    found = items(loader(["slow-0", *names, "slow-4"]))
    assert [item["reason"] for item in found] == [""] * 5
    assert all(item["image"].eq(1).all() for item in found[1:4])


def test_few_scans_are_ahead_of_those_asked_for(tmp_path: Path) -> None:
    """The memory that is needed does not grow with the number of scans."""
    log = tmp_path / "log"
    names = [f"ok-{i}" for i in range(30)]
    asked = 0
    for batch in loader(names, batch_size=3, log=log, prefetch=5):
        asked += len(batch["scan"])
        expected = min(30, asked + 5)
        wait_for(lambda expected=expected: len(log.read_text().split()) >= expected)  # type: ignore[misc]
        time.sleep(0.05)  # for one too many
        assert len(log.read_text().split()) == expected
    assert asked == 30


def test_loading_goes_on_while_a_batch_is_worked_on(tmp_path: Path) -> None:
    log = tmp_path / "log"
    batches = iter(loader([f"slow-{i}" for i in range(8)], batch_size=2, log=log))
    next(batches)
    wait_for(lambda: len(log.read_text().split()) >= 4)  # the next batch is read while nobody asks for it
    next(batches)
    batches.close()  # type: ignore[attr-defined]


def test_iterating_twice_gives_the_same() -> None:
    twice = loader([f"ok-{i}" for i in range(5)], batch_size=2)
    first, second = items(twice), items(twice)
    assert len(twice) == 3
    assert [item["scan"] for item in first] == [item["scan"] for item in second]
    assert all(torch.equal(one["image"], other["image"]) for one, other in zip(first, second, strict=True))


@pytest.mark.parametrize("end", ["break", "exception", "close", "stop"])
def test_processes_end_with_an_iteration_that_is_broken_off(end: str) -> None:
    """The fixture sees to it that they do; here, that it takes no time although a scan hangs."""
    hanging = loader(["ok-0", "ok-1", "hang-", "hang-", "ok-4"], batch_size=2)
    begin = time.monotonic()
    batches = iter(hanging)
    try:
        for _ in batches:
            if end == "break":
                break
            if end == "exception":
                raise KeyError
            if end == "close":
                batches.close()  # type: ignore[attr-defined]
            if end == "stop":
                hanging.stop()
    except KeyError:
        pass
    del batches
    assert time.monotonic() - begin < 60  # a scan hangs for 100 s
    assert readers() == []


def test_the_last_batch_leaves_no_process_behind() -> None:
    """An engine does not ask for more than it knows there is, so the iterator is never exhausted."""
    batches = iter(loader(["ok-0", "ok-1", "ok-2"], batch_size=2))
    next(batches)
    next(batches)
    assert readers() == []


def test_in_this_process_the_items_are_those_of_the_data_set() -> None:
    here = loader(["ok-0", "error-", "ok-2"], batch_size=2, num_workers=0)
    there = loader(["ok-0", "error-", "ok-2"], batch_size=2)
    for one, other, item in zip(items(here), items(there), here.dataset, strict=True):
        assert torch.equal(one.pop("image"), other["image"]) and torch.equal(other.pop("image"), item.pop("image"))
        assert one == other == item
    assert here.dataset[1]["reason"] == "error-: no scan"


def test_a_reader_computes_in_one_thread_and_is_silent(capfd: pytest.CaptureFixture[str]) -> None:
    found = items(loader(["noisy-1", "threads-"]))
    assert [item["reason"] for item in found] == ["", ""]
    assert found[1]["image"].eq(1).all()
    assert "PATIENT" not in "".join(capfd.readouterr())


def test_an_engine_runs_on_it_as_on_any_loader() -> None:
    names = ["ok-1", "exit-", "ok-3", "ok-4", "ok-5"]
    seen: list[tuple[str, str, float]] = []

    def note(engine: SupervisedEvaluator) -> None:
        batch, pred = engine.state.batch, engine.state.output["pred"]
        seen.extend(zip(batch["scan"], batch["reason"], pred[:, 0].tolist(), strict=True))

    class Note:
        def attach(self, engine: SupervisedEvaluator) -> None:
            engine.add_event_handler("ITERATION_COMPLETED", note)

    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(24, 1, bias=False))
    torch.nn.init.constant_(network[1].weight, 1 / 24)
    loading = loader(names, batch_size=2)
    evaluator = SupervisedEvaluator("cpu", loading, network=network, val_handlers=[Note()], decollate=False)
    for _ in range(2):
        seen.clear()
        evaluator.run()
        assert [name for name, _, _ in seen] == [f"scan {i}" for i in range(5)]
        assert seen[1][1] == "the reader crashed (exit code 11)"
        assert [round(value, 3) for _, _, value in seen] == [1, 0, 3, 4, 5]


def test_a_large_volume_arrives_as_it_was_and_may_be_written_to() -> None:
    shape = (1, 64, 224, 224)
    (batch,) = loader(["ok-7"], shape=shape)
    assert batch["image"].shape == (1, *shape) and batch["image"].dtype == torch.float32
    assert batch["image"].eq(7).all()
    batch["image"] += 1


# --- the items of the data set ---------------------------------------------------------------------------------------


class Refused(ValueError):
    """As fairlung.transforms refuses a scan."""

    def __init__(self, message: str, record: dict[str, Any]) -> None:
        super().__init__(message)
        self.record = record


def only_item(transform: Any, shape: tuple[int, ...] = SHAPE) -> dict[str, Any]:
    (item,) = NewScanDataset([{"image": "path", "scan": "name"}], Compose(transform), shape)
    return item


@pytest.mark.parametrize(
    ("status", "reason"), [("refused", "/in/name: 3 slices"), ("skipped", "a localizer, no chest CT")]
)
def test_the_record_of_a_scan_that_is_not_answered_travels_with_its_exception(status: str, reason: str) -> None:
    """MONAI wraps the exception; a skipped scan says what it is, without the path."""
    said = {"refused": "3 slices", "skipped": "a localizer, no chest CT"}[status]
    record = {**new_record("dicom"), "status": status, "reason": said, "warnings": ["few_slices: 3 slices"]}

    def refuse(item: dict[str, Any]) -> None:
        try:
            raise KeyError
        except KeyError as error:
            raise Refused(f"/in/name: {said}", record) from error

    item = only_item([refuse])
    assert item["intake"] == record
    assert item["reason"] == reason
    assert item["scan"] == "name" and torch.equal(item["image"], torch.zeros(SHAPE))


def test_the_record_is_found_behind_another_exception() -> None:
    def refuse(item: dict[str, Any]) -> None:
        try:
            raise Refused("refused", {"status": "refused", "reason": "why", "kind": "itk"})
        except Refused:
            raise OSError("while it was closed")  # noqa: B904  (the cause is in __context__ alone)

    item = only_item([refuse])
    assert item["intake"]["kind"] == "itk" and item["intake"]["reason"] == "why"
    assert item["intake"]["warnings"] == []  # what the record does not say has a value


def test_every_item_has_a_whole_record() -> None:
    def fail(item: dict[str, Any]) -> None:
        raise MemoryError

    failed, fine = only_item([fail]), only_item([lambda item: {"image": torch.ones(SHAPE)}])
    assert failed["intake"] == {**new_record(), "status": "refused", "reason": "MemoryError: "}
    assert fine["intake"] == new_record() and fine["reason"] == ""


def test_a_scan_that_was_read_and_fails_later_is_refused() -> None:
    read = {**new_record("nifti"), "warnings": ["short: 90 mm"]}
    item = only_item([lambda item: {"image": torch.ones(1, 2), "intake": dict(read)}])
    assert item["reason"] == f"path: preprocessing gave (1, 2), not {SHAPE}"
    assert item["intake"] == {**read, "status": "refused", "reason": item["reason"]}


# --- settings --------------------------------------------------------------------------------------------------------


def test_no_scans_no_batches() -> None:
    assert list(loader([])) == []
    assert len(loader([])) == 0


def test_collate_stacks_images_and_lists_the_rest() -> None:
    batch = collate([{"image": torch.ones(SHAPE) * i, "scan": f"{i}", "intake": {"n": i}} for i in range(2)])
    assert batch["image"].shape == (2, *SHAPE) and batch["image"][1].eq(1).all()
    assert batch["scan"] == ["0", "1"] and batch["intake"] == [{"n": 0}, {"n": 1}]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"num_workers": -1}, "num_workers must be at least 0, got -1"),
        ({"timeout": 0}, "timeout must be positive, got 0"),
        ({"prefetch": 0}, "prefetch must be at least 1, got 0"),
    ],
)
def test_settings_out_of_range(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        loader(["ok-0"], **settings)


def test_a_transform_that_cannot_be_sent_is_named() -> None:
    dataset = NewScanDataset([], lambda item: item, SHAPE)
    with pytest.raises(TypeError, match="the data set cannot be sent to the processes that read"):
        ScanLoader(dataset, num_workers=1)
    ScanLoader(dataset, num_workers=0)


class Unwelcome(Read):
    """A transform that other processes cannot take."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        if os.getpid() != state["home"]:
            raise RuntimeError("not here")
        vars(self).update(state)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "home": os.getpid()}


def test_processes_that_do_not_start_are_no_fault_of_the_scans(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAIRLUNG_TRACEBACK", "1")
    data = [{"image": "ok-0", "scan": "scan"}]
    with pytest.raises(ReaderStartError, match="do not start"):
        list(ScanLoader(NewScanDataset(data, Unwelcome(), SHAPE), num_workers=1))


def test_a_process_that_ends_while_it_has_no_scan_is_replaced(tmp_path: Path) -> None:
    log = tmp_path / "log"
    batches = iter(loader([f"ok-{i}" for i in range(6)], batch_size=1, prefetch=1, num_workers=1, log=log))
    found = [next(batches)]
    wait_for(lambda: len(log.read_text().split()) == 2)
    time.sleep(0.5)  # it has read one ahead, and waits
    for reader in readers():
        reader.send_signal(signal.SIGSEGV)
        reader.wait(60)
    found += batches
    assert [batch["reason"] for batch in found] == [[""]] * 6


def test_ctrl_c_ends_the_iteration_at_once() -> None:
    """The fixture sees to the processes."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    interrupt = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT))
    batches = iter(loader(["ok-0", "hang-", "hang-"], batch_size=1))
    next(batches)
    interrupt.start()
    begin = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        next(batches)
    signal.signal(signal.SIGINT, before)
    assert time.monotonic() - begin < 60  # a scan hangs for 100 s


def test_the_readers_leave_ctrl_c_to_their_parent() -> None:
    """A terminal sends it to all of them."""
    batches = iter(loader([f"slow-{i}" for i in range(4)], batch_size=1))
    found = [next(batches)]
    for reader in readers():
        reader.send_signal(signal.SIGINT)
    found += batches
    assert [batch["reason"] for batch in found] == [[""]] * 4


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.fault(
    "lost", "a process that is ended while a reader hangs", before="leaves the reader running for ten minutes",
    now="the reader ends with it",
)  # fmt: skip
def test_a_reader_that_hangs_ends_with_its_parent(number: int) -> None:
    names = ["ok-0", "hang-"]
    code = f"import time, {Path(__file__).stem} as tests; batches = iter(tests.loader({names}, 1, 1)); next(batches)"
    code += "; print('hangs', flush=True); time.sleep(600)"
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    command, environment = [sys.executable, "-c", code], os.environ | {"PYTHONPATH": path}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None and process.stdout.readline() == b"hangs\n"
        below = psutil.Process(process.pid).children(recursive=True)
        assert len(below) >= 3  # fork server, resource tracker, reader
        process.send_signal(number)
    wait_for(lambda: not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in below))


class Local(Read):
    """Stands in for a transform that the main script defines."""


PROGRAM = """
import multiprocessing, os, sys, threading, types
from fairlung.pipeline.inference.scan_readers import start_server

if __name__ == "__main__":
    sys.modules["once"] = types.ModuleType("once")
    kept = open(__file__)
    {begun}
    start_server([])
    with multiprocessing.get_context("forkserver").Pool(1) as pool:
        print(pool.apply(eval, ("'once' in __import__('sys').modules",)))
        print(pool.apply(os.path.realpath, (f"/proc/self/fd/{{kept.fileno()}}",)) == os.path.realpath(__file__))
    sys.stdout.flush()
    os._exit(0)
"""


@pytest.mark.parametrize(
    ("name", "begun", "is_fork"),
    [("fairlung", "", True), ("notebook", "", False), ("fairlung", "threading.Timer(30, print).start()", False)],
)
def test_readers_have_the_imports_of_a_program_of_ours_that_has_begun_nothing_and_none_of_its_files(
    name: str, begun: str, is_fork: bool, tmp_path: Path
) -> None:
    (tmp_path / name).write_text(PROGRAM.format(begun=begun))
    done = subprocess.run([sys.executable, tmp_path / name], capture_output=True, text=True, check=False)
    assert done.stdout.split() == [str(is_fork), "False"], done.stderr


@pytest.mark.parametrize("needed", [False, True])
def test_the_main_script_runs_again_only_where_the_transform_is_defined_in_it(
    needed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may lack the usual ``if __name__ == "__main__"``, and train for hours before it infers."""
    main = sys.modules["__main__"]
    script, runs = tmp_path / "script.py", tmp_path / "runs"
    folder = str(Path(__file__).parent)
    lines = ["import sys", f"open({str(runs)!r}, 'a').close()", f"sys.path.insert(0, {folder!r})"]
    script.write_text("\n".join([*lines, f"from {Path(__file__).stem} import Local"]))
    monkeypatch.setattr(main, "__file__", str(script), raising=False)
    monkeypatch.setattr(main, "__spec__", None)
    if needed:
        monkeypatch.setattr(main, "Local", Local, raising=False)
        monkeypatch.setattr(Local, "__module__", "__main__")
    transform = Local() if needed else Read()
    data = [{"image": "ok-3", "scan": "scan"}]
    (batch,) = ScanLoader(NewScanDataset(data, transform, SHAPE), num_workers=1)
    assert batch["image"].eq(3).all() and batch["reason"] == [""]
    assert runs.exists() is needed
    assert main.__spec__ is None
