"""In which order and with which chance scans are drawn: a function of seed and epoch alone.

A draw carries the seed of its augmentation. So an epoch is the same whatever the number of loader processes, and a
training that is resumed draws what it would have drawn.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from ignite.engine import Engine, Events
from numpy.typing import NDArray
from torch.utils.data import Sampler

from ..common.distributed import rank, world_size
from ..common.names import SITE, UNKNOWN_GROUP
from .cohort import Cohort, SmallGroups, warn_of_small_cells
from .cohort_checks import CohortError
from .groups import doubtful_values, group_values, natural_order

Ints = NDArray[np.int64]
Items = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Draw:
    """One access to a scan."""

    index: int
    seed: int  # of its augmentation


def balanced_order(group: Sequence[int], batch_size: int, rng: np.random.Generator, what: str = "groups") -> Ints:
    """Indices of an epoch whose every batch holds every group, all groups equally often.

    A small group is repeated, shuffled anew each time. When the batch is no multiple of the groups, the places left
    over go to the groups in turn. Scans of unknown group get their share of all places, taken from the groups that have
    more than one in a batch.

    Args:
        group: [N] group ids, -1 unknown.
        batch_size: at least the number of groups, and the share of unknown scans on top. Consecutive ``batch_size`` of
            the [ceil(N / batch_size) * batch_size] indices are a batch.
        what: that the ids stand for, in errors.
    """
    ids = np.asarray(group, dtype=np.int64)
    known = [g for g in np.unique(ids) if g != UNKNOWN_GROUP]
    unknown = int((ids == UNKNOWN_GROUP).sum())
    if not known:
        raise ValueError(f"every scan is of unknown group: there are no {what} to put into every batch")
    least = -(-len(known) * len(ids) // (len(ids) - unknown))  # places for the unknown beside one for each group
    if batch_size < least:
        also = f" and {unknown / len(ids):.0%} of scans of unknown group" if unknown else ""
        said = f"batch_size must be at least {least} to hold {len(known)} {what}{also}, got {batch_size}"
        raise ValueError(f"{said}; accumulate multiplies it")
    pools = {g: _endless(np.flatnonzero(ids == g), rng) for g in (*known, *([UNKNOWN_GROUP] if unknown else []))}
    order: list[int] = []
    turn = due = 0
    for _ in range(-(-len(ids) // batch_size)):
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


def cells(items: Items) -> list[int]:
    """[N] one id for each pair of class and group, -1 where the group is unknown."""
    classes = max((int(item["label"]) for item in items), default=0) + 1
    return [
        UNKNOWN_GROUP if item["group"] == UNKNOWN_GROUP else int(item["group"]) * classes + int(item["label"])
        for item in items
    ]


def balanced_class_counts(items: Items, class_names: Sequence[str], every_cell: bool = False) -> dict[str, float]:
    """How often :func:`balanced_order` draws each class, in scans (N pi_y): logit adjustment adjusts for these.

    .. math:: \\pi_y = (1 - u) \\frac{1}{G} \\sum_g \\frac{n_{gy}}{n_g} + u \\frac{n_{uy}}{n_u}

    with u the share of scans of unknown group; ``items`` are the training split's (:meth:`~.Cohort.items`). With
    ``every_cell`` the groups g are the cells of class and group that have a scan.
    """
    label = np.array([item["label"] for item in items], dtype=np.int64)
    group = np.array(cells(items) if every_cell else [item["group"] for item in items], dtype=np.int64)
    counts = {g: np.bincount(label[group == g], minlength=len(class_names)) for g in np.unique(group)}
    share = {g: count / count.sum() for g, count in counts.items()}
    unknown = float((group == UNKNOWN_GROUP).mean())
    known = [of_class for g, of_class in share.items() if g != UNKNOWN_GROUP]
    prior = (1 - unknown) * np.mean(known, axis=0) if known else np.zeros(len(class_names))
    prior = prior + unknown * share.get(UNKNOWN_GROUP, 0)
    return {name: float(len(items) * p) for name, p in zip(class_names, prior, strict=True)}


def class_counts(cohort: Cohort, items: Items, every_group: bool, every_cell: bool = False) -> Mapping[str, float]:
    """Training scans of each class as they are drawn: the cohort's or, where groups or cells are balanced, balanced."""
    balanced = every_group or every_cell
    return balanced_class_counts(items, cohort.class_names, every_cell) if balanced else cohort.class_counts("train")


def group_counts(cohort: Cohort, items: Items) -> dict[str, int]:
    """Training scans of each group, in the order of the group ids; scans of no group count nowhere.

    A group without any gets the largest count, which a margin by counts (:func:`~.ldam_margins`) does not notice.
    CohortError: fewer than two groups have one.
    """
    counts = Counter(item["group"] for item in items)
    there = [name for g, name in enumerate(cohort.group_names) if counts[g]]
    if len(there) < 2:
        met = ", ".join(there) or "none"
        raise CohortError(f"a group head needs training scans of two groups at least; there is {met}")
    most = max(counts[g] for g in range(len(cohort.group_names)))
    return {name: counts[g] or most for g, name in enumerate(cohort.group_names)}


def with_sources(cohort: Cohort, items: Items) -> Items:
    """Training items with ``source``, the id of the scan's ``site`` among those of the training split, -1 unknown.

    CohortError: the cohort has no column ``site``, or the training split has scans of fewer than two sites.
    """
    if SITE not in cohort.table:
        raise CohortError(f"a site head needs the column {SITE!r}, which says where a scan was made; it is missing")
    sites = dict(zip(cohort.table["scan"], group_values(cohort.table, [SITE])[SITE], strict=True))
    names = sorted({sites[item["scan"]] for item in items} - {""}, key=natural_order)
    for _, text, other in doubtful_values(pd.Series(names, dtype=str, name=SITE)):
        if other:
            raise CohortError(text)
    if len(names) < 2:
        there = ", ".join(names) or "none"
        raise CohortError(f"a site head needs training scans of two sites at least; there is {there}")
    ids = {name: index for index, name in enumerate(names)} | {"": UNKNOWN_GROUP}
    return [{**item, "source": ids[sites[item["scan"]]]} for item in items]


def source_counts(items: Items, every_group: bool, every_cell: bool = False) -> list[float]:
    """Training scans of each source of :func:`with_sources` as they are drawn, in the order of the source ids."""
    balanced = cells(items) if every_cell else [item["group"] for item in items]
    pairs = zip(items, balanced, strict=True)
    known = [{"label": i["source"], "group": g} for i, g in pairs if i["source"] != UNKNOWN_GROUP]
    counts = np.bincount([item["label"] for item in known])
    if not (every_group or every_cell):
        return [*counts]
    return list(balanced_class_counts(known, list(map(str, range(len(counts))))).values())


def training_items(cohort: Cohort, min_cell: int, small_groups: SmallGroups) -> Items:
    """:meth:`~.Cohort.training_items` in the order of their scans, so that no draw depends on the order of rows.

    A warning names the groups and cells of few scans.
    """
    warn_of_small_cells(cohort, min_cell, small_groups)
    return sorted(cohort.training_items(min_cell, small_groups), key=lambda item: item["scan"])


class EpochSampler(Sampler[Draw]):
    """The draws of an epoch, shuffled by seed and epoch, dealt out to the processes of a group.

    ``items`` are those of the training split, ``batch_size`` is that of a process. With ``every_group`` every (global)
    batch holds every group, equally often (:func:`balanced_order`), with ``every_cell`` every class of every group;
    else each scan is drawn once.
    """

    def __init__(
        self, items: Items, batch_size: int, seed: int = 0, every_group: bool = False, every_cell: bool = False
    ) -> None:
        self.group = cells(items) if every_cell else [int(item["group"]) for item in items]
        self.balanced = "cells of class and group" if every_cell else "groups" if every_group else None
        self.batch_size, self.seed, self.epoch = batch_size, seed, 1
        self.skip = 0  # draws of this process that the next iteration passes over
        if self.balanced:
            self._balanced_order(np.random.default_rng(0))  # can it be done at all

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, from 1, whose draws come next."""
        self.epoch = epoch

    def order(self) -> Ints:
        """Indices of the epoch for all processes; as many for each of them."""
        rng = np.random.default_rng([self.seed, self.epoch])
        if self.balanced:
            return self._balanced_order(rng)
        shuffled = rng.permutation(len(self.group))
        return np.resize(shuffled, -(-len(shuffled) // world_size()) * world_size())

    def _balanced_order(self, rng: np.random.Generator) -> Ints:
        return balanced_order(self.group, self.batch_size * world_size(), rng, self.balanced or "")

    def __iter__(self) -> Iterator[Draw]:
        order = self.order()
        seeds = np.random.SeedSequence([self.seed, self.epoch, 1]).generate_state(len(order))
        mine = slice(rank() + self.skip * world_size(), None, world_size())
        self.skip = 0
        yield from map(Draw, order[mine].tolist(), seeds[mine].tolist())

    def __len__(self) -> int:
        return len(self.order()) // world_size()


class SeedEpochs:
    """Handler of the trainer: tells the sampler its epoch, and seeds torch (dropout) by seed, epoch and process."""

    def __init__(self, sampler: EpochSampler, seed: int) -> None:
        self.sampler, self.seed = sampler, seed

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.EPOCH_STARTED, self)

    def __call__(self, engine: Engine) -> None:
        self.sampler.set_epoch(engine.state.epoch)
        (state,) = np.random.SeedSequence([self.seed, engine.state.epoch, 2, rank()]).generate_state(1, np.uint64)
        torch.manual_seed(int(state >> np.uint64(1)))
