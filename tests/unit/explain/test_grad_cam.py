"""Grad-CAM: the map of MONAI's to the last digit, the same by hand, and nothing left behind."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest
import torch
from monai.visualize import GradCAM
from torch import Tensor, nn

from fairlung.pipeline.explain.grad_cam import LAST_STAGE, class_activation, explained_copy, explained_layer
from fairlung.pipeline.networks.cnn_rnn import CNNRNNClassifier
from fairlung.pipeline.networks.r3d18 import R3D18Classifier


class Contiguous(dict[str, Tensor]):
    """Gradients of which MONAI can take the view that it wants."""

    def __setitem__(self, name: str, gradient: Tensor) -> None:
        super().__setitem__(name, gradient.contiguous())


def monai_activation(network: nn.Module, image: Tensor, class_index: int) -> np.ndarray:
    """MONAI's Grad-CAM as a share of its maximum."""
    explained = explained_copy(network)
    layer = explained.get_submodule(explained_layer(network))
    layer.register_forward_pre_hook(lambda module, arguments: arguments[0].requires_grad_())
    grad_cam = GradCAM(explained, explained_layer(network), postprocessing=lambda activation: activation)
    grad_cam.nn_module.gradients = Contiguous()
    activation = grad_cam(image[None], class_idx=class_index)[0, 0].detach()
    vars(grad_cam.nn_module).clear()  # MONAI's hooks keep this object for good: at least without network and gradients
    peak = activation.max()
    return (activation / peak if peak > 0 else activation).numpy()


def network_of(kind: str) -> nn.Module:
    torch.manual_seed(5)
    if kind == "cnn_rnn":
        return CNNRNNClassifier(3, chunk=4, hidden=16).eval()
    memory_format = torch.channels_last_3d if kind == "channels_last" else torch.contiguous_format
    return R3D18Classifier(3).eval().to(memory_format=memory_format)


@pytest.mark.parametrize("kind", ["r3d18", "channels_last", "cnn_rnn"])
@pytest.mark.parametrize("mirrored", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_map_is_monais_to_the_last_digit(kind: str, mirrored: bool) -> None:
    network = network_of(kind)
    image = torch.rand(1, 12, 40, 32)
    if kind == "cnn_rnn":
        image[:, 10:] = -1  # padding
    image = image.flip(-1) if mirrored else image
    explained, shown = explained_copy(network), 0
    for index in range(3):
        found = class_activation(explained, image, index)
        np.testing.assert_array_equal(found, monai_activation(network, image, index))
        shown += bool(found.any())
    assert shown >= 1


def test_no_network_survives_ten_explanations() -> None:
    network, image = R3D18Classifier(2).eval(), torch.rand(1, 8, 32, 32)
    copies = []
    for _ in range(10):
        explained = explained_copy(network)
        copies.append(weakref.ref(explained))
        class_activation(explained, image, 0)
        del explained
    gc.collect()
    assert [copy() for copy in copies] == [None] * 10
    assert not network.get_submodule(LAST_STAGE)._forward_hooks


def test_a_network_in_training_stays_in_training_but_is_explained_in_evaluation() -> None:
    torch.manual_seed(3)
    network = R3D18Classifier(3, dropout=0.9).train()
    image = torch.rand(1, 8, 32, 32)
    statistics = network.backbone.stem[1].running_mean.clone()
    found = [class_activation(explained_copy(network), image, 1) for _ in range(2)]
    np.testing.assert_array_equal(*found)  # no dropout
    assert network.training
    assert torch.equal(network.backbone.stem[1].running_mean, statistics)
    assert network.get_submodule(LAST_STAGE).training


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last_3d])
def test_activation_is_the_relu_of_gradient_weighted_channels(memory_format: torch.memory_format) -> None:
    """By hand: the stages before and after the last one, autograd between them, and scipy's linear interpolation."""
    from scipy.interpolate import RegularGridInterpolator

    torch.manual_seed(0)
    network = R3D18Classifier(4).eval().to(memory_format=memory_format)
    image = torch.rand(1, 16, 40, 48)
    backbone = network.backbone
    with torch.no_grad():
        features = image[None]
        for stage in (backbone.stem, backbone.layer1, backbone.layer2, backbone.layer3, backbone.layer4):
            features = stage(features)
    features = features.detach().requires_grad_()
    logits = backbone.fc(backbone.avgpool(features).flatten(1))
    explained = explained_copy(network)
    shown = 0
    for k in range(4):
        (gradient,) = torch.autograd.grad(logits[0, k], features, retain_graph=True)
        weights = gradient[0].mean((1, 2, 3)).numpy()
        coarse = np.maximum(np.tensordot(weights, features[0].detach().numpy(), 1), 0)
        # voxel centres of the coarse grid in the volume's coordinates; outside them the nearest counts
        axes = [(np.arange(n) + 0.5) * size / n - 0.5 for n, size in zip(coarse.shape, image.shape[1:], strict=True)]
        points = np.stack(np.meshgrid(*map(np.arange, image.shape[1:]), indexing="ij"), -1).astype(float)
        points = np.stack([np.clip(points[..., i], axis[0], axis[-1]) for i, axis in enumerate(axes)], -1)
        expected = RegularGridInterpolator(axes, coarse)(points)
        if expected.max() > 0:
            shown += 1
            expected /= expected.max()
        found = class_activation(explained, image, k)
        assert found.shape == image.shape[1:] and found.dtype == np.float32
        np.testing.assert_allclose(found, expected, atol=2e-4)
    assert shown >= 2


def test_a_class_that_nothing_speaks_for_has_no_activation() -> None:
    network = R3D18Classifier(2).eval()
    with torch.no_grad():
        network.backbone.fc[3].weight.zero_()
    found = class_activation(explained_copy(network), torch.rand(1, 8, 32, 32), 0)
    assert (found == 0).all()


def test_earlier_stages_keep_nothing_for_the_gradient() -> None:
    network = R3D18Classifier(2).eval()
    explained = explained_copy(network)
    kept: list[torch.Size] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(t.shape), t)[1], lambda t: t):
        class_activation(explained, torch.rand(1, 16, 32, 32), 0)
    assert kept
    assert max(map(len, kept)) <= 2  # what the pooled features and the head's weights need, and no map


def test_a_layer_that_the_network_does_not_have_is_named() -> None:
    with pytest.raises(ValueError, match="no module 'backbone.layer5'"):
        explained_copy(R3D18Classifier(2), "backbone.layer5")
    with pytest.raises(ValueError, match=r"no module '.+'; it can name its own as explained_layer"):
        explained_copy(torch.nn.Linear(2, 2))
