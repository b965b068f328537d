"""Full fine-tuning and linear probe as one setting."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable

import pytest
import torch
from monai.networks.nets import DenseNet, ResNet, SwinUNETR, UNet
from torch import nn

from fairlung.pipeline.networks.cnn_rnn import CNNRNNClassifier, RACNet
from fairlung.pipeline.networks.i3d import I3D
from fairlung.pipeline.networks.r3d18 import R3D18Classifier
from fairlung.pipeline.networks.resnest import ResNeSt50
from fairlung.pipeline.networks.train_layers import head_layers, train_only, trained_parameters


class SwinClassifier(nn.Module):
    """As docs/method.md has it."""

    def __init__(self, num_classes: int, feature_size: int = 24) -> None:
        super().__init__()
        self.encoder = SwinUNETR(in_channels=1, out_channels=1, feature_size=feature_size).swinViT
        self.head = nn.Linear(16 * feature_size, num_classes)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.head(self.encoder(image)[-1].mean((2, 3, 4)))


SHAPE = (2, 1, 8, 32, 32)
NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[str, ...]]] = {
    "R3D-18": (lambda: R3D18Classifier(3, hidden=8), ("backbone.fc",)),
    "I3D": (lambda: I3D(3, hidden=8), ("head",)),
    "ResNeSt-50": (lambda: ResNeSt50(3, hidden=8), ("head",)),
    "CNN-RNN": (lambda: CNNRNNClassifier(3, hidden=8, encoder_mode="full"), ("gru", "head")),
    "RACNet": (lambda: RACNet(3, slices=9, hidden=8, encoder_mode="full"), ("gru", "head")),
    "DenseNet": (
        lambda: DenseNet(3, 1, 3, init_features=8, growth_rate=8, block_config=(2, 2), dropout_prob=0.2),
        ("class_layers.out",),
    ),
    "ResNet": (
        lambda: ResNet("basic", [1, 1, 1, 1], [8, 8, 16, 16], n_input_channels=1, num_classes=3), ("fc",)
    ),
    "SwinUNETR's encoder": (lambda: SwinClassifier(3, feature_size=12), ("head",)),
}  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
def test_the_head_alone_trains(name: str) -> None:
    torch.manual_seed(0)
    make, head = NETWORKS[name]
    network = train_only(make(), "head")
    assert head_layers(network) == head
    optimizer = torch.optim.SGD(trained_parameters(network), lr=0.1)
    before = copy.deepcopy(network.state_dict())
    network.train()  # as the engine does it before each step
    loss = nn.functional.cross_entropy(network(torch.rand(SHAPE)), torch.tensor([0, 2]))
    loss.backward()
    optimizer.step()
    changed = {key for key, value in network.state_dict().items() if not torch.equal(value, before[key])}
    assert changed and all(key.startswith(tuple(f"{part}." for part in head)) for key in changed)
    held = {id(parameter) for parameter in trained_parameters(network)}
    assert held == {id(p) for part in head for p in network.get_submodule(part).parameters()}
    assert all(p.grad is None for p in network.parameters() if id(p) not in held)


def test_frozen_layers_stand_still_and_the_head_drops_out() -> None:
    network = train_only(R3D18Classifier(3, dropout=0.5), "head")
    network.train()
    network(torch.rand(SHAPE))
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm3d)]
    assert norms and not any(module.training for module in norms)
    assert network.training and network.backbone.fc[2].training
    network.eval()
    network(torch.rand(SHAPE))
    assert not any(module.training for module in network.modules())


def test_a_copy_is_frozen_itself() -> None:
    """What an ensemble copies must not switch the modules of the network that it was copied from."""
    network = train_only(NETWORKS["DenseNet"][0](), "head")
    network.eval()
    twin = copy.deepcopy(network)
    twin.train()
    twin(torch.rand(SHAPE))
    assert not any(module.training for module in network.modules())
    assert [name for name, module in twin.named_modules() if module.training and name] == ["class_layers.out"]


def test_all_changes_nothing() -> None:
    network = CNNRNNClassifier(3, hidden=8, encoder_mode="freeze")
    assert train_only(network, "all") is network
    held = {id(p) for p in trained_parameters(network)}
    assert held == {id(p) for part in ("gru", "head") for p in network.get_submodule(part).parameters()}
    network = R3D18Classifier(3)
    assert trained_parameters(train_only(network, "all")) == list(network.parameters())


def test_refusals(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ValueError, match="train_layers must be one of all, head, frozen, got 'heads'"):
        train_only(nn.Linear(2, 2), "heads")
    segments = UNet(3, 1, 3, channels=(4, 8), strides=(2,))
    with pytest.raises(ValueError, match="needs a network whose last layer is a Linear.*UNet ends in"):
        train_only(segments, "head")
    with pytest.raises(ValueError, match="ReLU ends in no layer"):
        train_only(nn.ReLU(), "head")
    with caplog.at_level(logging.WARNING):
        train_only(R3D18Classifier(3), "head")
    assert "head with random weights" in caplog.text
