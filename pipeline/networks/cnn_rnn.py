"""The competition baseline (paper, Sec. 4.1.2): a ResNet-50 encodes each slice, a GRU reads the slices in order.

How many slices of a scan are real travels in the volume: preprocessing gives values in [0, 1], and the slices that
fill a scan up to the batch's depth hold :data:`PADDING`, which is below. So a batch stays ``(image, target)``, and any
engine, sampler or metric works as for the other networks.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import ResNet50_Weights, resnet50

from ..common.distributed import is_primary
from ..common.volumes import slice_counts
from .pretrained import load_published_weights, refuse_unused_weights

logger = logging.getLogger(__name__)


ENCODER_MODES = ("freeze", "recompute", "full")
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
FEATURES = 2048  # of a slice


def imagenet_input(slices: Tensor) -> Tensor:
    """Grey slices [L, H, W] in [0, 1] as ImageNet networks expect pictures: [L, 3, H, W], grey thrice, standardised."""
    mean, std = (slices.new_tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    return (slices[:, None] - mean) / std


class CNNRNNClassifier(nn.Module):
    """ResNet-50 a slice, unidirectional GRU over the slices, linear head on the state after the last real slice.

    Slices are encoded ``chunk`` at a time. What that costs is a matter of ``encoder_mode``:

    - ``freeze``: the encoder is not trained; nothing of it is kept for a backward pass.
    - ``recompute``: the encoder is trained; a chunk's activations are computed again in the backward pass
      (``torch.utils.checkpoint``), so that those of one chunk exist at a time. Same gradient as ``full``.
    - ``full``: the encoder is trained and all activations are kept: memory grows with the number of slices.

    Batch normalisation uses its running statistics in every mode, in training too, and does not update them; its scale
    and shift are trained with the rest. Statistics of a chunk would be those of neighbouring slices of one scan, would
    depend on ``chunk``, differ from those of evaluation, and enter the running ones twice under ``recompute``. With
    ImageNet weights they are ImageNet's. Without, they are 0 and 1, which normalises nothing; the last normalisation of
    each residual branch then starts at scale 0 (Goyal et al. 2017), so that the signal still keeps its size.

    Args:
        num_classes: C, at least 2.
        pretrained: start the encoder from ImageNet weights (IMAGENET1K_V1). Evaluation builds the network with
            ``False`` and loads a checkpoint.
        weights: local file with torchvision's ResNet-50 state dict; None lets torchvision find or download it.
        encoder_mode: ``freeze``, ``recompute`` or ``full``.
        chunk: slices encoded at a time.
        hidden: units of the GRU.
        dropout: probability before the head, in [0, 1).

    Raises:
        PretrainedWeightsError: ``pretrained`` and the weights cannot be had or do not fit.
    """

    explained_layer = "last_stage"  # where Grad-CAM looks

    def __init__(
        self,
        num_classes: int,
        pretrained: bool = False,
        weights: str | Path | None = None,
        encoder_mode: str = "recompute",
        chunk: int = 16,
        hidden: int = 128,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        if num_classes < 2:
            raise ValueError(f"num_classes must be at least 2, got {num_classes}")
        if hidden < 1:
            raise ValueError(f"hidden must be at least 1, got {hidden}")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {dropout}")
        _check_encoding(encoder_mode, chunk)
        refuse_unused_weights(pretrained, weights)
        self.encoder_mode = encoder_mode
        self.chunk = chunk
        self.pretrained = pretrained
        self.encoder = _encoder(pretrained, weights)
        self.encoder.requires_grad_(encoder_mode != "freeze")
        self.last_stage = nn.Identity()  # sees the encoder's maps of whole volumes when a prediction is explained
        self.gru = nn.GRU(FEATURES, hidden, batch_first=True)
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(hidden, num_classes))
        self._announced = False
        self.train()

    def train(self, mode: bool = True) -> CNNRNNClassifier:
        """As of any module, except that the encoder's batch normalisation keeps its running statistics."""
        super().train(mode)
        self.encoder.eval()  # it has no other layer that knows two modes
        return self

    def forward(self, image: Tensor) -> Tensor:
        """Logits [N, C] of volumes [N, 1, D, H, W]: slices in [0, 1], then any number of padded ones.

        Padding and the other volumes of a batch change nothing. In evaluation mode with gradient enabled, as Grad-CAM
        runs it, the maps of all slices exist at once: :attr:`last_stage` receives them as [N, 2048, D, h, w].

        Raises:
            ValueError: see :func:`slice_counts`.
        """
        counts = slice_counts(image)
        volumes = [volume[:count] for volume, count in zip(image[:, 0], counts, strict=True)]
        if self.training:
            self._announce(image)
        if torch.is_grad_enabled() and not self.training:
            features = self._explained(volumes, image.shape[2])
        else:
            features = [self.encode(volume) for volume in volumes]
        # packed, the GRU of each volume ends at its last real slice
        _, state = self.gru(pack_sequence(features, enforce_sorted=False))
        return self.head(state[-1])

    def encode(self, slices: Tensor) -> Tensor:
        """Features [L, 2048] of slices [L, H, W], a chunk at a time, with gradient as ``encoder_mode`` says."""
        return torch.cat([self._encode_chunk(part) for part in slices.split(self.chunk)])

    def _encode_chunk(self, slices: Tensor) -> Tensor:
        if self.encoder_mode == "freeze":
            with torch.no_grad():
                return _features(self.encoder, slices)
        if self.encoder_mode == "recompute" and torch.is_grad_enabled():
            # nothing in the encoder is random: no state of a generator needs to be kept
            return checkpoint(_features, self.encoder, slices, use_reentrant=False, preserve_rng_state=False)
        return _features(self.encoder, slices)

    def _explained(self, volumes: Sequence[Tensor], depth: int) -> list[Tensor]:
        padded = []
        for volume in volumes:
            maps = torch.cat([self.encoder(imagenet_input(part)) for part in volume.split(self.chunk)])
            padded.append(torch.cat([maps, maps.new_zeros(depth - len(maps), *maps.shape[1:])]))
        stage = self.last_stage(torch.stack(padded).movedim(2, 1))
        return [features[: len(volume)] for features, volume in zip(stage.mean((3, 4)).mT, volumes, strict=True)]

    def _announce(self, image: Tensor) -> None:
        """Log once what a step needs, before the first one runs out of it."""
        if self._announced or not is_primary():
            return
        self._announced = True
        if self.encoder_mode == "freeze" and not self.pretrained:
            logger.warning("the encoder is frozen with random weights: only the GRU and the head will learn")
        batch_size, _, depth, *size = image.shape
        need = requirements(batch_size, depth, (size[0], size[1]), self.encoder_mode, self.chunk, self.gru.hidden_size)
        logger.info(
            "CNN-RNN, encoder_mode %s, chunk %d: a step on %d scans of up to %d slices of %d x %d needs %s",
            self.encoder_mode, self.chunk, batch_size, depth, *size, need,
        )  # fmt: skip


def _encoder(pretrained: bool, weights: str | Path | None) -> nn.Sequential:
    """ResNet-50 up to its last stage, under torchvision's names: [L, 3, H, W] to [L, 2048, H / 32, W / 32]."""
    resnet = resnet50(weights=None, zero_init_residual=True)
    if pretrained:
        load_published_weights(resnet, ResNet50_Weights.IMAGENET1K_V1, "ResNet-50", "ImageNet", weights)
    encoder = nn.Sequential()
    for name, module in resnet.named_children():
        if name not in ("avgpool", "fc"):
            encoder.add_module(name, module)
    return encoder


def _features(encoder: nn.Module, slices: Tensor) -> Tensor:
    return encoder(imagenet_input(slices)).mean((2, 3))


def _check_encoding(encoder_mode: str, chunk: int) -> None:
    if encoder_mode not in ENCODER_MODES:
        raise ValueError(f"encoder_mode must be one of {', '.join(ENCODER_MODES)}, got {encoder_mode!r}")
    if isinstance(chunk, bool) or not isinstance(chunk, int) or chunk < 1:
        raise ValueError(f"chunk must be a whole number of at least 1, got {chunk!r}")


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
    _check_encoding(encoder_mode, chunk)
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
        encoder = _encoder(pretrained=False, weights=None).eval().requires_grad_(trained)
        slices = torch.empty(chunk, *size)
    for parameter in encoder.parameters():
        if trained:  # gradients of the weights are counted with the weights
            parameter.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        _features(encoder, slices)
    with torch.set_grad_enabled(trained), LiveMemory() as memory:
        features = _features(encoder, slices)
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
