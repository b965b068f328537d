"""Draws: a function of seed and epoch, every group in every batch, and the class prior that comes of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ignite.engine import Events
from monai.data import DataLoader
from monai.transforms import RandFlipd, RandScaleIntensityd
from workflows import SMALL_NETWORK, Start

from fairlung.pipeline.common.names import CLASS_NAMES
from fairlung.pipeline.data.cohort import load_cohort
from fairlung.pipeline.data.dataset import ScanDataset
from fairlung.pipeline.data.sampling import EpochSampler, balanced_class_counts, balanced_order, cells, training_items

CELLS = {(0, 0): 125, (0, 1): 125, (1, 0): 79, (1, 1): 5, (2, 0): 100, (2, 1): 100, (3, 0): 100, (3, 1): 100}
PAPER = [{"label": label, "group": group} for (label, group), n in CELLS.items() for _ in range(n)]


@given(
    group=st.lists(st.integers(-1, 3), min_size=1, max_size=60),
    spare=st.integers(0, 5),
    seed=st.integers(0, 2**32),
)
def test_every_batch_holds_every_group(group: list[int], spare: int, seed: int) -> None:
    known = sorted(set(group) - {-1})
    size = len(known) + spare
    if not known or size < len(known) * len(group) / (len(group) - group.count(-1)):
        with pytest.raises(ValueError, match="batch_size|every scan is of unknown group"):
            balanced_order(group, size, np.random.default_rng(seed))
        return
    order = balanced_order(group, size, np.random.default_rng(seed))
    batches = np.array(group)[order].reshape(-1, size)
    assert len(batches) == -(-len(group) // size)
    for batch in batches:
        assert set(known) <= set(batch)
    # all groups equally often, up to the batch in progress
    counts = [int((batches == g).sum()) for g in known]
    assert max(counts) - min(counts) <= 1
    # a group is gone through before one of its scans comes again
    for g in set(group):
        times = np.bincount(order[np.array(group)[order] == g], minlength=len(group))[np.array(group) == g]
        assert times.max() - times.min() <= 1


def test_scans_of_unknown_group_keep_their_share() -> None:
    group = [0] * 60 + [1] * 20 + [-1] * 20
    order = balanced_order(group, 8, np.random.default_rng(0))
    assert (np.array(group)[order] == -1).mean() == pytest.approx(0.2, abs=0.02)


@pytest.mark.parametrize("group", [[0, 1], [0, 1, 1, -1]])
def test_a_batch_too_small_for_the_groups_is_refused(group: list[int]) -> None:
    with pytest.raises(ValueError, match="batch_size must be at least"):
        EpochSampler([{"group": g} for g in group], len(set(group)) - 1, every_group=True)


@pytest.mark.parametrize("every_cell", [False, True])
def test_class_counts_are_what_is_drawn(every_cell: bool) -> None:
    items = [*PAPER[1:], *[{"label": 1, "group": -1}] * 80]
    counts = balanced_class_counts(items, "agcn", every_cell)
    assert sum(counts.values()) == pytest.approx(len(items))
    sampler, drawn = EpochSampler(items, 12, every_group=not every_cell, every_cell=every_cell), np.zeros(4)
    for epoch in range(1, 21):
        sampler.set_epoch(epoch)
        drawn += np.bincount([items[draw.index]["label"] for draw in sampler], minlength=4)
    np.testing.assert_allclose(drawn / drawn.sum(), np.array(list(counts.values())) / len(items), atol=0.005)


def test_every_batch_holds_every_cell() -> None:
    """Of a cohort in which women have no scan of one class."""
    items = [item for item in PAPER if (item["label"], item["group"]) != (1, 1)] + [{"label": 1, "group": -1}] * 60
    ids = np.array(cells(items))
    assert len({(item["label"], item["group"]) for item in items}) == len(set(ids)) == 8
    assert all((i == -1) == (item["group"] == -1) for i, item in zip(ids, items, strict=True))
    sampler = EpochSampler(items, 9, every_cell=True)
    batches = ids[[draw.index for draw in sampler]].reshape(-1, 9)
    for batch in batches:
        assert set(ids) - {-1} <= set(batch)
    drawn = [int((batches == cell).sum()) for cell in set(ids) - {-1}]
    assert max(drawn) - min(drawn) <= 1
    with pytest.raises(ValueError, match="at least 8 to hold 8 cells of class and group, got 2; accumulate multiplies"):
        EpochSampler(PAPER, 2, every_cell=True)


def test_balanced_cells_make_the_classes_even() -> None:
    assert balanced_class_counts(PAPER, "agcn", every_cell=True) == pytest.approx(dict.fromkeys("agcn", 734 / 4))


def test_groups_of_one_mix_keep_the_plain_counts() -> None:
    items = [{"label": label, "group": group} for label in (0, 0, 0, 1) for group in (0, 1, 1)]
    assert balanced_class_counts(items, "ab") == pytest.approx({"a": 9, "b": 3})


def test_an_epoch_is_a_function_of_seed_and_epoch() -> None:
    first, again, other = (EpochSampler(PAPER, 2, seed) for seed in (1, 1, 2))
    assert list(first) == list(again) != list(other)
    assert sorted(draw.index for draw in first) == list(range(len(PAPER)))
    epoch_1 = list(first)
    first.set_epoch(2)
    assert list(first) != epoch_1
    assert len({draw.seed for draw in epoch_1}) == len(PAPER)


@pytest.mark.parametrize("every_group", [False, True])
def test_processes_share_an_epoch(every_group: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fairlung.pipeline.data.sampling.world_size", lambda: 3)
    items = PAPER[::7][:100]
    parts = []
    for rank in range(3):
        monkeypatch.setattr("fairlung.pipeline.data.sampling.rank", lambda rank=rank: rank)
        sampler = EpochSampler(items, 2, every_group=every_group)
        parts.append(list(sampler))
        assert len(parts[-1]) == len(sampler)
    assert len(set(map(len, parts))) == 1
    assert {draw.index for part in parts for draw in part} == set(range(100)) or every_group
    merged = np.array([[items[draw.index]["group"] for draw in part] for part in parts])
    if every_group:  # in the batch of all processes together
        for batch in range(0, merged.shape[1] - 1, 2):
            assert set(merged[:, batch : batch + 2].ravel()) == {0, 1}


@pytest.mark.fault(
    "wrong",
    "the rows of a cohort in another order",
    before="gave another training of the same seed",
    now="draws the same scans",
)
def test_draws_do_not_depend_on_the_order_of_rows(small_cohort: Path, tmp_path: Path) -> None:
    table = pd.read_csv(small_cohort, dtype=str)
    table["scan"] = [str(small_cohort.parent / scan) for scan in table["scan"]]
    drawn = []
    for seed in (0, 1):
        path = tmp_path / f"{seed}.csv"
        table.sample(frac=1, random_state=seed).to_csv(path, index=False)
        items = training_items(load_cohort(path, class_names=CLASS_NAMES), 0, "keep")
        drawn.append([(items[draw.index]["scan"], draw.seed) for draw in EpochSampler(items, 4, seed=3)])
    assert drawn[0] == drawn[1] and len(drawn[0]) == 16


def test_an_epoch_that_goes_on_draws_what_is_left() -> None:
    sampler = EpochSampler([{"group": i % 2} for i in range(10)], 2, seed=1)
    whole = list(sampler)
    sampler.skip = 4
    assert list(sampler) == whole[4:] and list(sampler) == whole  # once


def test_augmentation_does_not_depend_on_the_loader(tmp_path: Path) -> None:
    data = [{"image": str(tmp_path / str(i)), "label": 0, "group": 0} for i in range(6)]
    for item in data:
        Path(item["image"]).touch()
    augmentation = [RandFlipd(keys="image", prob=0.5), RandScaleIntensityd(keys="image", factors=0.5, prob=1.0)]
    epochs = []
    for workers in (0, 0, 2):
        dataset = ScanDataset(data, read, augmentation)
        sampler = EpochSampler(data, 2, seed=3)
        loader = DataLoader(dataset, batch_size=2, sampler=sampler, num_workers=workers)
        torch.manual_seed(workers)
        epochs.append([batch["image"] for batch in loader])
    for other in epochs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(epochs[0], other, strict=True))
    assert len({float(image.sum()) for batch in epochs[0] for image in batch}) == 6


def read(item: dict) -> dict:
    return {**item, "image": torch.arange(4.0).reshape(1, 4) / 6}


def test_a_training_puts_every_group_into_every_batch(start: Start, small_cohort: Path, tmp_path: Path) -> None:
    settings = {"cohort": str(small_cohort), "output_dir": str(tmp_path), "epochs": 1, "batch_size": 2}
    workflow = start("train", every_group=True, network_def=SMALL_NETWORK, **settings)
    workflow.initialize()
    trainer = workflow.parser.get_parsed_content("train::trainer")
    seen = []
    trainer.add_event_handler(Events.ITERATION_STARTED, lambda e: seen.append(e.state.batch["group"].tolist()))
    workflow.run()
    workflow.finalize()
    assert seen and all(sorted(group) == [0, 1] for group in seen)


def test_the_prior_is_of_what_is_drawn(start: Start, small_cohort: Path, tmp_path: Path) -> None:
    unequal = pd.read_csv(small_cohort)
    unequal["scan"] = [str(small_cohort.parent / scan) for scan in unequal["scan"]]
    rare = (unequal["split"] == "train") & (unequal["label"] == "squamous_cell") & (unequal["sex"] == "female")
    unequal.drop(unequal.index[rare][:1]).to_csv(tmp_path / "cohort.csv", index=False)
    counts = {}
    for drawn in ({}, {"every_group": True}, {"every_cell": True}):
        workflow = start("train", cohort=str(tmp_path / "cohort.csv"), **drawn)
        workflow.parser.parse(reset=True)
        counts["".join(drawn)] = workflow.parser.get_parsed_content("class_counts")
        items = workflow.parser.get_parsed_content("cohort_data").items("train")
    plain = np.bincount([item["label"] for item in items], minlength=4)
    assert list(counts[""].values()) == plain.tolist() == [4, 3, 4, 4]
    # of the men's 8 and the women's 7 scans, half the weight each
    assert list(counts["every_cell"].values()) == pytest.approx([15 / 4] * 4)
    assert list(counts["every_group"].values()) == pytest.approx([15 * (2 / 8 + n / 7) / 2 for n in (2, 1, 2, 2)])
