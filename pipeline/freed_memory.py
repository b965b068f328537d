"""Memory that a CPU computation frees and needs again at once."""

from __future__ import annotations

import ctypes
import sys

import torch

# parameters of glibc's mallopt(3), from malloc.h
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def keep_freed_memory(device: torch.device | str) -> bool:
    """Let this process keep the memory of freed tensors, where it computes on a CPU under glibc.

    glibc hands each tensor above 32 MB back to the system when it is freed. The next one is handed out page by page,
    and each page cleared: a full-size forward pass has over a million page faults, a fifth of its time. Answers do not
    change. The process holds its largest amount of memory until it ends, and that is larger, as what is kept is in
    pieces (a batch of two scans: 4.6 GB in place of 3.2).

    Args:
        device: of the computation; a GPU's memory is PyTorch's own business.

    Returns:
        Whether the C library knows the settings and took them.
    """
    if torch.device(device).type != "cpu" or sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is None:
        return False
    return bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, -1))
