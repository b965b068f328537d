"""Freed memory is used again while an engine runs; afterwards large blocks go back to the system as usual."""

from __future__ import annotations

import ctypes
import resource
from collections.abc import Iterator
from contextlib import nullcontext

import pytest
import torch
from ignite.engine import Engine, Events

from fairlung.pipeline.inference import runtimes as memory
from fairlung.pipeline.inference.runtimes import MemoryKeeper, kept_memory

pytestmark = pytest.mark.skipif(
    memory._glibc() is None or not hasattr(ctypes.CDLL(None), "mallinfo2"),
    reason="of glibc's allocator, from 2.33 on, as it is by itself",
)

SIZE = 64 << 20  # bytes, of a block that glibc would hand back
PAGES = SIZE // resource.getpagesize()


FIELDS = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"  # of glibc's mallinfo2


class MallInfo(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in FIELDS.split()]


def taken_by_itself(size: int) -> bool:
    """Whether glibc takes a block of so many bytes from the system by itself, to hand it back when it is freed."""
    glibc = ctypes.CDLL(None)
    glibc.mallinfo2.restype = MallInfo
    before = glibc.mallinfo2().hblks
    block = torch.empty(size, dtype=torch.uint8)
    taken = glibc.mallinfo2().hblks > before
    del block
    return taken


def is_kept() -> bool:
    return not taken_by_itself(SIZE)


def is_usual() -> bool:
    return taken_by_itself(3 << 30)  # larger than any hole that kept blocks leave; its pages are never touched


def resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1])


@pytest.fixture(autouse=True)
def _asked_anew(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    memory._glibc.cache_clear()
    yield
    monkeypatch.undo()
    memory._glibc.cache_clear()


def test_a_block_is_used_again_and_goes_back_at_the_end() -> None:
    with kept_memory():
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(20):
            torch.ones(SIZE // 4)
        assert resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before < 10 * PAGES  # some, until it settles
        held = resident()
        assert is_kept()
    assert resident() < held - PAGES / 2
    assert is_usual()


@pytest.mark.parametrize("ends", ["well", "with an error", "before its time"])
def test_while_an_engine_runs(ends: str) -> None:
    def step(engine: Engine, number: int) -> bool:
        if ends == "with an error" and number == 2:
            raise RuntimeError("a scan")
        if ends == "before its time":
            engine.terminate()
        return is_kept()

    engine = Engine(step)
    seen: list[bool] = []
    MemoryKeeper().attach(engine)
    engine.add_event_handler(Events.ITERATION_COMPLETED, lambda engine: seen.append(engine.state.output))
    for _ in range(1 if ends == "with an error" else 2):  # twice, as for a folder that is watched
        with pytest.raises(RuntimeError, match="a scan") if ends == "with an error" else nullcontext():
            engine.run([1, 2, 3])
        assert is_usual()
    assert seen and all(seen)


@pytest.mark.parametrize("name", ["MALLOC_ARENA_MAX", "GLIBC_TUNABLES", "LD_PRELOAD"])
def test_what_the_environment_says_stays(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "1")
    with kept_memory():
        assert is_usual()
