"""One process or many: the few questions that differ. Everything is a no-op when torch.distributed is not running."""

from __future__ import annotations

from datetime import timedelta
from itertools import chain, zip_longest
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

PATIENCE = timedelta(hours=12)  # the other processes wait while the first one reads a cohort into the cache


def start(backend: str) -> None:
    """Join the process group that torchrun describes."""
    dist.init_process_group(backend, timeout=PATIENCE)


def world_size() -> int:
    """Processes in the group; 1 when there is none."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's number, from 0."""
    return dist.get_rank() if world_size() > 1 else 0


def is_primary() -> bool:
    """Whether this process is the one that logs and writes."""
    return rank() == 0


def barrier() -> None:
    """Wait for all processes."""
    if world_size() > 1:
        dist.barrier()


def gather_batch(values: Tensor) -> Tensor:
    """[W N] the detached values [N] of all processes, in order of rank; every process must bring as many.

    Stays on the device: the group losses of a global batch cost no synchronisation with the host.
    """
    if world_size() == 1:
        return values.detach()
    gathered = [torch.empty_like(values) for _ in range(world_size())]
    dist.all_gather(gathered, values.detach().contiguous())
    return torch.cat(gathered)


def local_part(values: Tensor) -> Tensor:
    """This process's [N] out of gathered [W N]."""
    return values.reshape(world_size(), -1)[rank()]


def gather_interleaved(items: list[Any]) -> list[Any]:
    """Items of all processes in the order of the data set, as MONAI's DistributedSampler dealt them out."""
    if world_size() == 1:
        return items
    gathered: list[list[Any]] = [[] for _ in range(world_size())]
    dist.all_gather_object(gathered, items)
    missing = object()
    return [item for item in chain.from_iterable(zip_longest(*gathered, fillvalue=missing)) if item is not missing]
