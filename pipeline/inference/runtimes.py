"""What computes the network: PyTorch or OpenVINO, and each volume once or also mirrored."""

import functools
import importlib
import logging
import math
import sys
from collections.abc import Callable
from threading import Lock
from types import ModuleType
from typing import Any

import torch
from monai.inferers import Inferer, SimpleInferer
from torch import Tensor, nn

from fairlung.transforms.checks import check_setting

from ..common.errors import UserError

# name of a runtime -> OpenVINO's hint of the precision that it computes in
OPENVINO_PRECISIONS = {"openvino": "f32", "openvino_bf16": "bf16"}
RUNTIMES = ("torch", *OPENVINO_PRECISIONS)


class RuntimeUnavailableError(UserError, RuntimeError):
    """A runtime is not installed, or does not compute on this device."""


def inferer_of(runtime: str, device: torch.device | str) -> Inferer:
    """The inferer of a setting ``runtime``.

    Args:
        runtime: ``torch``; ``openvino`` in float32, with PyTorch's answers but for rounding; ``openvino_bf16`` in
            bfloat16 where the CPU has it, with about three digits.

    Raises:
        ValueError: there is no such runtime.
        RuntimeUnavailableError: OpenVINO is not installed, or the device is no CPU.
    """
    check_setting("runtime", runtime, runtime in RUNTIMES, f"one of {', '.join(RUNTIMES)}")
    if runtime == "torch":
        return SimpleInferer()
    if torch.device(device).type != "cpu":
        raise RuntimeUnavailableError(f"runtime {runtime} computes on a CPU, the device is {device}; use torch there")
    return OpenVINOInferer(OPENVINO_PRECISIONS[runtime])


class OpenVINOInferer(SimpleInferer):
    """MONAI's ``SimpleInferer`` whose network OpenVINO compiles at the first call; later weights are not seen."""

    def __init__(self, precision: str = "f32") -> None:
        super().__init__()
        check_setting("precision", precision, precision in OPENVINO_PRECISIONS.values(), "f32 or bf16")
        import_openvino()
        self.precision = precision
        self._compiled: tuple[nn.Module, Callable[[Tensor], Tensor]] | None = None

    def __call__(self, inputs: Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> Tensor:
        """What the network returns, float32, of volumes [N, 1, D, H, W] on the CPU."""
        if not isinstance(network, nn.Module):
            raise TypeError(f"network must be a torch module, got {type(network).__name__}")
        if self._compiled is None or self._compiled[0] is not network:
            self._compiled = network, openvino_network(network, inputs, self.precision)
        return super().__call__(inputs, self._compiled[1], *args, **kwargs)


def import_openvino() -> ModuleType:
    """OpenVINO without ``openvino_telemetry``: with it, every import and conversion is reported to its makers."""
    reporter = sys.modules.get("openvino_telemetry")
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # as if it were not installed
    try:
        return importlib.import_module("openvino")
    except ImportError as error:
        raise RuntimeUnavailableError(
            "OpenVINO is not installed: pip install 'fairlung[openvino]', or leave the runtime at torch"
        ) from error
    finally:
        del sys.modules["openvino_telemetry"]
        if reporter is not None:
            sys.modules["openvino_telemetry"] = reporter


_CORE_LOCK = Lock()


@functools.cache
def _openvino_core() -> Any:
    """OpenVINO's devices, for as long as the process lives.

    Where a CPU has AMX, they give the thread that makes them a stack for its signal handlers. Were they collected with
    the last network by another thread, that stack would be freed in use, and the next signal would end the process.
    """
    return import_openvino().Core()


def openvino_network(network: nn.Module, example: Tensor, precision: str = "f32") -> Callable[[Tensor], Tensor]:
    """A network in evaluation mode, compiled for any number of volumes like ``example`` [N, 1, D, H, W]."""
    with _CORE_LOCK:  # or two threads would make one each, and the second go
        core = _openvino_core()
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.fx_decoder import TorchFXPythonDecoder

    if network.training:
        raise ValueError("network must be in evaluation mode")
    two = example[:1].expand(2, *example.shape[1:])  # a batch of one would be taken for a fixed size
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)  # it lists the operators that this version of PyTorch lacks
    try:
        with torch.no_grad():
            program = torch.export.export(network, (two,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
        decoder = TorchFXPythonDecoder.from_exported_program(program)  # a name: it must outlive the conversion
        reader = FrontEndManager().load_by_framework("pytorch")
        model = reader.convert(reader.load(decoder))
    finally:
        logging.disable(before)
    model.reshape([-1, *example.shape[1:]])
    hints = {"INFERENCE_PRECISION_HINT": precision, "PERFORMANCE_HINT": "LATENCY"}
    compiled = core.compile_model(model, "CPU", hints)
    return lambda image: torch.from_numpy(compiled(image.numpy())[0].copy())


class MirrorInferer(Inferer):
    """An inferer that can also show the network each volume mirrored, left and right exchanged.

    The training shows volumes mirrored so (``RandFlipd`` along W, the last axis). A member's probability is the mean of
    its two probabilities, not of its logits; the logarithm of that mean is returned, whose softmax is the mean.
    Without ``mirror`` the network's logits are returned. ``inferer`` None is MONAI's ``SimpleInferer``.
    """

    def __init__(self, mirror: bool = False, inferer: Inferer | None = None) -> None:
        super().__init__()
        check_setting("mirror", mirror, isinstance(mirror, bool), "true or false")
        self.mirror = mirror
        self.inferer = SimpleInferer() if inferer is None else inferer

    def __call__(self, inputs: Tensor, network: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
        """Logits [N, C] or [N, M, C] of volumes [N, 1, D, H, W]."""
        logits = self.inferer(inputs, network, *args, **kwargs)
        if not self.mirror:
            return logits
        mirrored = self.inferer(inputs.flip(-1), network, *args, **kwargs)
        log_p = torch.log_softmax(torch.stack([logits, mirrored]).float(), dim=-1)
        return torch.logsumexp(log_p, dim=0) - math.log(2)
