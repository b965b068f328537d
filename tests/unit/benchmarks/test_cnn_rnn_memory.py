"""What a training step of the CNN-RNN needs, as the benchmark counts it: against every tensor that a step makes."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torchvision.models import ResNet50_Weights

from fairlung.pipeline.networks.cnn_rnn import ENCODER_MODES, CNNRNNClassifier

sys.path.insert(0, str(Path(__file__).parents[3] / "benchmarks"))
cnn_rnn_memory = importlib.import_module("cnn_rnn_memory")
LiveMemory, requirements = cnn_rnn_memory.LiveMemory, cnn_rnn_memory.requirements


def build(encoder_mode: str) -> CNNRNNClassifier:
    return CNNRNNClassifier(4, pretrained=False, encoder_mode=encoder_mode, dropout=0.0, hidden=16, chunk=4)


def peak_memory(network: CNNRNNClassifier, image: Tensor) -> int:
    """Bytes at the peak of a training step: of what it makes, so not of volumes and weights."""
    with LiveMemory() as memory:
        network.train()(image).sum().backward()
    network.zero_grad()
    return memory.peak


def test_live_memory_counts_storages() -> None:
    before = torch.zeros(1000)
    with LiveMemory() as memory:
        view = before.view(10, 100)
        made = torch.ones(500) + 1  # the ones are gone when the sum is there
        made.add_(1)
        assert (memory.alive, memory.peak) == (2000, 4000)
        del made
        assert memory.alive == 0
        doubled = view * 2
        assert (memory.alive, memory.peak) == (4000, 4000)
        del doubled


def test_kept_activations_are_what_autograd_saves() -> None:
    network, slices = build("full"), torch.rand(4, 64, 64)
    weights = {p.untyped_storage().data_ptr() for p in (*network.parameters(), *network.buffers())}
    saved: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        network.encode(slices)
    expected = sum(t.untyped_storage().nbytes() for pointer, t in saved.items() if pointer not in weights)
    need = requirements(1, 40, (64, 64), "full", chunk=4)  # nine chunks are kept beside the one at its peak
    one = requirements(1, 4, (64, 64), "full", chunk=4)
    assert (need.activations - one.activations) / 9 == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("encoder_mode", ENCODER_MODES)
@pytest.mark.slow
def test_memory_is_as_counted_and_bounded(encoder_mode: str) -> None:
    network = build(encoder_mode)
    depths, gradients = (8, 16), 4 * sum(p.numel() for p in network.parameters() if p.requires_grad)
    counted = [requirements(1, depth, (64, 64), encoder_mode, chunk=4, hidden=16) for depth in depths]
    short, long = (peak_memory(network, torch.rand(1, 1, depth, 64, 64)) for depth in depths)
    for measured, need in zip((short, long), counted, strict=True):
        # 1.1: the gradient that a chunk adds to a weight's exists beside it
        assert 0.95 * need.activations < measured < 1.1 * (need.activations + need.features + gradients)
    if encoder_mode == "full":
        assert long - short > 0.95 * (counted[1].activations - counted[0].activations) > 50e6
    else:
        assert counted[0].activations == counted[1].activations
        assert long - short <= counted[1].features - counted[0].features < 1e6


def test_operations_are_those_that_torchvision_states() -> None:
    per_slice = requirements(1, 1, (224, 224), "freeze", chunk=1).operations
    assert per_slice == pytest.approx(2e9 * ResNet50_Weights.IMAGENET1K_V1.meta["_ops"], rel=0.01)
    assert requirements(2, 700, (224, 224), "recompute", chunk=16).operations == 4 * 1400 * per_slice


def test_requirements_of_the_full_size() -> None:
    """The figures of docs/method.md."""
    needs = {mode: requirements(2, 700, (224, 224), mode, chunk=16) for mode in ENCODER_MODES}
    assert {mode: round(need.memory / 2**30, 1) for mode, need in needs.items()} == {
        "freeze": 0.6, "recompute": 2.0, "full": 112.7,
    }  # fmt: skip
    assert {mode: round(need.operations / 1e12, 1) for mode, need in needs.items()} == {
        "freeze": 11.4, "recompute": 45.8, "full": 34.3,
    }  # fmt: skip
    assert needs["freeze"].volumes == 2 * 700 * 224 * 224 * 4
