"""A ResNeSt-50 over volumes, whose blocks weigh parts of their maps by what the whole volume shows.

ResNeSt: Zhang et al. 2020, arXiv:2004.08955. Over chest CT: Hou et al. 2021 (CMC-COV19D, ICCV workshops) and Li et al.
2025, arXiv:2507.00993, whose kernels see one slice: slices meet in the average pooling between the stages, and in the
attention.
"""

from collections import OrderedDict
from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional

from fairlung.transforms.checks import check_setting

from .weights import check_classifier, classifier_head

BLOCKS = (3, 4, 6, 3)  # of ResNeSt-50
FEATURES = 2048
STEM = 32  # channels of the first two of its three convolutions
RADIX = 2
KERNEL_DEPTHS = (1, 3)


class PooledNorm(nn.BatchNorm3d):
    """Batch normalisation of maps of one voxel; one volume alone has no variance, and takes the running statistics."""

    def forward(self, image: Tensor) -> Tensor:
        if self.training and len(image) == 1:
            statistics = self.running_mean, self.running_var
            return functional.batch_norm(image, *statistics, self.weight, self.bias, eps=self.eps)
        return super().forward(image)


class SplitAttention(nn.Module):
    """A 3x3 convolution in R parts, added with weights that the volume gives to each channel of each part.

    Each part U_r = ReLU(BN(conv_r(x_r))) has C channels and sees one R-th of the input's. With the mean over voxels
    s = mean(U_1 + ... + U_R) and z = W_2 ReLU(BN(W_1 s)), [R, C], the output is

        sum over r of a_r U_r,    a = softmax of z over r; for R = 1 its sigmoid, a squeeze-and-excitation block

    (Zhang et al. 2020, Eq. 2 and 3, with cardinality 1). W_1 gives max(32, R C / 4) values.

    Args:
        channels: C, of input and output.
        radix: R, which divides C.
        kernel_depth: slices that a kernel sees.
    """

    def __init__(self, channels: int, radix: int = RADIX, kernel_depth: int = 1) -> None:
        super().__init__()
        self.radix = radix
        inner, kernel, padding = max(radix * channels // 4, 32), (kernel_depth, 3, 3), (kernel_depth // 2, 1, 1)
        self.conv = nn.Conv3d(channels, radix * channels, kernel, padding=padding, groups=radix, bias=False)
        self.bn0 = nn.BatchNorm3d(radix * channels)
        self.fc1, self.bn1 = nn.Conv3d(channels, inner, 1), PooledNorm(inner)
        self.fc2 = nn.Conv3d(inner, radix * channels, 1)

    def forward(self, image: Tensor) -> Tensor:
        parts = functional.relu(self.bn0(self.conv(image)), inplace=True).unflatten(1, (self.radix, -1))
        return (self.weights(parts) * parts).sum(1)

    def weights(self, parts: Tensor) -> Tensor:
        """[N, R, C, 1, 1, 1] of the parts [N, R, C, D, H, W]."""
        pooled = parts.mean((3, 4, 5), keepdim=True).sum(1)
        scores = self.fc2(functional.relu(self.bn1(self.fc1(pooled)))).unflatten(1, (self.radix, -1))
        return scores.softmax(1) if self.radix > 1 else scores.sigmoid()


class Bottleneck(nn.Module):
    """1x1x1, split attention, mean over 3x3x3 where the stride is 2, 1x1x1 to four times the width; added to the input.

    Where sizes differ, the input is averaged over the stride and projected.
    """

    def __init__(self, inputs: int, width: int, stride: int, kernel_depth: int) -> None:
        super().__init__()
        outputs = 4 * width
        self.conv1, self.bn1 = nn.Conv3d(inputs, width, 1, bias=False), nn.BatchNorm3d(width)
        self.conv2 = SplitAttention(width, kernel_depth=kernel_depth)
        # padded by itself: torch's own padding refuses maps of fewer than three slices, rows or columns
        self.pool = nn.Sequential(nn.ZeroPad3d(1), nn.AvgPool3d(3, stride)) if stride > 1 else nn.Identity()
        self.conv3, self.bn3 = nn.Conv3d(width, outputs, 1, bias=False), nn.BatchNorm3d(outputs)
        self.downsample: nn.Module = nn.Identity()
        if stride > 1 or inputs != outputs:
            pool = nn.AvgPool3d(stride, stride, ceil_mode=True)
            self.downsample = nn.Sequential(pool, nn.Conv3d(inputs, outputs, 1, bias=False), nn.BatchNorm3d(outputs))

    def forward(self, image: Tensor) -> Tensor:
        out = functional.relu(self.bn1(self.conv1(image)), inplace=True)
        out = self.bn3(self.conv3(self.pool(self.conv2(out))))
        return functional.relu(out + self.downsample(image), inplace=True)


class ResNeSt(nn.Sequential):
    """Maps [N, 2048, D / 8, H / 32, W / 32] of volumes [N, 1, D, H, W], all sizes rounded up.

    Its tensors have the names of the published two-dimensional network's.
    """

    def __init__(self, blocks: Sequence[int] = BLOCKS, kernel_depth: int = 1) -> None:
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        layers["conv1"] = nn.Sequential(
            _conv(1, STEM, stride=2), nn.BatchNorm3d(STEM), nn.ReLU(inplace=True),
            _conv(STEM, STEM), nn.BatchNorm3d(STEM), nn.ReLU(inplace=True),
            _conv(STEM, 2 * STEM),
        )  # fmt: skip
        layers["bn1"], layers["relu"] = nn.BatchNorm3d(2 * STEM), nn.ReLU(inplace=True)
        layers["maxpool"] = nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1))
        inputs = 2 * STEM
        for stage, count in enumerate(blocks):
            width, stride = 64 * 2**stage, 1 if stage == 0 else 2
            sizes = [(inputs, stride)] + [(4 * width, 1)] * (count - 1)
            made = [Bottleneck(channels, width, step, kernel_depth) for channels, step in sizes]
            layers[f"layer{stage + 1}"] = nn.Sequential(*made)
            inputs = 4 * width
        super().__init__(layers)
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def _conv(inputs: int, outputs: int, stride: int = 1) -> nn.Conv3d:
    return nn.Conv3d(inputs, outputs, (1, 3, 3), (1, stride, stride), (0, 1, 1), bias=False)


class ResNeSt50(nn.Module):
    """ResNeSt-50 for one-channel volumes, with the head 2048-256-ReLU-dropout-classes; radix 2, cardinality 1.

    It starts from random weights: none are published for volumes. Hou et al. start from the two-dimensional network's
    ImageNet weights and have a 7x7 convolution first; both are left out. In training the attention is normalised over
    the volumes of a batch, one value of each, so it is better trained with more than two.

    Args:
        dropout: probability in the head, in [0, 1).
        kernel_depth: slices that the 3x3 kernels of the blocks see: 1, as in Hou et al.'s code, or 3.
    """

    explained_layer = "backbone.layer4"  # where Grad-CAM looks
    head_layers = ("head",)  # what train_layers: head trains
    pretrained = False

    def __init__(self, num_classes: int, dropout: float = 0.5, hidden: int = 256, kernel_depth: int = 1) -> None:
        super().__init__()
        check_classifier(num_classes, dropout, False, None)
        check_setting("kernel_depth", kernel_depth, kernel_depth in KERNEL_DEPTHS, "1 or 3")
        self.backbone = ResNeSt(kernel_depth=kernel_depth)
        self.head = classifier_head(FEATURES, hidden, dropout, num_classes)

    def forward(self, image: Tensor) -> Tensor:
        """Logits [N, C] of volumes [N, 1, D, H, W] with values in [0, 1]."""
        return self.head(self.backbone(image).mean((2, 3, 4)))
