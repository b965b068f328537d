"""Mixed precision on a CPU too, where MONAI's engines have none: they autocast for CUDA whatever their device is."""

import functools
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from monai.inferers import Inferer, SimpleInferer
from torch import Tensor

from fairlung.transforms.checks import check_setting

logger = logging.getLogger(__name__)

BFLOAT16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}  # as Linux names what x86 and Arm processors can do


def has_bfloat16(cpuinfo: str | Path = "/proc/cpuinfo") -> bool:
    """Whether the processor says that it has instructions for bfloat16; only Linux is asked."""
    path = Path(cpuinfo)
    return path.is_file() and not BFLOAT16_FLAGS.isdisjoint(path.read_text(errors="replace").split())


class AmpInferer(Inferer):
    """Another inferer whose network computes in bfloat16 where ``amp`` is true and the device is a CPU.

    The outputs are handed on in float32, so the loss is computed in it. Weights, gradients and the optimiser's state
    are float32 as with CUDA; bfloat16 has float32's range, so no gradient is scaled. On a CUDA device nothing is
    changed: the engine's own ``amp`` is to be true there, and false on a CPU.

    Args:
        amp: a processor without instructions for bfloat16 is slower with it, which is warned of once.
        device: of the network; ValueError for ``amp`` on anything but a CPU or CUDA.
        inferer: None is MONAI's ``SimpleInferer``.

    Example:
        >>> network = torch.nn.Linear(3, 2)
        >>> image = torch.rand(4, 3)
        >>> output = AmpInferer(amp=True, device="cpu")(image, network)
        >>> output.dtype, bool(torch.allclose(output, network(image), atol=0.05))
        (torch.float32, True)
    """

    def __init__(self, amp: bool, device: torch.device | str, inferer: Inferer | None = None) -> None:
        super().__init__()
        kind = torch.device(device).type
        check_setting("amp", amp, not amp or kind in ("cpu", "cuda"), f"false on the device {device}")
        self.inferer = SimpleInferer() if inferer is None else inferer
        self.autocasts = amp and kind == "cpu"
        if self.autocasts and not has_bfloat16():
            _warn()

    def __call__(self, inputs: Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """What the network gives: with bfloat16 inside, float32 tensors."""
        if not self.autocasts:
            return self.inferer(inputs, network, *args, **kwargs)
        with torch.autocast("cpu", torch.bfloat16):
            outputs = self.inferer(inputs, network, *args, **kwargs)
        return outputs.float()


@functools.cache  # a training has two of them
def _warn() -> None:
    logger.warning("this processor names no instructions for bfloat16: mixed precision (amp) is slower on it than none")
