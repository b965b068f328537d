"""A ResNet-152 whose 3x3 convolutions are inflated to 3x3x3, with weights from chest and abdomen CT.

Architecture: He et al. 2016 with the stride in the 3x3 convolution (v1.5), inflated as Carreira and Zisserman 2017 do.
The weights were trained with reports of CT (Merlin, Blankemeier et al. 2024; Astra), on volumes in [0, 1] of -1000 to
200 HU.
"""

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor, nn
from torch.nn import functional

from .catalogue import OF_NETWORK
from .weights import check_classifier, classifier_head, load_published_weights

BLOCKS = (3, 8, 36, 3)  # of ResNet-152
FEATURES = 2048


class Bottleneck(nn.Module):
    """1x1x1, 3x3x3 with the stride, 1x1x1 to four times the width; added to the input, projected where sizes differ."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = 4 * width
        self.conv1, self.bn1 = nn.Conv3d(inputs, width, 1, bias=False), nn.BatchNorm3d(width)
        self.conv2, self.bn2 = nn.Conv3d(width, width, 3, stride, 1, bias=False), nn.BatchNorm3d(width)
        self.conv3, self.bn3 = nn.Conv3d(width, outputs, 1, bias=False), nn.BatchNorm3d(outputs)
        self.downsample: nn.Module = nn.Identity()
        if stride > 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv3d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm3d(outputs))

    def forward(self, image: Tensor) -> Tensor:
        out = functional.relu(self.bn1(self.conv1(image)), inplace=True)
        out = functional.relu(self.bn2(self.conv2(out)), inplace=True)
        return functional.relu(self.bn3(self.conv3(out)) + self.downsample(image), inplace=True)


class InflatedResNet(nn.Module):
    """Maps [N, 2048, D / 16, H / 32, W / 32] of volumes [N, channels, D, H, W]."""

    def __init__(self, channels: int, blocks: Sequence[int] = BLOCKS) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(channels, 64, (3, 7, 7), (1, 2, 2), (1, 3, 3), bias=False)
        self.bn1 = nn.BatchNorm3d(64)
        self.pool = nn.MaxPool3d(3, 2, 1)
        inputs = 64
        for stage, count in enumerate(blocks):
            width, stride = 64 * 2**stage, 1 if stage == 0 else 2
            layers = [Bottleneck(inputs if i == 0 else 4 * width, width, stride if i == 0 else 1) for i in range(count)]
            self.add_module(f"layer{stage + 1}", nn.Sequential(*layers))
            inputs = 4 * width

    def forward(self, image: Tensor) -> Tensor:
        maps = self.pool(functional.relu(self.bn1(self.conv1(image)), inplace=True))
        for name, stage in self.named_children():
            if name.startswith("layer"):
                maps = stage(maps)
        return maps


class PublishedCTResNet152(nn.Module):
    """As published: 2,048 features of volumes [N, 1, X, Y, Z] in [0, 1], axes towards right, anterior, superior."""

    def __init__(self, backbone: InflatedResNet) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, volume: Tensor) -> Tensor:
        return self.backbone(volume.permute(0, 1, 4, 2, 3).expand(-1, 3, -1, -1, -1)).mean((2, 3, 4))


class CTResNet152(nn.Module):
    """The inflated ResNet-152 for one-channel volumes, with the head 2048-256-ReLU-dropout-classes.

    The weights know a grey volume thrice, with axes Z, X, Y that grow towards superior, right and anterior: the first
    convolution sums its kernels over the three, and our axes (superior, posterior, left) are turned. Grey levels are
    taken as they are; configs/networks/ct_resnet152.yaml sets the window that the weights saw.

    Args:
        pretrained: start from the CT weights, which a network that loads a checkpoint does not need.
        weights: their name, or a file of :func:`~.weights.fetch`; None is ``ct-i3resnet152``. What cannot be had or
            does not fit is a PretrainedWeightsError.
        dropout: probability in the head, in [0, 1).
    """

    explained_layer = "last_stage"  # where Grad-CAM looks
    head_layers = ("head",)  # what train_layers: head trains

    def __init__(
        self, num_classes: int, pretrained: bool = False, weights: str | Path | None = None, dropout: float = 0.5,
        hidden: int = 256,
    ) -> None:  # fmt: skip
        super().__init__()
        check_classifier(num_classes, dropout, pretrained, weights)
        self.pretrained = pretrained
        self.backbone = _published(weights) if pretrained else InflatedResNet(1)
        if pretrained:
            rgb = self.backbone.conv1
            self.backbone.conv1 = nn.Conv3d(1, 64, rgb.kernel_size, rgb.stride, rgb.padding, bias=False)  # type: ignore[arg-type]
            self.backbone.conv1.weight.data.copy_(rgb.weight.data.sum(1, keepdim=True))
        self.last_stage = nn.Identity()  # sees the maps in our axes
        self.head = classifier_head(FEATURES, hidden, dropout, num_classes)

    @staticmethod
    def published(weights: str | Path | None = None) -> PublishedCTResNet152:
        """The published network in evaluation mode, its weights from a name or a file."""
        return PublishedCTResNet152(_published(weights)).eval()

    def forward(self, image: Tensor) -> Tensor:
        """Logits [N, C] of volumes [N, 1, D, H, W] with values in [0, 1]."""
        maps = self.last_stage(_turned(self.backbone(_turned(image))))
        return self.head(maps.mean((2, 3, 4)))


def _turned(volume: Tensor) -> Tensor:
    """Axes (superior, posterior, left) as (superior, right, anterior); twice changes nothing."""
    return volume.flip((3, 4)).transpose(3, 4)


def _published(weights: str | Path | None) -> InflatedResNet:
    network = InflatedResNet(3)
    load_published_weights(network, OF_NETWORK["CTResNet152"], weights)
    return network
