"""A step that is not finite is as if its batch had not been there, and a training of such steps ends as failed."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Engine, Events
from monai.engines import SupervisedTrainer
from torch import Tensor, nn
from workflows import SMALL_NETWORK, Start, cause, run_statuses

from fairlung.pipeline.losses.two_level import FairLACVaRLoss
from fairlung.pipeline.training.accumulation import MicroBatchInferer
from fairlung.pipeline.training.bad_steps import BAD_STEPS, NotFiniteError, SkipBadSteps
from fairlung.pipeline.training.group_loss import GroupLoss, PrepareGroupBatch

pytestmark = pytest.mark.filterwarnings("ignore:.*CUDA is not available")
CLASSES, GROUPS = 3, ["male", "female"]
DIVERGED = pytest.mark.fault(
    "wrong",
    "a training whose loss is NaN",
    before="ended FINISHED, was published, judged with gap +0.000 and became champion",
    now="ends FAILED with one line, and has no best checkpoint",
)
SKIPPED = pytest.mark.fault(
    "wrong",
    "a step whose loss, output or gradient is not finite",
    before="made the weights NaN for good",
    now="changes nothing, is counted, and its scans are named",
)


class BadGradient(torch.autograd.Function):
    """The identity, with a gradient that is not finite for a volume that says so."""

    @staticmethod
    def forward(ctx: Any, outputs: Tensor, image: Tensor) -> Tensor:
        ctx.bad = bool((image > 50).any())
        return outputs.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return gradient * (math.inf if ctx.bad else 1), None


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, CLASSES))

    def forward(self, image: Tensor) -> Tensor:
        return BadGradient.apply(self.layers(image), image)


def batch(number: int) -> dict[str, Any]:
    """Four scans of both groups."""
    image = torch.rand(4, 5, generator=torch.Generator().manual_seed(number))
    label, group = torch.tensor([0, 1, 2, number % CLASSES]), torch.tensor([0, 0, 1, 1])
    return {"image": image, "label": label, "group": group, "scan": [f"scan-{number}-{i}" for i in range(4)]}


def spoilt(number: int, kind: str) -> dict[str, Any]:
    """The batch with something that makes its step bad."""
    content = batch(number)
    content["image"][1, 2] = {"output": math.nan, "overflow": 3e38, "gradient": 99.0}[kind]
    return content


def trained(batches: list[Mapping[str, Any]], epochs: int = 1, **settings: Any) -> SupervisedTrainer:
    network, loss = Network(), FairLACVaRLoss([2, 1, 1], estimator="running", num_groups=len(GROUPS))
    scaler = settings.pop("scaler", None)
    trainer = SupervisedTrainer(
        device="cpu",
        max_epochs=epochs,
        train_data_loader=batches,
        network=network,
        optimizer=torch.optim.Adam(network.parameters(), 0.01, weight_decay=0.1),
        loss_function=loss,
        prepare_batch=PrepareGroupBatch(),
        key_train_metric={"train_loss": GroupLoss(loss, GROUPS)},
        train_handlers=[SkipBadSteps(loss, most=settings.pop("most", 10))],
        decollate=False,
        **settings,
    )
    if scaler is not None:  # as MONAI has one on a GPU
        trainer.add_event_handler(Events.STARTED, lambda: trainer.__dict__.update(amp=True, scaler=scaler))
    trainer.run()
    return trainer


def all_of(trainer: SupervisedTrainer) -> dict[str, Any]:
    parts = {"network": trainer.network, "optimizer": trainer.optimizer, "loss": trainer.loss_function}
    metrics = {name: value for name, value in trainer.state.metrics.items() if name != BAD_STEPS}
    return {name: copy.deepcopy(part.state_dict()) for name, part in parts.items()} | {"metrics": metrics}


@SKIPPED
@pytest.mark.parametrize("kind", ["output", "overflow", "gradient"])
@pytest.mark.parametrize("micro", [False, True], ids=["one batch", "micro-batches"])
def test_a_bad_step_is_as_if_its_batch_were_not_there(kind: str, micro: bool, caplog: pytest.LogCaptureFixture) -> None:
    settings = {"inferer": MicroBatchInferer(2)} if micro else {}
    with_it = trained([batch(1), spoilt(2, kind), batch(3)], **settings)
    without = trained([batch(1), batch(3)], **settings)
    torch.testing.assert_close(all_of(with_it), all_of(without), rtol=0, atol=0)
    assert with_it.state.metrics[BAD_STEPS] == 1 and BAD_STEPS not in without.state.metrics
    assert "step 2 is left out" in caplog.text and "scan-2-0, scan-2-1, scan-2-2, scan-2-3" in caplog.text


@SKIPPED
def test_under_a_gradient_scaler_too() -> None:
    def scaler() -> torch.amp.GradScaler:
        return torch.amp.GradScaler("cpu", init_scale=1024.0)

    with_it = trained([batch(1), spoilt(2, "output"), batch(3)], scaler=scaler())
    without = trained([batch(1), batch(3)], scaler=scaler())
    torch.testing.assert_close(all_of(with_it), all_of(without), rtol=0, atol=0)
    assert with_it.scaler.get_scale() == without.scaler.get_scale() == 1024


def test_an_overflow_that_the_scaler_mends_is_no_fault() -> None:
    trainer = trained([batch(1), batch(2)], scaler=torch.amp.GradScaler("cpu", init_scale=3e38), most=1)
    assert BAD_STEPS not in trainer.state.metrics and trainer.scaler.get_scale() < 3e38


@DIVERGED
def test_bad_steps_in_a_row_end_the_training() -> None:
    bad, good = spoilt(2, "output"), batch(1)
    assert trained([bad, good], epochs=3, most=2).state.metrics[BAD_STEPS] == 1
    with pytest.raises(NotFiniteError, match=r"diverged in epoch 1: 2 steps in a row \(max_bad_steps\) had a loss"):
        trained([good, bad, bad, good], most=2)
    with pytest.raises(ValueError, match="max_bad_steps must be"):
        SkipBadSteps(nn.Identity(), Engine(lambda *_: None), most=0)


@DIVERGED
@pytest.mark.parametrize("limit", [2, 10], ids=["within an epoch", "at the end"])
def test_a_diverged_training_ends_as_failed(
    start: Start, small_cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    monkeypatch.chdir(tmp_path)  # MLflow keeps artifacts in the working directory
    settings = {"cohort": str(small_cohort), "output_dir": str(tmp_path / "run"), "network_def": SMALL_NETWORK}
    settings |= {"learning_rate": 1e25, "max_bad_steps": limit, "model_file": str(tmp_path / "model.pt"), "epochs": 2}
    error = cause(start("train", **settings, tracking_uri=f"sqlite:///{tmp_path}/m.db"))
    assert isinstance(error, NotFiniteError) and "smaller learning_rate" in str(error) and "\n" not in str(error)
    assert not (tmp_path / "run/models/best.pt").exists() and not (tmp_path / "model.pt").exists()
    assert not (tmp_path / "run/val/predictions.csv").exists()
    assert run_statuses(tmp_path / "m.db") == ["FAILED"]
