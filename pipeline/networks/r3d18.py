"""The paper's network, a video R3D-18 turned into a single-channel CT classifier."""

from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.models.video import r3d_18

from .catalogue import OF_NETWORK
from .weights import check_classifier, classifier_head, load_published_weights

KINETICS_CLASSES = 400


def collapse_input_channels(weight: Tensor) -> Tensor:
    """Mean over the RGB input channels of a convolution kernel: [O, 3, ...] to [O, 1, ...] (paper, Sec. 4.1.3)."""
    return weight.mean(dim=1, keepdim=True)


class R3D18Classifier(nn.Module):
    """R3D-18 for one-channel volumes, with the head 512-256-ReLU-dropout-classes (paper, Sec. 3.3).

    Args:
        pretrained: start from Kinetics-400 weights, which a network that loads a checkpoint does not need.
        weights: their name, or a file with torchvision's R3D-18 state dict; None is ``kinetics400``, which torchvision
            finds or downloads. What cannot be had or does not fit is a PretrainedWeightsError.
        dropout: probability in the head, in [0, 1).

    Example:
        >>> import torch
        >>> from fairlung.pipeline import R3D18Classifier
        >>> network = R3D18Classifier(num_classes=4).eval()
        >>> network(torch.rand(2, 1, 16, 64, 64)).shape  # two volumes of 16 slices
        torch.Size([2, 4])
    """

    head_layers = ("backbone.fc",)  # what train_layers: head trains

    def __init__(
        self, num_classes: int, pretrained: bool = False, weights: str | Path | None = None, dropout: float = 0.5,
        hidden: int = 256,
    ) -> None:  # fmt: skip
        super().__init__()
        check_classifier(num_classes, dropout, pretrained, weights)
        self.pretrained = pretrained
        backbone = r3d_18(weights=None, num_classes=KINETICS_CLASSES)
        if pretrained:
            load_published_weights(backbone, OF_NETWORK["R3D18Classifier"], weights)
        rgb = backbone.stem[0]
        grey = nn.Conv3d(1, rgb.out_channels, rgb.kernel_size, rgb.stride, rgb.padding, bias=False)
        with torch.no_grad():
            grey.weight.copy_(collapse_input_channels(rgb.weight))
        backbone.stem[0] = grey
        backbone.fc = classifier_head(backbone.fc.in_features, hidden, dropout, num_classes)
        self.backbone = backbone

    def forward(self, image: Tensor) -> Tensor:
        """Logits [N, C] of volumes [N, 1, D, H, W] with values in [0, 1]."""
        out = self.backbone.stem(image)
        # torchvision's own functions hold four or five tensors of this size (205 MB a full-size scan) until they
        # return. Three are needed where each is let go once it is used; the layers and their order are the same.
        for block in self.backbone.layer1:
            volume = out
            out = block.conv1(volume)
            for layer in block.conv2:
                out = layer(out)
            out += volume
            out = block.relu(out)
        out = self.backbone.layer4(self.backbone.layer3(self.backbone.layer2(out)))
        return self.backbone.fc(self.backbone.avgpool(out).flatten(1))
