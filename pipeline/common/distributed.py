"""One process or many: ignite's answers, and those of a single process where there is no process group."""

import os
from collections.abc import Callable
from datetime import timedelta
from itertools import chain, zip_longest
from typing import Any, TypeVar

import ignite.distributed as idist
import torch
import torch.distributed as dist
from torch import Tensor

from .errors import UserError

Made = TypeVar("Made")
PATIENCE = timedelta(hours=12)  # the other processes wait while the first one reads a cohort into the cache


class StartError(UserError, RuntimeError):
    """A process that should be one of several was begun alone."""


class RestartError(UserError, RuntimeError):
    """torchrun was begun in a way in which its restarts hang."""


def usable_cores() -> int:
    """The cores that this process may use, which a scheduler such as SLURM makes fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def start_processes(backend: str) -> None:
    """Join the process group that torchrun describes.

    torchrun keeps its key-value store when it restarts the processes (``--max_restarts``), and with it the addresses of
    dead ones, for which the new ones would wait (pytorch issue 135712). On one host they get keys of their own. Several
    hosts do not count restarts alike: RestartError where they share the store; there torchrun has to make a new one.
    StartError without torchrun.
    """
    if "WORLD_SIZE" not in os.environ:
        raise StartError(
            "nothing says which process this is: the overlays multi_gpu_* are for processes that are begun by torchrun"
        )
    shared = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    if not shared or os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0") == "0":
        dist.init_process_group(backend, timeout=PATIENCE)
        idist.sync()  # ignite's first look at the group is a collective: now, as every process is here
        return
    if os.environ["WORLD_SIZE"] != os.environ["LOCAL_WORLD_SIZE"]:
        raise RestartError(
            "processes on several hosts could not find each other after a restart: begin torchrun with "
            "--rdzv_backend c10d and the environment variable TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 on every host, or "
            "without --max_restarts"
        )
    store, number, processes = next(dist.rendezvous("env://", timeout=PATIENCE))
    store = dist.PrefixStore(f"attempt_{os.environ['TORCHELASTIC_RESTART_COUNT']}", store)
    dist.init_process_group(backend, store=store, rank=number, world_size=processes, timeout=PATIENCE)
    idist.sync()


def local_device() -> torch.device:
    """This process's own GPU, as torchrun counts the processes of a host; where there are none, the CPU."""
    return torch.device("cuda", int(os.environ["LOCAL_RANK"])) if torch.cuda.is_available() else torch.device("cpu")


def world_size() -> int:
    """Processes in the group; 1 when there is none."""
    # once its group has ended ignite would still ask it
    return idist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's number, from 0."""
    return idist.get_rank() if world_size() > 1 else 0


def is_primary() -> bool:
    """Whether this process is the one that logs and writes."""
    return rank() == 0


def is_first_here() -> bool:
    """Whether this process is the first one of its host: hosts need not share a disk."""
    return world_size() == 1 or idist.get_local_rank() == 0


def barrier() -> None:
    """Wait for all processes."""
    if world_size() > 1:
        idist.barrier()


def gather_batch(values: Tensor) -> Tensor:
    """[W N] the detached values [N] of all processes in order of rank, as many of each; they stay on the device."""
    values = values.detach()
    return values if world_size() == 1 else idist.all_gather(values.contiguous())


def whole_batch_rows(values: Tensor) -> Tensor:
    """[W N, ...] the rows of all processes in order of rank, for a loss of pairs; the gradient is this process's part.

    It is W times what its own rows [N, ...] contribute: the mean over processes, as of their gradients, is the whole.
    """
    if world_size() == 1:
        return values
    whole, first = gather_batch(values), rank() * len(values)
    own = values + (world_size() - 1) * (values - values.detach())
    return torch.cat([whole[:first], own, whole[first + len(values) :]])


def of_first_here(make: Callable[..., Made], *arguments: Any) -> Made:
    """What ``make(*arguments)`` gives to the first process of this host; the others take it, so it has to pickle."""
    if world_size() == 1:
        return make(*arguments)
    made = idist.all_gather([make(*arguments) if is_first_here() else None])
    return made[rank() - idist.get_local_rank()][0]


def local_part(values: Tensor) -> Tensor:
    """This process's [N] out of gathered [W N]."""
    return values.reshape(world_size(), -1)[rank()]


def gather_interleaved(items: list[Any]) -> list[Any]:
    """Items of all processes in the order of the data set, as MONAI's DistributedSampler dealt them out."""
    if world_size() == 1:
        return items
    missing = object()
    dealt = zip_longest(*idist.all_gather(items), fillvalue=missing)
    return [item for item in chain.from_iterable(dealt) if item is not missing]
