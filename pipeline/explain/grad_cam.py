"""Grad-CAM: where in a volume the network found evidence for a class."""

import copy

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

LAST_STAGE = "backbone.layer4"  # of R3D18Classifier, before the pooling
PANEL = 256  # pixels of the longer side of a slice in a picture, at most
GAP = 4  # pixels between the slice and its overlay
OPACITY = 0.65  # of the overlay, reached where the activation is FULL_AT of its maximum: the peak may be elsewhere
FULL_AT = 0.4


def explained_layer(network: nn.Module, target_layer: str | None = None) -> str:
    """The module that Grad-CAM explains: this one, the one that the network names, or R3D18Classifier's last stage.

    ValueError: the network has no such module.
    """
    layer = target_layer or str(getattr(network, "explained_layer", LAST_STAGE))
    if layer not in dict(network.named_modules()):
        raise ValueError(f"target_layer: the network has no module {layer!r}; it can name its own as explained_layer")
    return layer


def explained_copy(network: nn.Module, target_layer: str | None = None) -> nn.Module:
    """A float32 copy in evaluation mode without gradients; ValueError where it has no module to explain."""
    explained_layer(network, target_layer)
    return copy.deepcopy(network).float().eval().requires_grad_(False)


def class_activation(
    network: nn.Module, image: Tensor, class_index: int, target_layer: str | None = None
) -> NDArray[np.float32]:
    """Grad-CAM of a class (Selvaraju et al. 2017), as a share of its maximum over the volume.

    The gradient ends at ``target_layer``: the stages before it, which need most of the memory, keep nothing for it.
    MONAI's GradCAM gives the same map, but its backward hook keeps every network that it explained alive.

    Args:
        network: from :func:`explained_copy`, with logits [1, C].
        image: volume [1, D, H, W] with values in [0, 1]; the result is [D, H, W], all 0 where nothing raises the logit.
        target_layer: module whose output [1, F, d, h, w] is explained; None is :func:`explained_layer`.
    """
    kept: list[Tensor] = []

    def begin_gradient(module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> Tensor:
        kept.append(output.detach().requires_grad_())
        return kept[0].clone()  # the next module may work in place

    hook = network.get_submodule(explained_layer(network, target_layer)).register_forward_hook(begin_gradient)
    try:
        with torch.enable_grad():
            logits = network(image[None].to(next(network.parameters()).device, torch.float32))
            (gradient,) = torch.autograd.grad(logits[0, class_index], kept)
    finally:
        hook.remove()
    weights = gradient.flatten(2).mean(2)[:, :, None, None, None]
    coarse = (weights * kept[0].detach()).sum(1, keepdim=True).relu()
    activation = functional.interpolate(coarse, image.shape[1:], mode="trilinear")[0, 0]
    peak = activation.max()
    return (activation / peak if peak > 0 else activation).cpu().numpy()


def error_picture(pixels: NDArray[np.floating], activation: NDArray[np.floating]) -> Image.Image:
    """A slice [H, W] in [0, 1] in grey and, to its right, the same slice under the activation [H, W] in [0, 1].

    The colours are matplotlib's inferno, whose lightness rises with the activation for every kind of colour vision.
    A small slice is enlarged by a whole factor, its pixels untouched; one larger than :data:`PANEL` is reduced.
    """
    from matplotlib import colormaps

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
