"""Weights that others published: read, checked, and refused where they do not fit."""

from pathlib import Path

import torch
from torch import nn
from torchvision.models import WeightsEnum

from ..common.errors import UserError


class PretrainedWeightsError(UserError, RuntimeError):
    """Published weights cannot be had or do not fit; says how to get them or to do without."""


def refuse_unused_weights(pretrained: bool, weights: str | Path | None) -> None:
    """ValueError when a weights file is named that would not be read."""
    if weights is not None and not pretrained:
        raise ValueError(f"weights={str(weights)!r} was given but pretrained is off; set pretrained to True")


def load_published_weights(
    network: nn.Module, published: WeightsEnum, architecture: str, data: str, file: str | Path | None = None
) -> None:
    """Load torchvision's weights into its own network.

    Args:
        data: what it was trained on, as errors name it; ``architecture`` likewise.
        file: state dict of that network on this machine; None lets torchvision find or download it.

    Raises:
        PretrainedWeightsError: the weights cannot be had or do not fit.
    """
    how_to_get = (
        f"Download {published.url} on a machine with internet access and pass it with "
        "`--weights FILE`, or train from scratch with `--pretrained False`."
    )
    if file is not None and not Path(file).is_file():
        raise PretrainedWeightsError(f"no weights file at {file}. {how_to_get}")
    try:
        if file is None:
            state = published.get_state_dict(progress=True, check_hash=True)
        else:
            state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        what = f"{data} weights cannot be downloaded" if file is None else f"{file} cannot be read as a state dict"
        raise PretrainedWeightsError(f"{what} ({error}). {how_to_get}") from error
    try:
        network.load_state_dict(state)
    except (RuntimeError, AttributeError, TypeError) as error:
        raise PretrainedWeightsError(
            f"{file or 'the downloaded file'} is not torchvision's {architecture} ({str(error)[:200]}...). {how_to_get}"
        ) from error
