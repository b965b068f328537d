"""The paper's network, a video R3D-18 turned into a single-channel CT classifier; loading of published weights."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.models import WeightsEnum
from torchvision.models.video import R3D_18_Weights, r3d_18

from .errors import UserError

KINETICS_CLASSES = 400


class PretrainedWeightsError(UserError, RuntimeError):
    """Published weights cannot be had or do not fit; says how to get them or to do without."""


def collapse_input_channels(weight: Tensor) -> Tensor:
    """Mean over the RGB input channels of a convolution kernel: [O, 3, ...] to [O, 1, ...] (paper, Sec. 4.1.3)."""
    return weight.mean(dim=1, keepdim=True)


class R3D18Classifier(nn.Module):
    """R3D-18 for one-channel volumes, with the head 512-256-ReLU-dropout-classes (paper, Sec. 3.3).

    Args:
        num_classes: C, at least 2.
        pretrained: start from Kinetics-400 weights. Evaluation and inference build the network with ``False`` and load
            a checkpoint.
        weights: local file with torchvision's R3D-18 state dict; None lets torchvision find or download it.
        dropout: probability in the head, in [0, 1).
        hidden: units of the head's hidden layer.

    Raises:
        PretrainedWeightsError: ``pretrained`` and the weights cannot be had or do not fit.
    """

    def __init__(
        self,
        num_classes: int,
        pretrained: bool = False,
        weights: str | Path | None = None,
        dropout: float = 0.5,
        hidden: int = 256,
    ) -> None:
        super().__init__()
        if num_classes < 2:
            raise ValueError(f"num_classes must be at least 2, got {num_classes}")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {dropout}")
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


def refuse_unused_weights(pretrained: bool, weights: str | Path | None) -> None:
    """ValueError when a weights file is named that would not be read."""
    if weights is not None and not pretrained:
        raise ValueError(f"weights={str(weights)!r} was given but pretrained is off; set pretrained to True")


def load_published_weights(
    network: nn.Module, published: WeightsEnum, architecture: str, data: str, file: str | Path | None = None
) -> None:
    """Load torchvision's weights into its own network.

    Args:
        network: as torchvision builds it for ``published``, in place.
        published: what is downloaded where there is no file.
        architecture: name of the network in errors.
        data: name of what it was trained on in errors.
        file: state dict of that network on this machine; None lets torchvision find or download it.

    Raises:
        PretrainedWeightsError: the weights cannot be had or do not fit.
    """
    how_to_get = (
        f"Download {published.url} on a machine with internet access and pass it with "
        "`--weights FILE`, or train from scratch with `--pretrained False`."
    )
    if file is None:
        try:
            state = published.get_state_dict(progress=True, check_hash=True)
        except Exception as error:
            raise PretrainedWeightsError(f"{data} weights cannot be downloaded ({error}). {how_to_get}") from error
    else:
        if not Path(file).is_file():
            raise PretrainedWeightsError(f"no weights file at {file}. {how_to_get}")
        try:
            state = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:
            raise PretrainedWeightsError(f"{file} cannot be read as a state dict ({error}). {how_to_get}") from error
    try:
        network.load_state_dict(state)
    except (RuntimeError, AttributeError, TypeError) as error:
        raise PretrainedWeightsError(
            f"{file or 'the downloaded file'} is not torchvision's {architecture} ({str(error)[:200]}...). {how_to_get}"
        ) from error
