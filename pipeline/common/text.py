"""Text for logs and records: addresses without logins, names of devices."""

from __future__ import annotations

import platform
import re
from contextlib import suppress
from pathlib import Path

import torch


def device_name(device: torch.device) -> str:
    """What a device is called: the GPU's name, or the processor's."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    with suppress(OSError):
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        if found:
            return found[1].strip()
    return platform.processor() or platform.machine()


def without_login(text: str) -> str:
    """Text with the user and password of every address in it left out, also where they stand in its query."""
    # a password may hold / and @, so up to the last @; what follows a port is a path
    text = re.sub(r"(?<=://)([^/@:\s]+:(?!\d+/)[^\s'\"]*@|[^/@\s]+@)", "", text)
    return re.sub(r"(?<=[?&])(user|username|password|passwd|token)=[^&\s'\"]*", r"\1=", text)
