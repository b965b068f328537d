"""In which order and with which chance scans are drawn: a function of seed and epoch alone.

A draw carries the seed of its augmentation. So an epoch is the same whatever the number of loader processes, and a
training that is resumed draws what it would have drawn.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from numpy.typing import NDArray
from torch.utils.data import Sampler

from ..common.distributed import rank, world_size
from ..common.names import UNKNOWN_GROUP
from .cohort import Cohort, SmallGroups, warn_of_small_cells

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Draw:
    """One access to a scan: the index of its item, and the seed of its augmentation."""

    index: int
    seed: int


def balanced_order(group: Sequence[int], batch_size: int, rng: np.random.Generator) -> Ints:
    """Indices of an epoch whose every batch holds every group, all groups equally often.

    A small group is repeated, shuffled anew each time. Places that are left over when the batch is no multiple of the
    groups go to the groups in turn. Scans of unknown group get their share of all places, taken from the groups that
    have more than one in a batch.

    Args:
        group: [N] group ids, -1 unknown.
        batch_size: at least the number of groups, and the share of unknown scans on top.
        rng: of the shuffles.

    Returns:
        [ceil(N / batch_size) * batch_size] indices; consecutive ``batch_size`` of them are a batch.
    """
    ids = np.asarray(group, dtype=np.int64)
    known = [g for g in np.unique(ids) if g != UNKNOWN_GROUP]
    unknown = int((ids == UNKNOWN_GROUP).sum())
    if not known:
        raise ValueError("every scan is of unknown group: there is no group to put into every batch")
    least = -(-len(known) * len(ids) // (len(ids) - unknown))  # places for the unknown beside one for each group
    if batch_size < least:
        also = f" and {unknown / len(ids):.0%} of scans of unknown group" if unknown else ""
        raise ValueError(f"batch_size must be at least {least} to hold {len(known)} groups{also}, got {batch_size}")
    batches = -(-len(ids) // batch_size)
    pools = {g: _endless(np.flatnonzero(ids == g), rng) for g in (*known, *([UNKNOWN_GROUP] if unknown else []))}
    order: list[int] = []
    turn = due = 0
    for _ in range(batches):
        due += unknown * batch_size
        of_unknown = min(due // len(ids), batch_size - len(known))
        due -= of_unknown * len(ids)
        places = [known[(turn + place) % len(known)] for place in range(batch_size - of_unknown)]
        turn += len(places)
        places += [UNKNOWN_GROUP] * of_unknown
        order += rng.permutation([next(pools[g]) for g in places]).tolist()
    return np.array(order, dtype=np.int64)


def _endless(indices: Ints, rng: np.random.Generator) -> Iterator[int]:
    while True:
        yield from rng.permutation(indices).tolist()


def balanced_class_counts(items: Sequence[Mapping[str, Any]], class_names: Sequence[str]) -> dict[str, float]:
    """How often each class is drawn by :func:`balanced_order`, in scans: what logit adjustment must then adjust for.

    .. math:: \\pi_y = (1 - u) \\frac{1}{G} \\sum_g \\frac{n_{gy}}{n_g} + u \\frac{n_{uy}}{n_u}

    with u the share of scans of unknown group.

    Args:
        items: of the training split, with ``label`` and ``group`` (:meth:`~.Cohort.items`).
        class_names: C names.

    Returns:
        name -> N pi_y; the plain counts where all groups have the classes in the same proportions.
    """
    label, group = (np.array([item[name] for item in items], dtype=np.int64) for name in ("label", "group"))
    share = {
        g: np.bincount(label[group == g], minlength=len(class_names)) / (group == g).sum() for g in np.unique(group)
    }
    unknown = float((group == UNKNOWN_GROUP).mean())
    known = [of_class for g, of_class in share.items() if g != UNKNOWN_GROUP]
    prior = (1 - unknown) * np.mean(known, axis=0) if known else np.zeros(len(class_names))
    if unknown:
        prior = prior + unknown * share[UNKNOWN_GROUP]
    return {name: float(len(items) * p) for name, p in zip(class_names, prior, strict=True)}


def class_counts(cohort: Cohort, items: Sequence[Mapping[str, Any]], every_group: bool) -> Mapping[str, float]:
    """Training scans of each class as they are drawn: the cohort's counts or, under ``every_group``, balanced ones."""
    return balanced_class_counts(items, cohort.class_names) if every_group else cohort.class_counts("train")


def training_items(cohort: Cohort, min_cell: int, small_groups: SmallGroups) -> Sequence[Mapping[str, Any]]:
    """:meth:`~.Cohort.training_items`, with a warning that names the groups and cells of few scans."""
    warn_of_small_cells(cohort, min_cell, small_groups)
    return cohort.training_items(min_cell, small_groups)


class EpochSampler(Sampler[Draw]):
    """The draws of an epoch, shuffled by seed and epoch, dealt out to the processes of a group.

    Args:
        items: of the training split, with ``group``.
        batch_size: scans of a process's batch.
        seed: same seed, same draws in the same epoch.
        every_group: put every group into every (global) batch, equally often (:func:`balanced_order`); else each scan
            is drawn once.
    """

    def __init__(
        self, items: Sequence[Mapping[str, Any]], batch_size: int, seed: int = 0, every_group: bool = False
    ) -> None:
        self.group = [int(item["group"]) for item in items]
        self.batch_size = batch_size
        self.seed = seed
        self.every_group = every_group
        self.epoch = 1
        if every_group:
            balanced_order(self.group, batch_size * world_size(), np.random.default_rng(0))  # can it be done at all

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, from 1, whose draws come next."""
        self.epoch = epoch

    def order(self) -> Ints:
        """Indices of the epoch for all processes; as many for each of them."""
        rng = np.random.default_rng([self.seed, self.epoch])
        if self.every_group:
            return balanced_order(self.group, self.batch_size * world_size(), rng)
        shuffled = rng.permutation(len(self.group))
        return np.resize(shuffled, -(-len(shuffled) // world_size()) * world_size())

    def __iter__(self) -> Iterator[Draw]:
        order = self.order()
        seeds = np.random.SeedSequence([self.seed, self.epoch, 1]).generate_state(len(order))
        yield from map(Draw, order[rank() :: world_size()].tolist(), seeds[rank() :: world_size()].tolist())

    def __len__(self) -> int:
        return len(self.order()) // world_size()


class SeedEpochs:
    """Handler of the trainer that makes what an epoch draws a function of seed and epoch.

    It tells the loader's sampler which epoch it is, and seeds torch's generators (dropout), each process otherwise.
    """

    def __init__(self, sampler: EpochSampler, seed: int) -> None:
        self.sampler, self.seed = sampler, seed

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.EPOCH_STARTED, self)

    def __call__(self, engine: Engine) -> None:
        self.sampler.set_epoch(engine.state.epoch)
        (state,) = np.random.SeedSequence([self.seed, engine.state.epoch, 2, rank()]).generate_state(1, np.uint64)
        torch.manual_seed(int(state >> np.uint64(1)))
