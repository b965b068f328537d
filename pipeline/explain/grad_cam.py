"""Grad-CAM: where in a volume the network found evidence for a class."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

if TYPE_CHECKING:
    from monai.visualize import GradCAM
    from PIL.Image import Image


LAST_STAGE = "backbone.layer4"  # of R3D18Classifier, before the pooling
PANEL = 256  # pixels of the longer side of a slice in a picture, at most
GAP = 4  # pixels between the slice and its overlay
OPACITY = 0.65  # of the overlay, reached where the activation is FULL_AT of its maximum: the peak may be elsewhere
FULL_AT = 0.4


def explain_with_grad_cam(network: nn.Module, target_layer: str = LAST_STAGE) -> GradCAM:
    """MONAI's Grad-CAM on a copy of a network in evaluation mode and single precision, upsampled and not rescaled.

    A copy, because MONAI leaves its hooks in the network that it is given. Gradients start at ``target_layer``: the
    stages before it, which need most of the memory, keep nothing for them.

    Raises:
        ValueError: the network has no module ``target_layer``.
    """
    from monai.visualize import GradCAM

    explained = copy.deepcopy(network).float().eval().requires_grad_(False)
    try:
        layer = explained.get_submodule(target_layer)
    except AttributeError:
        raise ValueError(f"target_layer: the network has no module {target_layer!r}") from None
    layer.register_forward_pre_hook(lambda module, arguments: arguments[0].requires_grad_())
    return GradCAM(explained, target_layer, postprocessing=lambda activation: activation)


def class_activation(grad_cam: GradCAM, image: Tensor, class_index: int) -> NDArray[np.float32]:
    """Grad-CAM of a class, as a share of its maximum over the volume.

    Args:
        grad_cam: from :func:`explain_with_grad_cam`.
        image: volume [1, D, H, W] with values in [0, 1].
        class_index: in [0, C).

    Returns:
        [D, H, W] in [0, 1]; all 0 where nothing raises the class's logit.
    """
    device = next(grad_cam.nn_module.model.parameters()).device
    with torch.enable_grad():
        activation = grad_cam(image[None].to(device, torch.float32), class_idx=class_index)
    activation = activation[0, 0].detach()
    peak = activation.max()
    return (activation / peak if peak > 0 else activation).cpu().numpy()


def error_picture(pixels: NDArray[np.floating], activation: NDArray[np.floating]) -> Image:
    """A slice in grey and, to its right, the same slice under the activation.

    The colours are matplotlib's inferno, whose lightness rises with the activation for every kind of colour vision.
    A small slice is enlarged by a whole factor, its pixels untouched; one larger than :data:`PANEL` is reduced.

    Args:
        pixels: slice [H, W] in [0, 1].
        activation: [H, W] in [0, 1].

    Returns:
        RGB picture of about 2 :data:`PANEL` by :data:`PANEL` pixels.
    """
    from matplotlib import colormaps
    from PIL import Image

    grey = np.repeat(np.asarray(pixels, dtype=float)[..., None], 3, axis=2)
    opacity = OPACITY * np.clip(np.asarray(activation, dtype=float)[..., None] / FULL_AT, 0, 1)
    overlay = (1 - opacity) * grey + opacity * colormaps["inferno"](activation)[..., :3]
    panels = [Image.fromarray(np.rint(panel * 255).astype(np.uint8)) for panel in (grey, overlay)]
    factor = PANEL // max(panels[0].size)
    for i, panel in enumerate(panels):
        if factor > 1:
            panels[i] = panel.resize((panel.width * factor, panel.height * factor), Image.Resampling.NEAREST)
        else:
            panel.thumbnail((PANEL, PANEL))
    width, height = panels[0].size
    picture = Image.new("RGB", (2 * width + GAP, height), "white")
    picture.paste(panels[0], (0, 0))
    picture.paste(panels[1], (width + GAP, 0))
    return picture
