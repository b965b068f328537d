"""Memory of a network on a CPU: what its layers free serves the next layer and the next batch."""

import ctypes
import functools
import os
import platform
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from ignite.engine import Engine, Events

# options of glibc's mallopt(3)
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4
# Setting any of them ends that glibc moves the thresholds by itself; these are where it has moved them once a process
# has freed a block of 32 MB.
USUAL = {M_MMAP_MAX: 65536, M_MMAP_THRESHOLD: 32 << 20, M_TRIM_THRESHOLD: 64 << 20}


@contextmanager
def kept_memory() -> Iterator[None]:
    """Within it, freed memory stays with the process; at its end, what is free goes back to the system.

    glibc takes every block of more than 32 MB from the system and hands it back when it is freed. Each tensor of a
    full-size volume's first layers is such a block (205 MB), and clearing its pages takes an eighth of a forward pass.

    It is for one computation, not for a program: it holds for whatever the main thread takes and frees, a block that
    fits into a hole left behind is kept afterwards too, and of two that overlap the first to end ends both. Nothing
    changes on other threads, with another C library, or where ``MALLOC_...``, ``GLIBC_TUNABLES`` or ``LD_PRELOAD`` in
    the environment may say how memory is to be kept.
    """
    glibc = _glibc()
    if glibc is None:
        yield
        return
    glibc.mallopt(M_MMAP_MAX, 0)
    glibc.mallopt(M_TRIM_THRESHOLD, -1)  # never
    try:
        yield
    finally:
        for option, value in USUAL.items():
            glibc.mallopt(option, value)
        glibc.malloc_trim(0)


class MemoryKeeper:
    """Handler of an engine: :func:`kept_memory` while it runs."""

    def __init__(self) -> None:
        self._kept = ExitStack()

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, lambda: self._kept.enter_context(kept_memory()))
        for end in (Events.COMPLETED, Events.TERMINATE):  # after TERMINATE, COMPLETED may be left out
            engine.add_event_handler(end, self._kept.close)
        engine.add_event_handler(Events.EXCEPTION_RAISED, self._raise)

    def _raise(self, engine: Engine, error: BaseException) -> None:
        self._kept.close()
        raise error


@functools.cache
def _glibc() -> ctypes.CDLL | None:
    """The C library, if it is glibc and nobody has said how it is to keep memory."""
    said = any(name in ("GLIBC_TUNABLES", "LD_PRELOAD") or name.startswith("MALLOC_") for name in os.environ)
    return None if said or platform.libc_ver()[0] != "glibc" else ctypes.CDLL(None)
