"""The competition baseline (paper, Sec. 4.1.2): a ResNet-50 encodes each slice, a GRU reads the slices in order.

How many slices of a scan are real travels in the volume: preprocessing gives values in [0, 1], and the slices that
fill a scan up to the batch's depth hold :data:`PADDING`, which is below. So a batch stays ``(image, target)``, and any
engine, sampler or metric works as for the other networks.
"""

import logging
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence, pad_packed_sequence
from torch.utils.checkpoint import checkpoint
from torchvision.models import resnet50

from fairlung.transforms.checks import check_setting, check_whole

from ..common.distributed import is_primary
from ..common.volumes import slice_counts
from .catalogue import OF_NETWORK
from .weights import check_classifier, classifier_head, load_published_weights

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

    Slices are encoded ``chunk`` at a time, with ``encoder_mode``:

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
        pretrained: start from ImageNet weights (IMAGENET1K_V1), which a network that loads a checkpoint does not need.
        weights: their name, or a file with torchvision's ResNet-50 state dict; None is ``imagenet``, which torchvision
            finds or downloads. What cannot be had or does not fit is a PretrainedWeightsError.
        dropout: probability before the head, in [0, 1).
    """

    explained_layer = "last_stage"  # where Grad-CAM looks
    head_layers = ("gru", "head")  # what train_layers: head trains

    def __init__(
        self, num_classes: int, pretrained: bool = False, weights: str | Path | None = None,
        encoder_mode: str = "recompute", chunk: int = 16, hidden: int = 128, dropout: float = 0.5,
    ) -> None:  # fmt: skip
        super().__init__()
        check_classifier(num_classes, dropout, pretrained, weights)
        check_setting("hidden", hidden, hidden >= 1, "at least 1")
        check_setting("encoder_mode", encoder_mode, encoder_mode in ENCODER_MODES, f"one of {', '.join(ENCODER_MODES)}")
        check_whole("chunk", chunk, least=1)
        self.encoder_mode, self.chunk, self.pretrained = encoder_mode, chunk, pretrained
        self.encoder = _encoder(pretrained, weights)
        self.encoder.requires_grad_(encoder_mode != "freeze")
        self.last_stage = nn.Identity()  # sees the encoder's maps of whole volumes when a prediction is explained
        self.gru = nn.GRU(FEATURES, hidden, batch_first=True)
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(hidden, num_classes))
        self._warned = False
        self.train()

    def train(self, mode: bool = True) -> "CNNRNNClassifier":
        """As of any module, except that the encoder's batch normalisation keeps its running statistics."""
        super().train(mode)
        self.encoder.eval()  # it has no other layer that knows two modes
        return self

    def forward(self, image: Tensor) -> Tensor:
        """Logits [N, C] of volumes [N, 1, D, H, W]: slices in [0, 1], then any number of padded ones.

        Padding and the other volumes of a batch change nothing. In evaluation mode with gradient enabled, as Grad-CAM
        runs it, the maps of all slices exist at once: :attr:`last_stage` receives them as [N, 2048, D, h, w].
        """
        counts = slice_counts(image)
        volumes = [volume[:count] for volume, count in zip(image[:, 0], counts, strict=True)]
        if self.training and self.encoder_mode == "freeze" and not (self.pretrained or self._warned) and is_primary():
            self._warned = True
            logger.warning("the encoder is frozen with random weights: only the GRU and the head will learn")
        if torch.is_grad_enabled() and not self.training:
            features = self._explained(volumes, image.shape[2])
        else:
            features = [self.encode(volume) for volume in volumes]
        # packed, the GRU of each volume ends at its last real slice
        return self.head(self._read(*self.gru(pack_sequence(features, enforce_sorted=False))))

    def _read(self, states: PackedSequence, last: Tensor) -> Tensor:
        """What the head gets of the GRU's states, those after each slice and [1, N, hidden] after the last."""
        return last[-1]

    def encode(self, slices: Tensor) -> Tensor:
        """Features [L, 2048] of slices [L, H, W], a chunk at a time, with gradient as ``encoder_mode`` says."""
        return torch.cat([self._encode_chunk(part) for part in slices.split(self.chunk)])

    def _encode_chunk(self, slices: Tensor) -> Tensor:
        if self.encoder_mode == "recompute" and torch.is_grad_enabled():
            # nothing in the encoder is random: no state of a generator needs to be kept
            return checkpoint(_features, self.encoder, slices, use_reentrant=False, preserve_rng_state=False)
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.encoder_mode != "freeze"):
            return _features(self.encoder, slices)

    def _explained(self, volumes: Sequence[Tensor], depth: int) -> list[Tensor]:
        padded = []
        for volume in volumes:
            maps = torch.cat([self.encoder(imagenet_input(part)) for part in volume.split(self.chunk)])
            padded.append(torch.cat([maps, maps.new_zeros(depth - len(maps), *maps.shape[1:])]))
        stage = self.last_stage(torch.stack(padded).movedim(2, 1))
        return [features[: len(volume)] for features, volume in zip(stage.mean((3, 4)).mT, volumes, strict=True)]


class RACNet(CNNRNNClassifier):
    """The same encoder and GRU; the states after all slices, each at the place of its slice, go through a dense layer.

    h_1 .. h_l are the GRU's states after the l real slices of a volume. A mask sets the other places, up to ``slices``,
    to 0, and the head is

        logits = V dropout(ReLU(W_1 h_1 + ... + W_l h_l + b)) + c

    The dense layer (W, b) so reads, and in a step learns at, the places of real slices alone: a volume is routed by its
    length. Source: Kollias et al. 2023 (Neurocomputing). Left out are the alignment of features between scans of other
    lengths, and the anchors that are drawn from the trained network to unify several data sets.

    Args:
        slices: places, at least the depth of any volume: num_slices of the config.
        routing: units of the dense layer.
        others: of :class:`CNNRNNClassifier`.
    """

    def __init__(
        self, num_classes: int, slices: int, pretrained: bool = False, weights: str | Path | None = None,
        encoder_mode: str = "recompute", chunk: int = 16, hidden: int = 128, routing: int = 32, dropout: float = 0.5,
    ) -> None:  # fmt: skip
        check_whole("slices", slices, least=1)
        check_whole("routing", routing, least=1)
        super().__init__(num_classes, pretrained, weights, encoder_mode, chunk, hidden, dropout)
        self.slices = slices
        self.head = classifier_head(slices * hidden, routing, dropout, num_classes)

    def _read(self, states: PackedSequence, last: Tensor) -> Tensor:
        """[N, slices * hidden]; ValueError where a volume has more real slices than there are places."""
        if (most := len(states.batch_sizes)) > self.slices:
            raise ValueError(f"a volume has {most} slices, and RACNet places for {self.slices}: slices = num_slices")
        masked, _ = pad_packed_sequence(states, batch_first=True, total_length=self.slices)  # 0 where no slice is
        return masked.flatten(1)


def _encoder(pretrained: bool, weights: str | Path | None) -> nn.Sequential:
    """ResNet-50 up to its last stage, under torchvision's names: [L, 3, H, W] to [L, 2048, H / 32, W / 32]."""
    resnet = resnet50(weights=None, zero_init_residual=True)
    if pretrained:
        load_published_weights(resnet, OF_NETWORK["CNNRNNClassifier"], weights)
    stages = {name: module for name, module in resnet.named_children() if name not in ("avgpool", "fc")}
    return nn.Sequential(OrderedDict(stages))


def _features(encoder: nn.Module, slices: Tensor) -> Tensor:
    return encoder(imagenet_input(slices)).mean((2, 3))
