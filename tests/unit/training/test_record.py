"""What a checkpoint says of its training: the class frequencies under which a network that sees nothing answers."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events
from torch import nn
from workflows import CLASSES

from fairlung.pipeline.data.sampling import balanced_class_counts, balanced_order, cells
from fairlung.pipeline.losses.aggregation import GroupCVaR, GroupDRO, HierarchicalCVaR, KLGroupDRO, MeanAggregation
from fairlung.pipeline.losses.sample_losses import (
    CrossEntropy,
    EqualizationLoss,
    FocalLoss,
    LDAMLoss,
    LogitAdjustedCrossEntropy,
    WeightedCrossEntropy,
)
from fairlung.pipeline.losses.two_level import TwoLevelLoss
from fairlung.pipeline.postprocessing.prevalence import deployment_prior
from fairlung.pipeline.training.group_loss import GroupLoss
from fairlung.pipeline.training.record import TrainingRecord

# in the paper's proportions: women have few squamous cell carcinomas
COUNTS = {"male": [25, 16, 20, 20], "female": [25, 1, 20, 20]}
ITEMS = [
    {"label": label, "group": group, "scan": f"{group} {label} {i}"}
    for group, counts in enumerate(COUNTS.values())
    for label, n in enumerate(counts)
    for i in range(n)
]
LABEL, GROUP = (torch.tensor([item[name] for item in ITEMS]) for name in ("label", "group"))
PLAIN = dict(zip(CLASSES, np.sum([*COUNTS.values()], axis=0).tolist(), strict=True))
BALANCED = balanced_class_counts(ITEMS, CLASSES)
EVERY_CELL = balanced_class_counts(ITEMS, CLASSES, every_cell=True)
RUN = SimpleNamespace(run_name="blind", run_id=None)


def blind(loss: TwoLevelLoss, batch: int = 0, every: str = "") -> tuple[torch.Tensor, TrainingRecord]:
    """Logits of a network without input, trained on the items, and the record of its last epoch."""
    logits = torch.zeros(len(CLASSES), requires_grad=True)
    metric = GroupLoss(loss, [*COUNTS])
    record, rng = TrainingRecord(CLASSES, metric, (), RUN), np.random.default_rng(0)
    steps = max(1, len(ITEMS) // (batch or len(ITEMS)))
    rates = [1.0] * 60 + [0.05] * 40 if steps == 1 else [0.2] * 4 + [0.05] * 6
    settled: list[torch.Tensor] = []
    for epoch, rate in enumerate(rates):
        if epoch == len(rates) // 2:  # settled; before, the weights belong to other answers
            metric.reset()
        ids = cells(ITEMS) if every == "cell" else GROUP.tolist()
        order = balanced_order(ids, batch, rng) if every else rng.permutation(len(ITEMS))
        for start in range(0, len(order), batch or len(order)):
            rows = order[start : start + (batch or len(order))]
            target = {"label": LABEL[rows], "group": GROUP[rows]}
            said = logits.expand(len(rows), -1)
            value = loss(said, target)
            (gradient,) = torch.autograd.grad(value, logits)
            metric.update((said, target, value))
            with torch.no_grad():
                logits -= rate * gradient
            settled.append(logits.detach().clone())
    metric.compute()
    return torch.stack(settled[len(settled) // 2 :]).mean(0), record


def adjusted(tau: float = 1.0, counts: dict[str, Any] = PLAIN) -> nn.Module:
    return LogitAdjustedCrossEntropy(counts, tau)


# objective, batch (0 all scans), what is in every batch
OBJECTIVES: dict[str, tuple[TwoLevelLoss, int, str]] = {
    "CE": (TwoLevelLoss(CrossEntropy(), MeanAggregation()), 0, ""),
    "inverse frequency": (TwoLevelLoss(WeightedCrossEntropy(PLAIN), MeanAggregation()), 0, ""),
    "LA": (TwoLevelLoss(adjusted(), MeanAggregation()), 0, ""),
    "LA tau .5": (TwoLevelLoss(adjusted(0.5), MeanAggregation()), 0, ""),
    "LA+CVaR 1": (TwoLevelLoss(adjusted(), GroupCVaR(1.0)), 0, ""),
    "LA+CVaR .8": (TwoLevelLoss(adjusted(), GroupCVaR(0.8)), 0, ""),
    "LA+CVaR .5": (TwoLevelLoss(adjusted(), GroupCVaR(0.5)), 0, ""),
    "LA+CVaR .8 published, batches of 4": (TwoLevelLoss(adjusted(), GroupCVaR(0.8, "published")), 4, ""),
    "LA+CVaR .5, batches of 4": (TwoLevelLoss(adjusted(), GroupCVaR(0.5)), 4, ""),
    "every group": (TwoLevelLoss(adjusted(counts=BALANCED), GroupCVaR(0.8)), 4, "group"),
    "recommended": (
        TwoLevelLoss(adjusted(counts=BALANCED), GroupCVaR(0.8, estimator="running", num_groups=2)), 4, "group",
    ),
    "group DRO": (TwoLevelLoss(CrossEntropy(), GroupDRO(2)), 0, ""),
    "DAW-FDD": (TwoLevelLoss(CrossEntropy(), HierarchicalCVaR(0.5, 0.9)), 4, ""),
    "KL group DRO": (TwoLevelLoss(CrossEntropy(), KLGroupDRO(2, 0.5, num_classes=4)), 4, ""),
    "every cell": (TwoLevelLoss(adjusted(counts=EVERY_CELL), MeanAggregation()), 12, "cell"),
    "every cell, KL group DRO": (TwoLevelLoss(CrossEntropy(), KLGroupDRO(2, 0.5, num_classes=4)), 8, "cell"),
}  # fmt: skip


@pytest.mark.fault(
    "wrong", "class frequencies that a model answers under, moved by CVaR, tau, weights and sampling",
    before="even for tau 1: a network that sees nothing said .23 to .41 where .25 is right",
    now="measured in training and saved: .25 after the correction",
)  # fmt: skip
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_network_that_sees_nothing_is_right_after_the_correction(objective: str, tmp_path: Path) -> None:
    logits, record = blind(*OBJECTIVES[objective])
    said = torch.softmax(logits, 0).double().numpy()
    torch.save({"model": {}, "settings": {}, "training": record.state_dict()}, tmp_path / "x.pt")
    corrected = deployment_prior(dict.fromkeys(CLASSES, 1), CLASSES, None, [tmp_path / "x.pt"])
    assert corrected is not None
    np.testing.assert_allclose(corrected.transform(said[None], CLASSES)[0], 0.25, atol=0.03)


@pytest.mark.parametrize("loss", [FocalLoss(), LDAMLoss(PLAIN), EqualizationLoss(PLAIN)])
def test_a_loss_that_leaves_no_known_frequencies_says_none(loss: nn.Module) -> None:
    _, record = blind(TwoLevelLoss(loss, MeanAggregation()))
    assert record.state_dict()["class_frequencies"] is None


def test_before_an_epoch_nothing_is_known_and_a_class_without_weight_has_no_frequency() -> None:
    metric = GroupLoss(TwoLevelLoss(CrossEntropy(), MeanAggregation()), [*COUNTS])
    record = TrainingRecord(CLASSES, metric, (), RUN)
    assert record.state_dict()["class_frequencies"] is None
    target = {"label": torch.tensor([0, 1]), "group": torch.tensor([0, 1])}
    metric.update((torch.zeros(2, 4), target, torch.tensor(1.0)))
    metric.compute()
    assert metric.class_shares is not None and metric.class_shares.tolist() == [0.5, 0.5, 0, 0]
    assert record.state_dict()["class_frequencies"] is None


def test_the_record_has_the_scores_of_its_epoch_alone() -> None:
    metric = GroupLoss(TwoLevelLoss(adjusted(), GroupCVaR(0.8)), [*COUNTS])
    record = TrainingRecord(CLASSES, metric, ["val_score"], SimpleNamespace(run_name="a", run_id="b"))
    trainer, evaluator = (Engine(lambda *_: None) for _ in range(2))
    for engine in (trainer, evaluator):
        record.attach(engine)
    seen = []

    @trainer.on(Events.EPOCH_COMPLETED(every=2))
    def _validate() -> None:
        evaluator.state.epoch = trainer.state.epoch - 1
        evaluator.run([0], max_epochs=trainer.state.epoch)

    @evaluator.on(Events.ITERATION_COMPLETED)
    def _score() -> None:
        evaluator.state.metrics = {"val_score": trainer.state.epoch / 10, "val_gap": 1.0}

    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: seen.append(record.state_dict()))
    trainer.run([0], max_epochs=3)
    assert [(one["epoch"], one["metrics"]) for one in seen] == [(1, {}), (2, {"val_score": 0.2}), (3, {})]
    record.describe({"system": "LA+CVaR", "alpha": 0.8})
    state = record.state_dict()
    assert (state["run"], state["mlflow_run"]) == ("a", "b")
    levels = {"sample_loss": "LogitAdjustedCrossEntropy", "aggregation": "GroupCVaR"}
    assert state["settings"] == {"system": "LA+CVaR", "alpha": 0.8} | levels
