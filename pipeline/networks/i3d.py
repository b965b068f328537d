"""Inception-I3D, a video network that reads a volume as a film of slices (Carreira and Zisserman, CVPR 2017).

Its Kinetics-400 weights were made with TensorFlow, whose "same" padding is uneven where a stride does not divide.
"""

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from .catalogue import OF_NETWORK
from .weights import check_classifier, classifier_head, load_published_weights

FEATURES = 1024
KINETICS_CLASSES = 400
# channels of a mixed block: branch 0; branches 1 and 2 before and after their 3x3x3; branch 3 (the paper's Fig. 3)
MIXED = {
    "mixed_3b": (64, 96, 128, 16, 32, 32),
    "mixed_3c": (128, 128, 192, 32, 96, 64),
    "mixed_4b": (192, 96, 208, 16, 48, 64),
    "mixed_4c": (160, 112, 224, 24, 64, 64),
    "mixed_4d": (128, 128, 256, 24, 64, 64),
    "mixed_4e": (112, 144, 288, 32, 64, 64),
    "mixed_4f": (256, 160, 320, 32, 128, 128),
    "mixed_5b": (256, 160, 320, 32, 128, 128),
    "mixed_5c": (384, 192, 384, 48, 128, 128),
}


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """TensorFlow's "same": ceil(size / stride) outputs, and where the padding is odd, one more behind than before."""
    outputs = -(-size // stride)
    total = max((outputs - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


def _pad_same(image: Tensor, kernel: Sequence[int], stride: Sequence[int], value: float) -> Tensor:
    padding: list[int] = []
    for size, length, step in zip(reversed(image.shape[2:]), reversed(kernel), reversed(stride), strict=True):
        padding += same_padding(size, length, step)  # functional.pad takes the last axis first
    return functional.pad(image, padding, value=value) if any(padding) else image


class SamePool(nn.Module):
    """Maximum over windows, with "same" padding that is never the maximum."""

    def __init__(self, kernel: Sequence[int], stride: Sequence[int]) -> None:
        super().__init__()
        self.kernel, self.stride = tuple(kernel), tuple(stride)

    def forward(self, image: Tensor) -> Tensor:
        padded = _pad_same(image, self.kernel, self.stride, float("-inf"))
        return functional.max_pool3d(padded, self.kernel, self.stride)


class SameConv(nn.Module):
    """Convolution with "same" padding, batch normalisation without a scale, ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.kernel, self.stride = (kernel,) * 3, (stride,) * 3
        # with stride 1 the padding is even, and needs no copy of the volume
        self.conv = nn.Conv3d(inputs, outputs, kernel, stride, kernel // 2 if stride == 1 else 0, bias=False)
        self.norm = nn.BatchNorm3d(outputs, eps=1e-3)
        self.norm.weight = None  # type: ignore[assignment]

    def forward(self, image: Tensor) -> Tensor:
        if self.stride != (1, 1, 1):
            image = _pad_same(image, self.kernel, self.stride, 0.0)
        return functional.relu(self.norm(self.conv(image)), inplace=True)


class Mixed(nn.Module):
    """Four branches over the same maps, side by side."""

    def __init__(self, inputs: int, widths: Sequence[int]) -> None:
        super().__init__()
        alone, before_1, after_1, before_2, after_2, pooled = widths
        self.branch_0 = nn.Sequential(OrderedDict(conv3d_0a_1x1=SameConv(inputs, alone, 1)))
        self.branch_1 = _two(SameConv(inputs, before_1, 1), SameConv(before_1, after_1, 3))
        self.branch_2 = _two(SameConv(inputs, before_2, 1), SameConv(before_2, after_2, 3))
        self.branch_3 = nn.Sequential(
            OrderedDict(maxpool3d_0a_3x3=nn.MaxPool3d(3, 1, 1), conv3d_0b_1x1=SameConv(inputs, pooled, 1))
        )

    def forward(self, image: Tensor) -> Tensor:
        return torch.cat([branch(image) for branch in self.children()], dim=1)


def _two(first: nn.Module, second: nn.Module) -> nn.Sequential:
    return nn.Sequential(OrderedDict(conv3d_0a_1x1=first, conv3d_0b_3x3=second))


class InceptionI3D(nn.Sequential):
    """Maps [N, 1024, T / 8, H / 32, W / 32] of films [N, channels, T, H, W] in [-1, 1], all sizes rounded up."""

    def __init__(self, channels: int) -> None:
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        layers["conv3d_1a_7x7"] = SameConv(channels, 64, 7, stride=2)
        layers["maxpool3d_2a_3x3"] = SamePool((1, 3, 3), (1, 2, 2))
        layers["conv3d_2b_1x1"] = SameConv(64, 64, 1)
        layers["conv3d_2c_3x3"] = SameConv(64, 192, 3)
        layers["maxpool3d_3a_3x3"] = SamePool((1, 3, 3), (1, 2, 2))
        width = 192
        for name, widths in MIXED.items():
            if name == "mixed_4b":
                layers["maxpool3d_4a_3x3"] = SamePool((3, 3, 3), (2, 2, 2))
            if name == "mixed_5b":
                layers["maxpool3d_5a_2x2"] = SamePool((2, 2, 2), (2, 2, 2))
            layers[name] = Mixed(width, widths)
            width = widths[0] + widths[2] + widths[4] + widths[5]
        super().__init__(layers)


class PublishedI3D(nn.Module):
    """The network as it was published: 400 logits of films [N, 3, T, H, W] in [-1, 1], T >= 16, H and W 224."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = InceptionI3D(3)
        self.logits = nn.Conv3d(FEATURES, KINETICS_CLASSES, 1)

    def forward(self, film: Tensor) -> Tensor:
        pooled = functional.avg_pool3d(self.backbone(film), (2, 7, 7), stride=1)
        return self.logits(pooled).mean((2, 3, 4))


class I3D(nn.Module):
    """Inception-I3D for one-channel volumes, with the head 1024-256-ReLU-dropout-classes.

    The weights know films in [-1, 1]: a volume in [0, 1] becomes 2 x - 1, and the first convolution sums its kernels
    over red, green and blue. So the features of a volume are those of the same grey film.

    Args:
        pretrained: start from Kinetics-400 weights, which a network that loads a checkpoint does not need.
        weights: their name, or a file of :func:`~.weights.fetch`; None is ``i3d-kinetics400``. What cannot be had or
            does not fit is a PretrainedWeightsError.
        dropout: probability in the head, in [0, 1).
    """

    explained_layer = "backbone.mixed_5c"  # where Grad-CAM looks
    head_layers = ("head",)  # what train_layers: head trains

    def __init__(
        self, num_classes: int, pretrained: bool = False, weights: str | Path | None = None, dropout: float = 0.5,
        hidden: int = 256,
    ) -> None:  # fmt: skip
        super().__init__()
        check_classifier(num_classes, dropout, pretrained, weights)
        self.pretrained = pretrained
        self.backbone = InceptionI3D(1)
        if pretrained:
            film = _published(weights).backbone.state_dict()
            first = "conv3d_1a_7x7.conv.weight"
            self.backbone.load_state_dict(film | {first: film[first].sum(1, keepdim=True)})
        self.head = classifier_head(FEATURES, hidden, dropout, num_classes)

    @staticmethod
    def published(weights: str | Path | None = None) -> PublishedI3D:
        """The published network in evaluation mode, its weights from a name or a file."""
        return _published(weights).eval()

    def forward(self, image: Tensor) -> Tensor:
        """Logits [N, C] of volumes [N, 1, D, H, W] with values in [0, 1]."""
        return self.head(self.backbone(2 * image - 1).mean((2, 3, 4)))


def _published(weights: str | Path | None) -> PublishedI3D:
    network = PublishedI3D()
    load_published_weights(network, OF_NETWORK["I3D"], weights)
    return network
