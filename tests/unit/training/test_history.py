"""The history of a training: every number of every epoch, on disk when it ends, and never two trainings mixed."""

from __future__ import annotations

import logging
import math
from pathlib import Path

import pandas as pd
import pytest
import torch
from ignite.engine import Events
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from workflows import SHRUNK, Trained

from fairlung.pipeline.training.history import EpochLog, MetricHistory


def trainer(epochs: int, losses: list[float], fail_at: int = 0) -> SupervisedTrainer:
    """A trainer of one step an epoch that reports the losses given, with a learning rate that halves."""
    network = torch.nn.Linear(1, 1)
    optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    item = {"image": torch.ones(1, 1), "label": torch.ones(1, 1)}
    engine = SupervisedTrainer("cpu", epochs, [item], network, optimizer, torch.nn.MSELoss())

    @engine.on(Events.ITERATION_COMPLETED)
    def _report() -> None:
        if engine.state.epoch == fail_at:
            raise RuntimeError("stopped")
        engine.state.metrics["train_loss"] = losses[engine.state.epoch - 1]

    engine.add_event_handler(Events.EPOCH_COMPLETED, lambda: scheduler.step())
    return engine


def rows(path: Path) -> list[tuple[int, str, float]]:
    return list(pd.read_csv(path).itertuples(index=False, name=None))


def test_a_validation_says_when_it_is_the_best_so_far(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    network, scores = torch.nn.Linear(1, 1), [0.2, 0.1, 0.3]
    engine = SupervisedEvaluator("cpu", [{"image": torch.ones(1, 1), "label": torch.ones(1, 1)}], network)
    EpochLog(["val_score"], "val").attach(engine)
    for epoch, score in enumerate(scores, 1):
        engine.state.metrics["val_score"], engine.state.max_epochs, engine.state.epoch = score, epoch, epoch
        engine.state.best_metric_epoch = scores.index(max(scores[:epoch])) + 1
        engine.fire_event(Events.EPOCH_COMPLETED)
    assert ["best so far" in message for message in caplog.messages] == [False, False, True]


def test_each_epoch_has_its_metrics_and_the_rate_that_it_was_trained_with(tmp_path: Path) -> None:
    engine = trainer(3, [0.5, 1 / 3, 0.25])
    MetricHistory(tmp_path / "new" / "history.csv").attach(engine)
    engine.run()
    expected = [(1, "train_loss", 0.5), (1, "lr", 1.0), (2, "train_loss", 1 / 3), (2, "lr", 0.5)]
    assert rows(tmp_path / "new" / "history.csv") == [*expected, (3, "train_loss", 0.25), (3, "lr", 0.25)]
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["history.csv"]


@pytest.mark.parametrize("earlier", ["epoch,metric,value\n1,train_loss,9.0\n2,train_loss,9.0\n", "no table\n"])
def test_a_new_training_starts_afresh_before_its_first_epoch_ends(
    tmp_path: Path, earlier: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "history.csv"
    path.write_text(earlier)
    engine = trainer(2, [1.0, 0.5], fail_at=1)
    MetricHistory(path).attach(engine)
    with pytest.raises(RuntimeError, match="stopped"):
        engine.run()
    assert path.read_text() == "epoch,metric,value\n"
    assert "history" not in caplog.text


def test_one_object_may_record_two_trainings_in_turn(tmp_path: Path) -> None:
    history = MetricHistory(tmp_path / "history.csv")
    for loss in (3.0, 4.0):
        engine = trainer(1, [loss])
        history.attach(engine)
        engine.run()
    assert rows(tmp_path / "history.csv") == [(1, "train_loss", 4.0), (1, "lr", 1.0)]


def test_a_resumed_training_keeps_the_epochs_before_it_and_replaces_the_others(tmp_path: Path) -> None:
    path = tmp_path / "history.csv"
    first = trainer(4, [0.1, 1 / 3, math.nan, 0.4], fail_at=4)
    MetricHistory(path).attach(first)
    with pytest.raises(RuntimeError, match="stopped"):
        first.run()
    before = pd.read_csv(path)
    assert before["epoch"].max() == 3

    resumed = trainer(4, [8.0, 8.0, 7.0, 6.0])  # continues after epoch 2: 3 is trained again
    resumed.add_event_handler(Events.STARTED, lambda: setattr(resumed.state, "epoch", 2))
    MetricHistory(path).attach(resumed)
    resumed.run()
    after = pd.read_csv(path)
    pd.testing.assert_frame_equal(after[after["epoch"] < 3], before[before["epoch"] < 3], check_exact=True)
    assert after[(after["epoch"] >= 3) & (after["metric"] == "train_loss")]["value"].tolist() == [7.0, 6.0]


def test_a_value_that_is_no_number_stays_visible(tmp_path: Path) -> None:
    engine = trainer(1, [math.nan])
    MetricHistory(tmp_path / "history.csv").attach(engine)
    engine.run()
    assert (tmp_path / "history.csv").read_text() == "epoch,metric,value\n1,train_loss,nan\n1,lr,1.0\n"


def test_a_file_that_is_no_history_is_replaced_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "history.csv"
    path.write_text("step,loss\n1,x\n")
    engine = trainer(3, [1.0, 1.0, 1.0])
    engine.add_event_handler(Events.STARTED, lambda: setattr(engine.state, "epoch", 2))
    MetricHistory(path).attach(engine)
    engine.run()
    assert "no history" in caplog.text
    assert rows(path) == [(3, "train_loss", 1.0), (3, "lr", 1.0)]


def test_a_full_disk_warns_once_and_costs_no_row_when_there_is_room_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path, write = tmp_path / "history.csv", pd.DataFrame.to_csv
    engine = trainer(4, [4.0, 3.0, 2.0, 1.0])

    def full(self: pd.DataFrame, *arguments: object, **options: object) -> None:
        if engine.state.epoch in (2, 3):
            Path(str(arguments[0])).write_text("epoch,met")  # what fitted
            raise OSError(28, "No space left on device")
        write(self, *arguments, **options)

    monkeypatch.setattr(pd.DataFrame, "to_csv", full)
    held: list[int] = []
    MetricHistory(path).attach(engine)
    engine.add_event_handler(Events.EPOCH_COMPLETED, lambda: held.append(pd.read_csv(path)["epoch"].max()))
    with caplog.at_level(logging.WARNING, "fairlung"):
        engine.run()
    assert engine.state.epoch == 4
    assert held == [1, 1, 1, 4]  # the file stays whole meanwhile
    assert pd.read_csv(path)["epoch"].value_counts().to_dict() == {1: 2, 2: 2, 3: 2, 4: 2}
    assert [record.message for record in caplog.records if "history.csv" in record.message] == [
        f"the training goes on: {path} cannot be written: No space left on device"
    ]


def test_only_the_first_process_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fairlung.pipeline.training.history.is_primary", lambda: False)
    engine = trainer(2, [1.0, 1.0])
    MetricHistory(tmp_path / "history.csv").attach(engine)
    engine.run()
    assert not any(tmp_path.iterdir())


def test_the_shipped_training_records_what_its_engines_hold_and_an_evaluation_adds_nothing(
    trained_once: Trained,
) -> None:
    path = trained_once.output / "history.csv"
    assert path.read_bytes() == trained_once.history  # also after the evaluation
    table = pd.read_csv(path)
    assert not table.duplicated(["epoch", "metric"]).any()
    curves = table.pivot(index="epoch", columns="metric", values="value")
    assert list(curves.index) == list(range(1, SHRUNK["epochs"] + 1))
    assert curves.notna().all(axis=None)

    trained, judged = trained_once.trained_with, trained_once.judged
    last = curves.iloc[-1].to_dict()
    assert {name: last[name] for name in trained} == trained
    assert {name: last[name] for name in judged} == judged
    assert set(last) == {*trained, *judged, "lr", "best_val_score"}
    assert {"train_loss", "train_loss_female", "train_cvar_weight_male", "val_gap", "val_f1_female"} <= set(last)
    assert curves["best_val_score"].tolist() == curves["val_score"].cummax().tolist()
    assert curves.loc[trained_once.best_epoch, "val_score"] == trained_once.best_metric
    rate = 1e-4  # cosine annealing to 0 over the epochs
    expected = [rate * (1 + math.cos(math.pi * k / SHRUNK["epochs"])) / 2 for k in range(SHRUNK["epochs"])]
    assert curves["lr"].tolist() == pytest.approx(expected)
    assert table[table["epoch"] == 1]["metric"].iloc[0].startswith("train")
