"""A CPU process keeps the memory of its tensors; a GPU's and other C libraries are left alone."""

from __future__ import annotations

import platform
import subprocess
import sys
import textwrap

import pytest
import torch

from fairlung.pipeline.freed_memory import keep_freed_memory

GLIBC = platform.libc_ver()[0] == "glibc"


def test_a_gpu_is_left_alone() -> None:
    assert keep_freed_memory(torch.device("cuda")) is False


def test_another_system_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert keep_freed_memory("cpu") is False


@pytest.mark.skipif(not GLIBC, reason="mallopt is glibc's")
def test_freed_tensors_cost_no_page_faults() -> None:
    """In a process of its own: what is set stays set."""
    code = """
        import resource
        import torch
        from fairlung.pipeline.freed_memory import keep_freed_memory

        def faults():
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            for _ in range(4):
                torch.ones(64 << 20, dtype=torch.uint8)
            return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

        before = faults()
        assert keep_freed_memory("cpu")
        faults()
        print(before, faults())
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
    before, after = map(int, done.stdout.split())
    assert after < before / 10
