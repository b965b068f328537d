"""The paper's network, a video R3D-18 turned into a single-channel CT classifier; loading of published weights."""

from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.models import WeightsEnum
from torchvision.models.video import R3D_18_Weights, r3d_18

from fairlung.transforms.checks import check_setting

from ..common.errors import UserError
from ..common.files import why_unreadable

KINETICS_CLASSES = 400


class PretrainedWeightsError(UserError, RuntimeError):
    """Published weights cannot be had or do not fit; says how to get them or to do without."""


def refuse_unused_weights(pretrained: bool, weights: str | Path | None) -> None:
    """ValueError when a weights file is named that would not be read."""
    if weights is not None and not pretrained:
        raise ValueError(f"weights={str(weights)!r} was given but pretrained is off; set pretrained to True")


def load_published_weights(
    network: nn.Module, published: WeightsEnum, architecture: str, data: str, file: str | Path | None = None
) -> None:
    """Load torchvision's weights into its own network, from ``file`` or as torchvision finds or downloads them.

    Weights that cannot be had or do not fit are a PretrainedWeightsError, which names ``architecture`` and ``data``.
    """
    how_to_get = f"Download {published.url} on a machine with internet access and pass it with `--weights FILE`, "
    how_to_get += "or train from scratch with `--pretrained False`."
    if file is not None and not Path(file).is_file():
        raise PretrainedWeightsError(f"no weights file at {file}. {how_to_get}")
    try:
        if file is None:
            state = published.get_state_dict(progress=True, check_hash=True)
        else:
            state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        what = f"{data} weights cannot be downloaded ({error})"
        if file is not None:
            what = f"{file} cannot be read as a state dict: {why_unreadable(file)}"
        raise PretrainedWeightsError(f"{what}. {how_to_get}") from error
    try:
        network.load_state_dict(state)
    except (RuntimeError, AttributeError, TypeError) as error:
        raise PretrainedWeightsError(
            f"{file or 'the downloaded file'} is not torchvision's {architecture} ({str(error)[:200]}...). {how_to_get}"
        ) from error


def collapse_input_channels(weight: Tensor) -> Tensor:
    """Mean over the RGB input channels of a convolution kernel: [O, 3, ...] to [O, 1, ...] (paper, Sec. 4.1.3)."""
    return weight.mean(dim=1, keepdim=True)


class R3D18Classifier(nn.Module):
    """R3D-18 for one-channel volumes, with the head 512-256-ReLU-dropout-classes (paper, Sec. 3.3).

    Args:
        pretrained: start from Kinetics-400 weights, which a network that loads a checkpoint does not need.
        weights: local file with torchvision's R3D-18 state dict; None lets torchvision find or download it. What
            cannot be had or does not fit is a PretrainedWeightsError.
        dropout: probability in the head, in [0, 1).

    Example:
        >>> import torch
        >>> from fairlung.pipeline import R3D18Classifier
        >>> network = R3D18Classifier(num_classes=4).eval()
        >>> network(torch.rand(2, 1, 16, 64, 64)).shape  # two volumes of 16 slices
        torch.Size([2, 4])
    """

    def __init__(
        self, num_classes: int, pretrained: bool = False, weights: str | Path | None = None, dropout: float = 0.5,
        hidden: int = 256,
    ) -> None:  # fmt: skip
        super().__init__()
        check_setting("num_classes", num_classes, num_classes >= 2, "at least 2")
        check_setting("dropout", dropout, 0 <= dropout < 1, "in [0, 1)")
        refuse_unused_weights(pretrained, weights)
        backbone = r3d_18(weights=None, num_classes=KINETICS_CLASSES)
        if pretrained:
            load_published_weights(backbone, R3D_18_Weights.KINETICS400_V1, "R3D-18", "Kinetics-400", weights)
        rgb = backbone.stem[0]
        grey = nn.Conv3d(1, rgb.out_channels, rgb.kernel_size, rgb.stride, rgb.padding, bias=False)
        with torch.no_grad():
            grey.weight.copy_(collapse_input_channels(rgb.weight))
        backbone.stem[0] = grey
        backbone.fc = nn.Sequential(
            nn.Linear(backbone.fc.in_features, hidden), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, num_classes)
        )
        self.backbone = backbone

    def forward(self, image: Tensor) -> Tensor:
        """Logits [N, C] of volumes [N, 1, D, H, W] with values in [0, 1]."""
        return self.backbone(image)
