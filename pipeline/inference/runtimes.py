"""What computes the network: PyTorch or OpenVINO, each volume once or also mirrored; and the memory that it keeps."""

import ctypes
import functools
import importlib
import logging
import math
import os
import platform
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from threading import Lock
from types import ModuleType
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.inferers import Inferer, SimpleInferer
from torch import Tensor, nn

from fairlung.transforms.checks import check_setting

from ..common.errors import UserError

# name of a runtime -> OpenVINO's hint of the precision that it computes in
OPENVINO_PRECISIONS = {"openvino": "f32", "openvino_bf16": "bf16"}
RUNTIMES = ("torch", *OPENVINO_PRECISIONS)
_CORE_LOCK = Lock()
# options of glibc's mallopt(3)
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4
# Setting any of them ends that glibc moves the thresholds by itself; these are where it has moved them once a process
# has freed a block of 32 MB.
USUAL = {M_MMAP_MAX: 65536, M_MMAP_THRESHOLD: 32 << 20, M_TRIM_THRESHOLD: 64 << 20}


class RuntimeUnavailableError(UserError, RuntimeError):
    """A runtime is not installed, or does not compute on this device."""


def inferer_of(runtime: str, device: torch.device | str) -> Inferer:
    """The inferer of a setting ``runtime``; RuntimeUnavailableError without OpenVINO, or for it on another device.

    A runtime is ``torch``; ``openvino`` in float32, with PyTorch's answers but for rounding; or ``openvino_bf16`` in
    bfloat16 where the CPU has it, with about three digits.
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
    With ``combine`` the members of an ensemble answer as one: the logarithm of the mean of their probabilities.
    """

    def __init__(self, mirror: bool = False, inferer: Inferer | None = None, combine: bool = False) -> None:
        super().__init__()
        check_setting("mirror", mirror, isinstance(mirror, bool), "true or false")
        self.mirror, self.combine = mirror, combine
        self.inferer = SimpleInferer() if inferer is None else inferer

    def __call__(self, inputs: Tensor, network: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
        """Logits [N, C] or [N, M, C] of volumes [N, 1, D, H, W]."""
        logits = self.inferer(inputs, network, *args, **kwargs)
        if self.mirror:
            if inputs.ndim != 5:
                raise ValueError(f"flip_tta mirrors volumes; the network is given {tuple(inputs.shape)}")
            mirrored = self.inferer(inputs.flip(-1), network, *args, **kwargs)
            logits = log_mean_probability(torch.stack([logits, mirrored]), dim=0)
        return log_mean_probability(logits, dim=1) if self.combine and logits.ndim == 3 else logits


def log_mean_probability(logits: Tensor, dim: int) -> Tensor:
    """Logarithm, in float32, of the mean over ``dim`` of the softmax over the last axis; its softmax is that mean."""
    return torch.logsumexp(torch.log_softmax(logits.float(), dim=-1), dim=dim) - math.log(logits.shape[dim])


@contextmanager
def kept_memory() -> Iterator[None]:
    """Within it, freed memory stays with the process; at its end, what is free goes back to the system.

    glibc takes every block of more than 32 MB from the system and hands it back when it is freed. Each tensor of a
    full-size volume's first layers is such a block (205 MB), and clearing its pages takes an eighth of a forward pass.

    It is for one computation, not for a program: it holds for whatever the main thread takes and frees, a block that
    fits into a hole left behind is kept afterwards too, and where two overlap, the end of the first ends both.
    Nothing changes on other threads, with another C library, or where ``MALLOC_...``, ``GLIBC_TUNABLES`` or
    ``LD_PRELOAD`` in the environment may say how memory is to be kept.
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
