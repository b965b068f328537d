"""A training that was interrupted goes on as if nothing had happened, and under no other settings."""

from __future__ import annotations

import errno
import multiprocessing
import os
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlflow
import pandas as pd
import pytest
import torch
from ignite.engine import Engine, Events
from ignite.handlers import DiskSaver
from torch.utils.data import DataLoader
from workflows import SMALL_NETWORK, Start, cause, run

from fairlung.pipeline.common.errors import in_a_line, user_error
from fairlung.pipeline.common.run_folder import resume_point
from fairlung.pipeline.common.settings import SettingError
from fairlung.pipeline.data.dataset import start_method
from fairlung.pipeline.networks.checkpoint import CheckpointError
from fairlung.pipeline.training.output_dir import OutputDirError, discard_previous, unwritable
from fairlung.pipeline.training.resume import ResumePoint, outlive_sigterm


class Interrupted(Exception):
    """What stops a training in its second epoch."""


def stop(*_: object) -> None:
    raise Interrupted


def interrupt(start: Start, **settings: object) -> None:
    """Train, and stop in the middle of epoch 2."""
    workflow = start("train", **settings)
    workflow.initialize()
    trainer = workflow.parser.get_parsed_content("train::trainer")
    trainer.add_event_handler(Events.ITERATION_COMPLETED(event_filter=lambda e, _: e.state.epoch == 2), stop)
    with pytest.raises(RuntimeError) as caught:  # MONAI wraps it
        workflow.run()
    assert isinstance(caught.value.__cause__, Interrupted)


@pytest.mark.parametrize("place", ["resume point", "best checkpoint"])
def test_a_kill_between_two_files_costs_nothing(
    start: Start, small_cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """Killed when the epoch's checkpoint is written and the resume point is not, or while the best one is written."""
    settings = {"cohort": str(small_cohort), "output_dir": str(tmp_path), "epochs": 2, "keep_checkpoints": 1}
    # the same score in every epoch, which is a new best one each time
    settings |= {"network_def": SMALL_NETWORK, "learning_rate": 1e-12, "best_saver::key_metric_greater_or_equal": True}
    with monkeypatch.context() as patch:
        if place == "resume point":
            patch.setattr(ResumePoint, "_save", stop_at(2, ResumePoint._save))
        else:
            patch.setattr(DiskSaver, "_save_func", stop_writing("best.pt", DiskSaver._save_func))
        with pytest.raises(RuntimeError):
            run(start("train", **settings))
    run(start("train", **settings, resume=True))
    assert sorted(path.name for path in (tmp_path / "models").iterdir()) == ["best.pt", "checkpoint_epoch=2.pt"]
    assert weights(tmp_path / "models" / "best.pt")


@pytest.mark.slow
@pytest.mark.fault(
    "lost", "a loader process of a training that the system kills", before="a traceback of 60 lines",
    now="one line that says so and what to do; the training is resumed",
)  # fmt: skip
def test_a_loader_process_that_is_killed_ends_the_training_in_a_line(
    start: Start, small_cohort: Path, tmp_path: Path
) -> None:
    settings = {"cohort": str(small_cohort), "output_dir": str(tmp_path), "network_def": SMALL_NETWORK, "epochs": 3}
    workflow = start("train", **settings, num_workers=1)
    workflow.initialize()

    def kill(*_: object) -> None:
        multiprocessing.active_children()[0].kill()

    trainer = workflow.parser.get_parsed_content("train::trainer")
    trainer.add_event_handler(Events.EPOCH_STARTED(once=2), kill)
    with pytest.raises(RuntimeError) as caught:
        workflow.run()
    assert re.search(r"DataLoader worker .* most likely memory ran out", in_a_line(caught.value))
    run(start("train", **settings, resume=True))
    assert set(pd.read_csv(tmp_path / "history.csv")["epoch"]) == {1, 2, 3}


def stop_at(epoch: int, save: Callable) -> Callable:
    def stopping(self: ResumePoint, engine: Engine) -> None:
        if engine.state.epoch == epoch:
            raise Interrupted
        save(self, engine)

    return stopping


def stop_writing(name: str, write: Callable) -> Callable:
    """Stop while a file is written for the second time."""
    written: list[str] = []

    def stopping(self: DiskSaver, checkpoint: object, path: Path, func: Callable) -> None:
        written.append(path.name)
        if path.name == name and written.count(name) == 2:
            raise Interrupted
        write(self, checkpoint, path, func)

    return stopping


def refusal(start: Start, **settings: object) -> str:
    error = cause(start("train", **settings))
    assert isinstance(error, CheckpointError)
    return str(error)


def weights(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)["model"]


@pytest.fixture(scope="module")
def pair(start: Start, small_cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Two trainings of three epochs, one of which was interrupted and resumed. Read-only."""
    folder = tmp_path_factory.mktemp("resume")
    settings = {"cohort": str(small_cohort), "epochs": 3, "keep_checkpoints": 2, "learning_rate": 1e-3}
    settings |= {"tracking_uri": f"sqlite:///{folder}/mlflow.db", "experiment": "e", "network_def": SMALL_NETWORK}
    (folder / "key").write_text("0123456789abcdef")
    settings["patient_key"] = str(folder / "key")  # else each process has a key of its own
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run(start("train", output_dir=str(folder / "whole"), **settings))
        parts = {"output_dir": str(folder / "parts"), **settings}
        interrupt(start, **parts)
        assert "was interrupted; choose another --output_dir, or pass --resume True to go on" in refusal(start, **parts)
        other = refusal(start, **parts | {"learning_rate": 1e-2, "resume": True})
        assert other.endswith("other settings:\n  learning_rate: was 0.001, is 0.01")
        # the number of loader processes changes nothing
        resumed = run(start("train", **parts | {"resume": True, "num_workers": 2}))
        for part in ("train", "validate"):
            # Python's collector would wait five seconds for each process
            resumed.parser.get_parsed_content(f"{part}::dataloader")._iterator._shutdown_workers()
        return SimpleNamespace(whole=folder / "whole", parts=folder / "parts", settings=parts)


def test_the_weights_are_the_same_to_the_bit(pair: SimpleNamespace) -> None:
    for name in ("best.pt", "checkpoint_epoch=3.pt"):
        whole, parts = weights(pair.whole / "models" / name), weights(pair.parts / "models" / name)
        assert all(torch.equal(whole[key], value) for key, value in parts.items())


def test_so_are_history_predictions_and_what_is_kept(pair: SimpleNamespace) -> None:
    pd.testing.assert_frame_equal(pd.read_csv(pair.whole / "history.csv"), pd.read_csv(pair.parts / "history.csv"))
    for name in ("predictions.csv", "metrics.json"):
        whole, parts = ((folder / "val" / name).read_text() for folder in (pair.whole, pair.parts))
        assert whole.replace("whole", "parts") == parts
    kept = [sorted(path.name for path in (folder / "models").iterdir()) for folder in (pair.whole, pair.parts)]
    assert kept == [["best.pt", "checkpoint_epoch=2.pt", "checkpoint_epoch=3.pt"]] * 2


def test_it_is_one_run_in_mlflow(pair: SimpleNamespace) -> None:
    client = mlflow.MlflowClient(pair.settings["tracking_uri"])
    runs = client.search_runs([client.get_experiment_by_name("e").experiment_id], order_by=["start_time"])
    # whole, the interrupted one, and the attempt that was refused before a run was opened left none
    assert [item.info.status for item in runs] == ["FINISHED", "FINISHED"]
    whole, parts = ([m.value for m in client.get_metric_history(r.info.run_id, "val/score")] for r in runs)
    assert whole == parts and len(parts) == 3
    assert runs[0].data.metrics["val/best_score"] == runs[1].data.metrics["val/best_score"]
    # what would tell them apart
    first = [
        {name: item.data.tags[f"fairlung.{name}"] for name in ("threads", "first_batch", "first_loss")} for item in runs
    ]
    assert first[0] == first[1] and first[0]["threads"] == str(torch.get_num_threads())


def test_what_is_complete_is_not_resumed(pair: SimpleNamespace, start: Start) -> None:
    assert "already holds a training that is complete" in refusal(start, **pair.settings, resume=True)
    assert "exclude each other" in refusal(start, **pair.settings, resume=True, overwrite=True)


def test_where_there_is_nothing_a_resumed_training_begins(start: Start, small_cohort: Path, tmp_path: Path) -> None:
    settings = {"cohort": str(small_cohort), "output_dir": str(tmp_path), "epochs": 1, "network_def": SMALL_NETWORK}
    run(start("train", **settings, resume=True))
    assert not resume_point(tmp_path).exists()
    resume_point(tmp_path).write_bytes(b"no checkpoint")
    assert "resume.pt cannot be read" in refusal(start, **settings, resume=True)


# --- what a killed process leaves -------------------------------------------------------------------------------------


@pytest.mark.fault(
    "lost",
    "a resume point that cannot be read",
    before="the training had to begin anew",
    now="goes on from the one before, to the bit",
)
def test_the_resume_point_before_the_newest_is_kept(start: Start, pair: SimpleNamespace, tmp_path: Path) -> None:
    settings = pair.settings | {"output_dir": str(tmp_path), "tracking_uri": ""}
    workflow = start("train", **settings)
    workflow.initialize()
    trainer = workflow.parser.get_parsed_content("train::trainer")
    trainer.add_event_handler(Events.ITERATION_COMPLETED(event_filter=lambda e, _: e.state.epoch == 3), stop)
    with pytest.raises(RuntimeError):
        workflow.run()
    resume_point(tmp_path).write_bytes(resume_point(tmp_path).read_bytes()[:-1000])
    run(start("train", **settings, resume=True))
    same_to_the_bit(pair.whole, tmp_path)


@pytest.mark.fault(
    "lost", "files that a killed training was writing", before="stayed for good", now="are removed at the next start"
)
@pytest.mark.parametrize("resume", [False, True], ids=["anew", "resumed"])
def test_what_was_half_written_goes(tmp_path: Path, resume: bool) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "val").mkdir()
    leftovers = ["models/tmpab12_x9z", "models/.resume.pt", "models/.resume_before.pt", "val/latest.csv.part"]
    for name in (*leftovers, ".history.csv", "models/resume.pt", "models/resume_before.pt", "models/mine.pt"):
        (tmp_path / name).write_text("x")
    discard_previous(tmp_path, resume)
    kept = {"mine.pt", *(["resume.pt", "resume_before.pt"] if resume else [])}
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} == kept


def same_to_the_bit(whole: Path, parts: Path) -> None:
    """The checkpoints and the history of two trainings."""
    for path in sorted((whole / "models").glob("*.pt")):
        theirs = weights(parts / "models" / path.name)
        assert all(torch.equal(value, theirs[key]) for key, value in weights(path).items()), path.name
    assert (whole / "history.csv").read_text() == (parts / "history.csv").read_text()
    names = [sorted(path.name for path in (folder / "models").iterdir()) for folder in (whole, parts)]
    assert names[0] == names[1]


# --- SIGTERM ----------------------------------------------------------------------------------------------------------


@pytest.mark.fault(
    "lost",
    "SIGTERM in the middle of an epoch",
    before="the epoch was lost",
    now="is saved after the step, and goes on to the bit",
)
@pytest.mark.parametrize("workers", [pytest.param(0, marks=pytest.mark.slow), 2])
@pytest.mark.slow
def test_sigterm_costs_nothing(start: Start, small_cohort: Path, tmp_path: Path, workers: int) -> None:
    """With dropout, whose draws go on in the middle of the epoch, and the sums of the epoch's training loss."""
    network = SMALL_NETWORK | {"dropout_prob": 0.3}
    settings = {"cohort": str(small_cohort), "network_def": network, "epochs": 2, "learning_rate": 1e-3}
    whole, parts = tmp_path / "whole", {**settings, "output_dir": str(tmp_path / "parts"), "num_workers": workers}
    run(start("train", **settings, output_dir=str(whole)))
    workflow = start("train", **parts)
    workflow.initialize()
    trainer = workflow.parser.get_parsed_content("train::trainer")
    steps: list[int] = []
    trainer.add_event_handler(Events.ITERATION_STARTED, lambda engine: steps.append(engine.state.iteration))
    in_second = Events.ITERATION_STARTED(event_filter=lambda e, _: e.state.iteration == e.state.epoch_length + 2)
    trainer.add_event_handler(in_second, lambda: os.kill(os.getpid(), signal.SIGTERM))
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as caught:
        workflow.run()
    assert caught.value.code == 128 + signal.SIGTERM and signal.getsignal(signal.SIGTERM) is before
    assert steps[-1] == trainer.state.epoch_length + 2  # the step was done, and no other
    del workflow, trainer
    run(start("train", **parts, resume=True))
    same_to_the_bit(whole, tmp_path / "parts")


def test_a_second_sigterm_ends_it_at_once() -> None:
    point = ResumePoint("resume.pt", {}, Engine(lambda *_: None), save_on_sigterm=True)
    with point.stopping_on_sigterm():
        os.kill(os.getpid(), signal.SIGTERM)
        assert point.stopped
        with pytest.raises(SystemExit):
            os.kill(os.getpid(), signal.SIGTERM)


def loading(method: str) -> Any:
    settings = {"num_workers": 1, "worker_init_fn": outlive_sigterm, "multiprocessing_context": method}
    return iter(DataLoader(range(8), batch_size=1, **settings))


@pytest.mark.skipif(sys.platform != "linux", reason="processes are not forked")
def test_a_loader_outlives_a_schedulers_sigterm() -> None:
    numbers = loading(start_method(1))
    found = [int(next(numbers))]
    (process,) = numbers._workers
    subprocess.run([sys.executable, "-c", f"import os; os.kill({process.pid}, {int(signal.SIGTERM)})"], check=True)
    assert found + [int(number) for number in numbers] == list(range(8))


@pytest.mark.skipif(not hasattr(signal, "sigwaitinfo"), reason="macOS")
@pytest.mark.parametrize(("method", "codes"), [("fork", [0]), ("forkserver", [0, -signal.SIGTERM])])
def test_a_loader_ends_with_its_process(method: str, codes: list[int]) -> None:
    """Below a server of processes too, its parent then; its libraries' threads may take the signal there."""
    numbers = loading(method)
    next(numbers)
    (process,) = numbers._workers
    process.terminate()  # as at the end of the interpreter
    process.join(60)
    assert process.exitcode in codes


# --- a folder that cannot be written ----------------------------------------------------------------------------------


@pytest.mark.fault(
    "words",
    "a disk that is full during a training",
    before="a traceback of 50 to 150 lines",
    now="one line with the folder, the cause and what is kept",
)
def test_a_full_disk_is_one_line(start: Start, pair: SimpleNamespace, tmp_path: Path) -> None:
    """As if the disk were full from the second epoch on: no file may grow beyond 4 kB."""
    settings = pair.settings | {"output_dir": str(tmp_path), "tracking_uri": ""}
    workflow = start("train", **settings)
    workflow.initialize()
    trainer = workflow.parser.get_parsed_content("train::trainer")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    second = Events.EPOCH_STARTED(event_filter=lambda e, _: e.state.epoch == 2)
    trainer.add_event_handler(second, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1])))
    try:
        with pytest.raises(Exception) as caught:  # noqa: PT011  (MONAI wraps every kind)
            workflow.run()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    error = user_error(caught.value)
    assert isinstance(error, OutputDirError) and "\n" not in str(error)
    assert str(error).startswith(f"{tmp_path} cannot be written (")
    assert str(error).endswith("ended in epoch 2, it is kept as it was after epoch 1; go on with --resume True")


@pytest.mark.fault(
    "words",
    "an output folder that cannot be written",
    before="a traceback, after the network was built",
    now="one line with the folder and the cause, before anything is built",
)
def test_a_folder_that_cannot_be_written_is_refused_first(start: Start, small_cohort: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    error = cause(start("train", cohort=str(small_cohort), output_dir=str(tmp_path / "file" / "run")))
    assert isinstance(error, SettingError)
    assert str(error).startswith("output_dir must be a folder that can be written") and str(error).endswith("is a file")


@pytest.mark.parametrize(
    ("error", "found"),
    [
        (OSError(errno.ENOSPC, "full"), "No space left on device"),
        (PermissionError(errno.EACCES, "no", "/runs/a/val/latest.csv.part"), "Permission denied"),
        (PermissionError(errno.EACCES, "no", "/scans/1"), None),
        (RuntimeError("[enforce fail] PytorchStreamWriter failed writing file data/3"), "is the disk full?"),
        (RuntimeError("another"), None),
    ],
)
def test_which_errors_are_of_the_folder(error: Exception, found: str | None) -> None:
    wrapped = RuntimeError("as MONAI wraps it")
    wrapped.__cause__ = error
    reason = unwritable(wrapped, "/runs/a")
    assert reason is None if found is None else found in str(reason)
