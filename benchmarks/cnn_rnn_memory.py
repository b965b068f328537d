"""What a training step of the CNN-RNN needs: the figures of docs/method.md, counted on tensors without data.

python benchmarks/cnn_rnn_memory.py
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from fairlung.pipeline.networks.cnn_rnn import ENCODER_MODES, FEATURES, CNNRNNClassifier, imagenet_input


@dataclass(frozen=True)
class Requirements:
    """Bytes in memory and operations of a training step; ``str`` is for people."""

    volumes: int  # the batch
    activations: int  # of the slices that are encoded at a time, at their peak; of all slices with ``full``
    features: int  # of all slices, with their copies and gradients
    weights: int  # parameters, and of those that are trained a gradient and Adam's two moments
    operations: int  # floating-point operations of the encoder: a multiplication and an addition are two

    @property
    def memory(self) -> int:
        """All bytes."""
        return self.volumes + self.activations + self.features + self.weights

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {_size(getattr(self, name))}" for name in ("volumes", "activations", "features"))
        return (
            f"about {_size(self.memory)} ({parts}, weights {_size(self.weights)}) and "
            f"{self.operations / 1e12:.3g} Tflop"
        )


def _size(number: int) -> str:
    return f"{number / 2**30:.1f} GiB" if number >= 2**30 else f"{number / 2**20:.0f} MiB"


def requirements(
    batch_size: int, depth: int, size: tuple[int, int], encoder_mode: str, chunk: int, hidden: int = 128
) -> Requirements:
    """What a training step needs in single precision, for volumes without padding.

    The encoder's part is counted, not guessed: it runs on tensors without data (PyTorch's meta device), forward and,
    where it is trained, backward. Not in it: the workspace of convolutions, what an allocator holds in reserve, and the
    loading processes. Mixed precision halves the activations.

    Args:
        batch_size: N.
        depth: slices D of a volume.
        size: (H, W) in pixels.
        encoder_mode: of :class:`CNNRNNClassifier`.
        chunk: slices encoded at a time.
        hidden: units of the GRU.
    """
    slices = batch_size * depth
    trained = encoder_mode != "freeze"
    at_once = _encoder_cost(min(chunk, depth), size, trained)
    activations = at_once.peak
    if encoder_mode == "full":  # the last chunk's backward begins when every other chunk's activations are kept
        activations += round(at_once.kept * (slices / min(chunk, depth) - 1))
    recurrent = 3 * hidden * (FEATURES + hidden + 2)
    # features: of the chunks, concatenated and packed, and as many gradients
    copies = 6 if trained else 3
    return Requirements(
        volumes=4 * slices * size[0] * size[1],
        activations=activations,
        features=4 * slices * FEATURES * copies,
        weights=4 * (at_once.parameters * (4 if trained else 1) + 4 * recurrent),
        operations=at_once.operations * slices * {"freeze": 1, "full": 3, "recompute": 4}[encoder_mode],
    )


@dataclass(frozen=True)
class _EncoderCost:
    peak: int  # bytes alive at the most, in the forward and, if trained, the backward pass
    kept: int  # bytes alive between them
    parameters: int
    operations: int  # of one slice, forward


@lru_cache(maxsize=16)
def _encoder_cost(chunk: int, size: tuple[int, int], trained: bool) -> _EncoderCost:
    with torch.device("meta"):
        encoder = CNNRNNClassifier(2).encoder.requires_grad_(trained)
        slices = torch.empty(chunk, *size)
    for parameter in encoder.parameters():
        if trained:  # gradients of the weights are counted with the weights
            parameter.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        encoder(imagenet_input(slices)).mean((2, 3))
    with torch.set_grad_enabled(trained), LiveMemory() as memory:
        features = encoder(imagenet_input(slices)).mean((2, 3))
        kept = memory.alive
        if trained:
            features.sum().backward()
    parameters = sum(parameter.numel() for parameter in encoder.parameters())
    return _EncoderCost(memory.peak, kept, parameters, counter.get_total_flops() // chunk)


class LiveMemory(TorchDispatchMode):
    """Bytes of the tensors that operators made inside this context: alive now, and at their peak.

    Exact and the same in every run, as it counts storages and asks neither clock nor operating system. It sees what
    operators return, so not the workspace inside one.
    """

    def __init__(self) -> None:
        super().__init__()
        self.alive = 0
        self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._see((args, kwargs), counted=False)  # what was there before, such as weights
        result = func(*args, **(kwargs or {}))
        self._see(result, counted=True)
        return result

    def _see(self, tensors: Any, counted: bool) -> None:
        for tensor in tree_leaves(tensors):
            if not isinstance(tensor, Tensor) or tensor.layout is not torch.strided:
                continue
            storage = tensor.untyped_storage()
            key = storage._cdata
            if key in self._known:
                continue
            self._known.add(key)
            size = storage.nbytes() if counted else 0
            self.alive += size
            self.peak = max(self.peak, self.alive)
            weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.alive -= size


if __name__ == "__main__":
    for mode in ENCODER_MODES:
        print(f"{mode}: {requirements(2, 700, (224, 224), mode, chunk=16)}")
