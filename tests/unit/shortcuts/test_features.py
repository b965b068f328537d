"""Features that an evaluation saves: of every scan in the table's order, also before the training, and no image."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from workflows import CLASSES, SMALL_NETWORK, Start, cause, run

from fairlung.pipeline.networks.cnn_rnn import CNNRNNClassifier, RACNet
from fairlung.pipeline.networks.r3d18 import R3D18Classifier
from fairlung.pipeline.shortcuts.features import (
    IMAGE_STATISTICS,
    FeatureError,
    UntrainedNetwork,
    features_of,
    image_statistics,
    load_features,
)

SMALL = {"network_def": SMALL_NETWORK, "error_images": 0}


def test_features_are_what_the_last_layer_is_given() -> None:
    network = R3D18Classifier(num_classes=4).train()
    image = torch.rand(2, 1, 8, 24, 24)
    found = features_of(network, image)
    assert network.training and found.shape == (2, 256) and not found.requires_grad
    head = network.backbone.fc[3]
    torch.testing.assert_close(found @ head.weight.T + head.bias, network.eval()(image))


@pytest.mark.parametrize("network", [lambda: CNNRNNClassifier(num_classes=4), lambda: RACNet(4, slices=3, routing=9)])
def test_features_of_a_network_with_recurrence(network: Callable[[], CNNRNNClassifier]) -> None:
    made = network().eval()
    assert features_of(made, torch.rand(1, 1, 3, 32, 32)).shape == (1, made.head[-1].in_features)


def test_a_network_without_a_linear_layer_is_refused() -> None:
    with pytest.raises(FeatureError, match="Conv3d calls no torch.nn.Linear"):
        features_of(nn.Conv3d(1, 2, 1), torch.rand(1, 1, 4, 4, 4))


def test_image_statistics_are_numpys_and_leave_padding_out() -> None:
    image = torch.rand(2, 1, 6, 10, 10)
    image[0, :, 4:] = -1
    found = dict(zip(IMAGE_STATISTICS, image_statistics(image, (-1350, 150)).T.numpy(), strict=True))
    for row, part in enumerate((image[0, :, :4].numpy(), image[1].numpy())):
        assert found["mean"][row] == pytest.approx(part.mean(), rel=1e-5)
        assert found["sd"][row] == pytest.approx(part.std(ddof=1), rel=1e-5)
        assert found["p25"][row] == pytest.approx(np.quantile(part, 0.25, method="nearest"), abs=0.01)
        hu = part * 1500 - 1350
        assert found["share_air"][row] == pytest.approx((hu < -950).mean(), abs=1e-6)
        assert found["share_body"][row] == pytest.approx((hu > -150).mean(), abs=1e-6)


@pytest.mark.slow
def test_an_evaluation_saves_features_on_request(start: Start, small_cohort: Path, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_bytes(b"0123456789abcdef")
    settings = {"cohort": str(small_cohort), "output_dir": str(tmp_path / "run"), "seed": 5}
    training = start("train", network_def=SMALL_NETWORK, epochs=1, **settings)
    training.initialize()
    before = {k: v.clone() for k, v in training.parser.get_parsed_content("network_def").state_dict().items()}
    training.run()
    training.finalize()

    settings |= {"pseudonymize": str(key), "seed": 42}
    judging = run(start("train", "evaluate", duplicates="train", **SMALL, **settings))
    path = tmp_path / "run" / "val" / "evaluation" / "features.npz"
    found = load_features(path)
    table = pd.read_csv(path.with_name("predictions.csv"))
    assert list(found.scan) == list(table["scan"]) and all(name.startswith("scan-") for name in found.scan)
    others = tmp_path / "run" / "train" / "features.npz"  # of the split that was searched
    assert len(load_features(others).scan) == 16 and all(load_features(others).patient_known)
    for written in (others, path, path.with_name("audit.json"), path.with_name("duplicates.csv")):
        assert b"phantom" not in written.read_bytes(), written
    network = judging.parser.get_parsed_content("network")
    logits = torch.as_tensor(found.network) @ network.class_layers.out.weight.T + network.class_layers.out.bias
    shown = table[[f"prob_{name}" for name in CLASSES]].to_numpy()
    np.testing.assert_allclose(torch.softmax(logits, 1).detach().numpy(), shown, atol=2e-6)

    # the network before its training is the training's own
    assert found.untrained_is == "the training's initial weights, of seed 5"
    network.load_state_dict(before)
    image = torch.stack([judging.parser.get_parsed_content("validate::dataset")[i]["image"] for i in range(2)])
    np.testing.assert_allclose(features_of(network, image.float() / 255), found.untrained[:2], atol=1e-5)
    np.testing.assert_allclose(image_statistics(image.float() / 255, (-1350, 150)), found.image[:2], atol=1e-5)

    path.with_name("probe.json").write_text("of the earlier predictions")
    run(start("train", "evaluate", **SMALL, **settings))
    assert not path.exists() and not path.with_name("probe.json").exists()


def test_what_cannot_be_saved_is_said_before_scans_are_read(
    start: Start, small_cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"cohort": str(small_cohort), "output_dir": str(tmp_path / "run"), "epochs": 1}
    run(start("train", network_def=SMALL_NETWORK, **settings))
    best = tmp_path / "run" / "models" / "best.pt"
    (tmp_path / "other.pt").write_bytes(best.read_bytes())
    del settings["epochs"]
    together = [str(best), str(tmp_path / "other.pt")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fairlung.pipeline.data.dataset.ScanDataset.prepare", lambda *_: pytest.fail("scans are read"))
        error = cause(start("train", "evaluate", save_features=True, checkpoint=together, **SMALL, **settings))
        assert str(error) == "save_features is for one checkpoint, and 2 answer together here"
        error = cause(start("train", "evaluate", duplicates="val", **SMALL, **settings))
        assert str(error) == "duplicates must be another split than the judged one, got 'val'"
        error = cause(start("train", "evaluate", duplicates="test", **SMALL, **settings))
        assert str(error) == "no scan is in split 'test'; splits of this cohort: train, val"


@pytest.mark.parametrize(
    ("settings", "weights_there", "inputs", "said"),
    [
        ({"seed": 3, "pretrained": True}, True, 3, "the published weights that the training began with, the others of"),
        (
            {"seed": 3, "pretrained": True},
            False,
            2,
            "random weights of seed 3, as the training's published ones are not",
        ),
        ({"seed": 3, "pretrained": False}, True, 2, "the training's initial weights, of seed 3"),
        ({}, False, 2, "random weights of seed 42"),
    ],
)
def test_the_untrained_network_says_which_weights_it_has(
    tmp_path: Path, settings: dict[str, Any], weights_there: bool, inputs: int, said: str
) -> None:
    (tmp_path / "models").mkdir()
    checkpoint, weights = tmp_path / "models" / "best.pt", tmp_path / "weights.pth"
    checkpoint.touch()
    if weights_there:
        weights.touch()
    (tmp_path / "settings.json").write_text(json.dumps(settings | {"weights": str(weights)}))
    layer = {"_target_": "torch.nn.Linear", "out_features": 1}
    layer["in_features"] = "$3 if @initial_weights::pretrained else 2"
    state = torch.get_rng_state()
    made, text = UntrainedNetwork({"network_def": layer, "initial_weights": {}}, checkpoint, tmp_path, 42).build()
    assert isinstance(made, nn.Linear) and made.in_features == inputs and text.startswith(said)
    assert torch.equal(torch.get_rng_state(), state)  # the evaluation's own draws stay as they are
    if inputs == 3:  # a network that does not take published weights never had them
        layer["in_features"] = 2
        assert (
            "initial weights, of seed 3"
            in UntrainedNetwork({"network_def": layer}, checkpoint, tmp_path, 42).build()[1]
        )


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut short"])
def test_a_damaged_file_is_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "features.npz"
    with pytest.raises(FeatureError, match="evaluate with --save_features True"):
        load_features(path)
    path.write_bytes(content)
    with pytest.raises(FeatureError, match=r"features.npz cannot be read as features"):
        load_features(path)
