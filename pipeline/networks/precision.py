"""Mixed precision on a CPU too, where MONAI's engines have none: they autocast for CUDA whatever their device is."""

import functools
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from monai.inferers import Inferer, SimpleInferer
from torch import Tensor, nn

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
    are float32 as with CUDA; bfloat16 has float32's range, so no gradient is scaled. Convolutions of few slices stay
    in float32 (:func:`keep_flat_convolutions`). On a CUDA device nothing is changed: the engine's own ``amp`` is to be
    true there, and false on a CPU.

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
        if isinstance(network, nn.Module):
            keep_flat_convolutions(network)
        with torch.autocast("cpu", torch.bfloat16):
            outputs = self.inferer(inputs, network, *args, **kwargs)
        return outputs.float()


@functools.cache  # a training has two of them
def _warn() -> None:
    logger.warning("this processor names no instructions for bfloat16: mixed precision (amp) is slower on it than none")


def keep_flat_convolutions(network: nn.Module) -> None:
    """Let the 3D convolutions of a network compute in float32 on a CPU whenever no window lies within the volume.

    That is along the depth: a kernel of 3 on two slices has padding in every window. oneDNN's gradient of such weights
    in bfloat16 reads, and writes, memory that is not its own: not a number, other numbers in every run, or the end of
    the process (torch 2.15, on a processor with AVX-512 BF16; R3D-18 has none on 64 slices, some on 16).
    The modules keep their names, weights and hooks. It holds in a second pass of activation checkpointing, too.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv3d) and not isinstance(module, _KeepsFlat):
            module.__class__ = _keeping_flat(type(module))  # type: ignore[arg-type]  # classes can be hashed


class _KeepsFlat(nn.Conv3d):
    def _conv_forward(self, image: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        on_cpu = image.device.type == "cpu" and torch.is_autocast_enabled("cpu")
        if not on_cpu or has_window_within(self, image.shape[-3]):
            return super()._conv_forward(image, weight, bias)
        with torch.autocast("cpu", enabled=False):
            return super()._conv_forward(image.float(), weight, bias)


@functools.cache
def _keeping_flat(kind: type[nn.Conv3d]) -> type[nn.Conv3d]:
    """A class of convolutions with :class:`_KeepsFlat` before it, of the same name, which settings and reports show."""
    return type(kind.__name__, (_KeepsFlat, kind), {"__module__": kind.__module__})


def has_window_within(convolution: nn.Conv3d, depth: int) -> bool:
    """Whether some window of a convolution over ``depth`` slices has no padding in front of it or behind it."""
    span, stride = convolution.dilation[0] * (convolution.kernel_size[0] - 1), convolution.stride[0]
    given = convolution.padding
    front = given[0] if isinstance(given, tuple) else span // 2 if given == "same" else 0
    return -front % stride + span < depth
