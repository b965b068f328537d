"""What computes the network: PyTorch or OpenVINO, or the faster one; each volume once or also mirrored; kept memory."""

import ctypes
import functools
import importlib
import logging
import math
import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from threading import Lock
from types import ModuleType
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.inferers import Inferer, SimpleInferer
from torch import Tensor, nn

from fairlung.transforms.checks import check_setting

from ..common.errors import UserError
from ..common.imports import absent
from ..common.text import cut, one_line
from ..networks.precision import AmpInferer, has_bfloat16
from ..phantoms.anatomy import synthesize

logger = logging.getLogger(__name__)

# name of a runtime -> OpenVINO's hint of the precision that it computes in
OPENVINO_PRECISIONS = {"openvino": "f32", "openvino_bf16": "bf16"}
RUNTIMES = ("torch", "torch_bf16", *OPENVINO_PRECISIONS)
AUTO = "auto"
# How far a probability of the check volumes may lie from PyTorch's in float32 for a runtime to be chosen. In bfloat16
# the answers of trained networks to 180 scans moved by 0.021 at most, P by 0.001 at most; in OpenVINO's float32 by 1e-6
# (docs/performance.md, what fast paths change). A network that moves further on two scans is not like those.
TOLERANCE = 0.02
# Two phantoms are looked at, made by the pipeline itself: no file to ship, of any size, and like a chest CT, which
# noise is not, so what the network computes is of the size that it has on scans.
CHECKED = (("adenocarcinoma", "male"), ("covid19", "female"))
_CORE_LOCK = Lock()
# options of glibc's mallopt(3)
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4
# Setting any of them ends that glibc moves the thresholds by itself; these are where it has moved them once a process
# has freed a block of 32 MB.
USUAL = {M_MMAP_MAX: 65536, M_MMAP_THRESHOLD: 32 << 20, M_TRIM_THRESHOLD: 64 << 20}


class RuntimeUnavailableError(UserError, RuntimeError):
    """A runtime is not installed, or does not compute on this device."""


def inferer_of(
    runtime: str, device: torch.device | str, amp: bool = False, window: Sequence[float] = (-1350, 150)
) -> Inferer:
    """The inferer of a setting ``runtime``; RuntimeUnavailableError without OpenVINO, or for it on another device.

    A runtime is ``torch``; ``torch_bf16``, the same in bfloat16 where the CPU has it, with about three digits;
    ``openvino`` in float32, with PyTorch's answers but for rounding; ``openvino_bf16`` in bfloat16; or ``auto``, which
    is :class:`FastestInferer` on a CPU and ``torch`` elsewhere.

    Args:
        amp: the engine's mixed precision; ValueError for true on a CPU, where it would do nothing.
        window: HU that become 0 and 1 in the network's volumes.
    """
    known = (*RUNTIMES, AUTO)
    check_setting("runtime", runtime, runtime in known, f"one of {', '.join(known)}")
    on_cpu = torch.device(device).type == "cpu"
    check_setting("amp", amp, not (amp and on_cpu), "false on a CPU, where --runtime torch_bf16 is mixed precision")
    if runtime == AUTO and not on_cpu:
        logger.info("runtime auto is torch: the others compute on a CPU, the device is %s", device)
    if runtime == "torch" or (runtime == AUTO and not on_cpu):
        return SimpleInferer()
    if not on_cpu:
        raise RuntimeUnavailableError(f"runtime {runtime} computes on a CPU, the device is {device}; use torch there")
    if runtime == AUTO:
        return FastestInferer(window)
    return Bfloat16Inferer() if runtime == "torch_bf16" else OpenVINOInferer(OPENVINO_PRECISIONS[runtime])


class Bfloat16Inferer(AmpInferer):
    """PyTorch under bfloat16 autocast on the CPU."""

    runtime = "torch_bf16"

    def __init__(self) -> None:
        super().__init__(amp=True, device="cpu")


class FastestInferer(Inferer):
    """On a CPU the fastest of the runtimes that answer as PyTorch does, chosen at the first call by :func:`fastest`.

    Another network is chosen for anew. Args: ``window``: as of :func:`inferer_of`.
    """

    def __init__(self, window: Sequence[float] = (-1350, 150)) -> None:
        super().__init__()
        self.window = tuple(window)
        self._taken: tuple[nn.Module, str, Inferer] | None = None
        self._lock = Lock()  # one thread chooses, and is not timed beside another

    @property
    def runtime(self) -> str:
        """The one that was chosen; before the first call ``auto``."""
        return AUTO if self._taken is None else self._taken[1]

    def __call__(self, inputs: Tensor, network: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
        """What the network returns of volumes [N, 1, D, H, W] on the CPU."""
        with self._lock:
            taken = self._taken
            if taken is None or taken[0] is not network:
                self._taken = taken = (network, *fastest(network, check_volumes(inputs.shape[2:], self.window)))
        return taken[2](inputs, network, *args, **kwargs)


def check_volumes(shape: Sequence[int], window: Sequence[float]) -> Tensor:
    """Phantoms [2, 1, D, H, W] in [0, 1] of the shape (D, H, W), always the same: a man's tumour, a woman's covid19."""
    depth, height, width = (max(8, length) for length in shape)  # the least that a phantom has
    volumes = [
        synthesize(label, sex, rng=np.random.default_rng(0), shape=(depth, height, width)).hu for label, sex in CHECKED
    ]
    low, high = window
    grey = (torch.from_numpy(np.stack(volumes)[:, None]).float() - low) / (high - low)
    return grey.clamp_(0, 1)[:, :, : shape[0], : shape[1], : shape[2]].contiguous()


def fastest(network: nn.Module, volumes: Tensor, tolerance: float = TOLERANCE) -> tuple[str, Inferer]:
    """The name and the inferer of the runtime that computes a network soonest; the log says all times, and why.

    Each answers ``volumes`` [2, 1, D, H, W] one by one: the first is not timed, as OpenVINO compiles in it. Those stay
    out whose probabilities lie further than ``tolerance`` from PyTorch's in float32, which cannot do it, or which would
    compute in bfloat16 without a processor for it.
    """
    inferers: dict[str, Inferer] = {}
    seconds: dict[str, float] = {}
    moved: dict[str, float] = {}
    out: dict[str, str] = {}
    expected: Tensor | None = None
    for name in RUNTIMES:
        if name.endswith("bf16") and not has_bfloat16():
            out[name] = "this processor names no instructions for bfloat16"
            continue
        try:
            inferers[name] = inferer_of(name, "cpu")
            found, seconds[name] = _timed(inferers[name], network, volumes)
        except Exception as error:  # whatever a compiler stumbles over, PyTorch answers
            if name == "torch":
                raise
            kind = "" if isinstance(error, RuntimeUnavailableError) else f"{type(error).__name__}: "
            out[name] = cut(one_line(f"{kind}{error}"))
            continue
        expected = found if expected is None else expected
        moved[name] = float((found - expected).abs().max()) if found.shape == expected.shape else math.nan
        if name != "torch" and not moved[name] <= tolerance:  # not a number is not near
            out[name] = f"a probability is {moved[name]:.1e} from PyTorch's, at most {tolerance:g} is taken"
    taken = min((name for name in seconds if name not in out), key=seconds.__getitem__)
    times = ", ".join(f"{name} {each:.3g} s" for name, each in seconds.items())
    why = "".join(f"; not {name}: {reason}" for name, reason in out.items())
    logger.info(
        "runtime auto takes %s, the fastest of those within %g of PyTorch's probabilities (it is within %.1e): a scan "
        "takes %s%s", taken, tolerance, moved[taken], times, why,
    )  # fmt: skip
    chosen = inferers[taken]
    inferers.clear()
    if (glibc := _glibc()) is not None:
        glibc.malloc_trim(0)  # what the others have left, which kept_memory would keep
    return taken, chosen


def _timed(inferer: Inferer, network: nn.Module, volumes: Tensor) -> tuple[Tensor, float]:
    """Probabilities of each volume, one by one, and the seconds that the last of them took."""
    answers, seconds = [], math.inf
    with torch.no_grad():
        for volume in volumes.split(1):
            start = time.perf_counter()
            answers.append(inferer(volume, network))
            seconds = time.perf_counter() - start
    return torch.softmax(torch.cat(answers).double(), dim=-1), seconds


class OpenVINOInferer(SimpleInferer):
    """MONAI's ``SimpleInferer`` whose network OpenVINO compiles at the first call; later weights are not seen."""

    def __init__(self, precision: str = "f32") -> None:
        super().__init__()
        check_setting("precision", precision, precision in OPENVINO_PRECISIONS.values(), "f32 or bf16")
        import_openvino()
        self.precision = precision
        self.runtime = next(name for name, hint in OPENVINO_PRECISIONS.items() if hint == precision)
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
    try:
        with absent("openvino_telemetry"):
            return importlib.import_module("openvino")
    except ImportError as error:
        raise RuntimeUnavailableError(
            "OpenVINO is not installed: pip install 'fairlung[openvino]', or leave the runtime at torch"
        ) from error


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
    compiled, lock = core.compile_model(model, "CPU", hints), Lock()

    def call(image: Tensor) -> Tensor:
        with lock:  # it refuses a second thread while it computes, with all cores, for one
            return torch.from_numpy(compiled(image.numpy())[0].copy())

    return call


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

    @property
    def runtime(self) -> str:
        """What computes; of ``auto`` the one that was chosen."""
        return getattr(self.inferer, "runtime", "torch")

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
