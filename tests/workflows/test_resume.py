"""A training that was interrupted goes on as if nothing had happened, and under no other settings."""

from __future__ import annotations

import multiprocessing
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import mlflow
import pandas as pd
import pytest
import torch
from ignite.engine import Engine, Events
from ignite.handlers import DiskSaver
from workflows import SMALL_NETWORK, Start, cause, run

from fairlung.pipeline.common.errors import in_a_line
from fairlung.pipeline.common.run_folder import resume_point
from fairlung.pipeline.networks.checkpoint import CheckpointError
from fairlung.pipeline.training.resume import ResumePoint


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
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run(start("train", output_dir=str(folder / "whole"), **settings))
        parts = {"output_dir": str(folder / "parts"), **settings}
        interrupt(start, **parts)
        assert "was interrupted; choose another --output_dir, or pass --resume True to go on" in refusal(start, **parts)
        other = refusal(start, **parts | {"learning_rate": 1e-2, "resume": True})
        assert other.endswith("other settings:\n  learning_rate: was 0.001, is 0.01")
        # the number of loader processes changes nothing
        run(start("train", **parts | {"resume": True, "num_workers": 2}))
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
    whole, parts = ([m.value for m in client.get_metric_history(r.info.run_id, "val_score")] for r in runs)
    assert whole == parts and len(parts) == 3
    assert runs[0].data.metrics["val/best_score"] == runs[1].data.metrics["val/best_score"]


def test_what_is_complete_is_not_resumed(pair: SimpleNamespace, start: Start) -> None:
    assert "already holds a training that is complete" in refusal(start, **pair.settings, resume=True)
    assert "exclude each other" in refusal(start, **pair.settings, resume=True, overwrite=True)


def test_where_there_is_nothing_a_resumed_training_begins(start: Start, small_cohort: Path, tmp_path: Path) -> None:
    settings = {"cohort": str(small_cohort), "output_dir": str(tmp_path), "epochs": 1, "network_def": SMALL_NETWORK}
    run(start("train", **settings, resume=True))
    assert not resume_point(tmp_path).exists()
    resume_point(tmp_path).write_bytes(b"no checkpoint")
    assert "resume.pt cannot be read" in refusal(start, **settings, resume=True)
