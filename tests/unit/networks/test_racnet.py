"""RACNet: a dense layer over the places of real slices, which padding cannot reach; the CNN-RNN is a case of it."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
import yaml
from small_scans import padded_batch as batch
from torch import Tensor, nn
from workflows import SHRUNK, Start, cause, run

from fairlung.pipeline.networks.cnn_rnn import FEATURES, CNNRNNClassifier, RACNet
from fairlung.pipeline.networks.site_head import SiteHead

SYSTEM = ("train", "systems/racnet")
SLICES, HIDDEN = 7, 6  # places, and the GRU's units


def racnet(**settings: object) -> RACNet:
    torch.manual_seed(1)
    options = {"slices": SLICES, "hidden": HIDDEN, "routing": 5, "dropout": 0.0, "chunk": 4}
    return RACNet(4, **options | settings)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def network() -> RACNet:
    return racnet().eval()


@torch.no_grad()
def test_logits_are_those_of_the_formula(network: RACNet) -> None:
    """A GRU cell, slice by slice, and a sum over the real slices of one matrix a place."""
    cell = nn.GRUCell(FEATURES, HIDDEN)
    cell.load_state_dict({name: network.gru.state_dict()[f"{name}_l0"] for name in cell.state_dict()})
    routing, _, _, last = network.head
    matrices = routing.weight.reshape(5, SLICES, HIDDEN)
    expected = []
    for volume, count in zip(batch(3, 5), (3, 5), strict=True):
        state, routed = torch.zeros(HIDDEN), routing.bias.clone()
        for place, features in enumerate(network.encode(volume[0, :count])):
            state = cell(features, state)
            routed += matrices[:, place] @ state
        expected.append(last.weight @ routed.relu() + last.bias)
    torch.testing.assert_close(network(batch(3, 5)), torch.stack(expected), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_padding_and_other_volumes_change_nothing(network: RACNet) -> None:
    logits = network(batch(3, 5))
    for depth in (6, SLICES, SLICES + 4):  # padding alone may go beyond the places
        assert torch.equal(network(batch(3, 5, depth=depth)), logits)
    alone = torch.cat([network(batch(3, 5)[:1, :, :3]), network(batch(3, 5)[1:])])
    torch.testing.assert_close(alone, logits, rtol=1e-4, atol=1e-5)


def routing_gradient(network: RACNet, image: Tensor) -> Tensor:
    """[routing, places, hidden]"""
    network.zero_grad()
    network(image).square().sum().backward()
    return network.head[0].weight.grad.reshape(5, SLICES, HIDDEN)


def test_places_without_a_slice_neither_answer_nor_learn() -> None:
    network, image = racnet(encoder_mode="freeze").train(), batch(3, 5)
    gradient = routing_gradient(network, image)
    assert not gradient[:, 5:].any()
    assert gradient[:, :5].abs().amax((0, 2)).min() > 0
    logits = network(image)
    with torch.no_grad():
        network.head[0].weight.view(5, SLICES, HIDDEN)[:, 5:] = 1e6
    assert torch.equal(network(image), logits)
    with torch.no_grad():
        network.head[0].weight.view(5, SLICES, HIDDEN)[:, 4] += 1
    changed = network(image) - logits
    assert not changed[0].any() and changed[1].any()  # the first has three slices


@torch.no_grad()
def test_every_slice_and_their_order_count(network: RACNet) -> None:
    image = batch(4, depth=6)
    for i in range(4):
        changed = image.clone()
        changed[:, :, i] = 0
        assert not torch.allclose(network(changed), network(image), atol=1e-6)
    assert not torch.allclose(network(image[:, :, [1, 0, 2, 3]]), network(image), atol=1e-6)
    # the same slices at other places
    assert not torch.allclose(network(image[:, :, [0, 0, 1, 2, 3]]), network(image), atol=1e-6)


@torch.no_grad()
def test_read_at_the_last_slice_it_is_the_cnn_rnn() -> None:
    """For volumes of one length l: W_l = [I; -I], the others 0, as x = relu(x) - relu(-x)."""
    plain = CNNRNNClassifier(4, hidden=HIDDEN, chunk=4).eval()
    routed = racnet(routing=2 * HIDDEN).eval()
    routed.encoder, routed.gru = plain.encoder, plain.gru
    head, identity = plain.head[1], torch.eye(HIDDEN)
    routing, _, _, last = routed.head
    routing.weight.zero_()
    routing.bias.zero_()
    routing.weight.view(2 * HIDDEN, SLICES, HIDDEN)[:, 4] = torch.cat([identity, -identity])
    last.weight.copy_(torch.cat([head.weight, -head.weight], 1))
    last.bias.copy_(head.bias)
    image = batch(5, 5, depth=6)
    torch.testing.assert_close(routed(image), plain(image), rtol=1e-5, atol=1e-6)
    assert not torch.allclose(routed(image[:, :, :4]), plain(image[:, :, :4]), atol=1e-6)


def test_a_site_head_reads_the_routed_features() -> None:
    model = SiteHead(racnet(encoder_mode="freeze"), 4, 2)
    assert model.head is not None and model.head.in_features == 5
    assert model(batch(2, 3)).shape == (2, 6)
    assert model.eval()(batch(2, 3)).shape == (2, 4)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"slices": 0}, "slices must be a whole number of at least 1, got 0"),
        ({"routing": 0}, "routing must be a whole number of at least 1, got 0"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1.0"),
        ({"weights": "resnet50.pth"}, "weights='resnet50.pth' was given but pretrained is off"),
    ],
)
def test_refusals(settings: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        RACNet(**{"num_classes": 4, "slices": 3, **settings})


def test_a_volume_of_more_slices_than_places(network: RACNet) -> None:
    with pytest.raises(ValueError, match=f"a volume has 8 slices, and RACNet places for {SLICES}"):
        network(batch(2, 8))


# ---- the shipped config ---------------------------------------------------------------------------------------------
def test_its_volumes_are_the_cnn_rnns(bundle_dir: Path) -> None:
    folder = bundle_dir / "configs" / "systems"
    own, other = (yaml.safe_load((folder / f"{name}.yaml").read_text()) for name in ("racnet", "cnn_rnn"))
    differing = {name for name in own.keys() | other.keys() if own.get(name) != other.get(name)}
    assert differing == {"system", "network_def", "aggregation"}
    same = own["network_def"].items() & other["network_def"].items()
    assert dict(own["network_def"].items() - same) == {
        "_target_": "fairlung.pipeline.networks.RACNet", "slices": "@num_slices", "routing": 32,
    }  # fmt: skip


@pytest.fixture(scope="module")
def trained(start: Start, small_cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    output = tmp_path_factory.mktemp("racnet")
    table = pd.read_csv(small_cohort).groupby(["split", "label", "sex"], sort=False).head(1)
    table["scan"] = [str(small_cohort.parent / scan) for scan in table["scan"]]
    table.to_csv(output / "cohort.csv", index=False)
    settings = {"cohort": str(output / "cohort.csv"), "output_dir": str(output)}
    options = {"num_slices": 14, "learning_rate": 3e-4, "dropout": 0.0, "rotation_prob": 0.0}
    run(start(*SYSTEM, **settings, **options))
    return SimpleNamespace(output=output, settings=settings)


@pytest.mark.slow
def test_it_trains_lowers_its_loss_and_is_evaluated(trained: SimpleNamespace, start: Start, tmp_path: Path) -> None:
    history = pd.read_csv(trained.output / "history.csv")
    loss = history[history["metric"] == "train_loss"].sort_values("epoch")["value"].tolist()
    assert len(loss) == SHRUNK["epochs"] and loss[-1] < loss[0]
    content = torch.load(trained.output / "models" / "best.pt", weights_only=True)
    assert content["settings"]["network"] == "RACNet"
    assert content["model"]["head.0.weight"].shape == (32, 14 * 128)

    run(start(*SYSTEM, "evaluate", **trained.settings))
    folder = trained.output / "val" / "evaluation"
    metrics = json.loads((folder / "metrics.json").read_text())["metrics"]
    assert metrics == json.loads((trained.output / "val" / "metrics.json").read_text())["metrics"]
    assert json.loads((folder / "errors" / "errors.json").read_text())  # explained by Grad-CAM

    checkpoint = str(trained.output / "models" / "best.pt")
    options = trained.settings | {"output_dir": str(tmp_path), "checkpoint": checkpoint}
    error = cause(start("train", "systems/cnn_rnn", "evaluate", **options))
    assert "network: checkpoint 'RACNet', run 'CNNRNNClassifier'" in str(error)
