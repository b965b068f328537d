"""Several checkpoints that answer together, and mirrored volumes: equal to plain numpy, and refused when unfit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from ignite.engine import Engine
from monai.bundle import ConfigParser
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator
from monai.inferers import SimpleInferer
from torch import Tensor, nn
from workflows import CLASSES, SHRUNK

from fairlung.pipeline.inference.members import (
    COMMON_SETTINGS,
    GROUP_SETTINGS,
    MemberLoader,
    checkpoint_paths,
    common_settings,
    load_members,
    require_checkpoints,
)
from fairlung.pipeline.inference.prediction_writer import PredictionWriter
from fairlung.pipeline.inference.runtimes import MirrorInferer
from fairlung.pipeline.networks.checkpoint import MODEL_SETTINGS, CheckpointError, ModelSettings, model_settings
from fairlung.pipeline.networks.ensemble import Ensemble, ensemble_of

SHAPE = (3, 4, 6)
SETTINGS: dict[str, Any] = {
    "class_names": CLASSES,
    "group_by": "sex",
    "group_names": ["male", "female"],
    "age_bands": None,
    "window": [-1350, 150],
    "trim_fraction": 0.1,
    "num_slices": SHRUNK["num_slices"],
    "image_size": SHRUNK["image_size"],
    "fast_decode": False,
    "crop_size": SHRUNK["crop_size"],
    "network": "R3D18Classifier",
}
OTHER: dict[str, Any] = {
    "class_names": [*CLASSES[::-1]],
    "group_by": "site",
    "group_names": ["female", "male"],
    "age_bands": [65],
    "window": [-1000, 400],
    "trim_fraction": 0.2,
    "num_slices": 16,
    "image_size": 64,
    "fast_decode": True,
    "crop_size": 56,
    "network": "CNNRNNClassifier",
}


class Linear(nn.Module):
    """Logits that depend on where each voxel is; with ``symmetric``, not on which of two mirrored ones it is."""

    def __init__(self, seed: int, symmetric: bool = False) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        weight = torch.randn(len(CLASSES), *SHAPE, generator=generator)
        self.weight = nn.Parameter(weight + weight.flip(-1) if symmetric else weight)
        self.training_seen = False

    def forward(self, image: Tensor) -> Tensor:
        self.training_seen |= self.training
        return torch.einsum("nidhw,cdhw->nc", image, self.weight)


def softmax(logits: np.ndarray) -> np.ndarray:
    exponential = np.exp(logits - logits.max(-1, keepdims=True))
    return exponential / exponential.sum(-1, keepdims=True)


def logits_of(networks: list[Linear], images: np.ndarray) -> np.ndarray:
    """[N, M, C] by numpy."""
    weights = [network.weight.detach().numpy().astype(float) for network in networks]
    return np.stack([np.einsum("nidhw,cdhw->nc", images.astype(float), weight) for weight in weights], axis=1)


@pytest.fixture
def images() -> Tensor:
    return torch.rand(5, 1, *SHAPE, generator=torch.Generator().manual_seed(0))


def save(path: Path, seed: int, **settings: Any) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(
        {"model": Linear(seed).state_dict(), "settings": ModelSettings(**SETTINGS | settings).state_dict()}, path
    )
    return str(path)


@pytest.fixture
def three(tmp_path: Path) -> list[str]:
    return [save(tmp_path / f"seed{seed}" / "models" / "best.pt", seed) for seed in range(3)]


# ---- the whole: evaluator, members, mirror, table ------------------------------------------------------------------
@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("members", [1, 3])
def test_the_table_equals_numpy(three: list[str], images: Tensor, tmp_path: Path, mirror: bool, members: int) -> None:
    paths = three[:members]
    network = ensemble_of(Linear(99), members)
    loader = MemberLoader(paths, network, ModelSettings(**SETTINGS))
    writer = PredictionWriter(tmp_path / "p.csv", CLASSES, members=members)
    items = [{"image": image, "scan": f"s{i}", "reason": ""} for i, image in enumerate(images)]
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(Dataset(items), batch_size=2),
        network=network,
        inferer=MirrorInferer(mirror),
        val_handlers=[loader, writer],
        decollate=False,
    )
    evaluator.run()
    networks = [Linear(seed) for seed in range(members)]
    own = softmax(logits_of(networks, images.numpy()))
    if mirror:
        own = (own + softmax(logits_of(networks, images.numpy()[..., ::-1]))) / 2
    table = pd.read_csv(tmp_path / "p.csv")
    np.testing.assert_allclose(table[[f"prob_{name}" for name in CLASSES]], own.mean(1), atol=2e-6)
    if members > 1:
        np.testing.assert_allclose(table[[f"spread_{name}" for name in CLASSES]], own.std(1, ddof=1), atol=2e-6)
    assert list(table["prediction"]) == [CLASSES[i] for i in own.mean(1).argmax(1)]
    assert not any(module.training_seen for module in network.modules() if isinstance(module, Linear))


def test_the_order_of_members_makes_no_difference(three: list[str], images: Tensor, tmp_path: Path) -> None:
    answers = []
    for paths in (three, three[::-1]):
        network = ensemble_of(Linear(9), 3)
        load_members(paths, network, ModelSettings(**SETTINGS))
        batch = {"scan": list("vwxyz"), "reason": [""] * 5}
        with torch.no_grad():
            answers.append(PredictionWriter(tmp_path / "p.csv", CLASSES, members=3).answer(batch, network(images)))
    for one, other in zip(*answers, strict=True):
        assert one.probabilities == pytest.approx(other.probabilities, abs=1e-12)
        assert one.spread == pytest.approx(other.spread, abs=1e-12)
        assert one.agreement == other.agreement


# ---- the module ----------------------------------------------------------------------------------------------------
def test_logits_of_members_side_by_side(images: Tensor) -> None:
    networks = [Linear(seed) for seed in range(3)]
    logits = Ensemble(networks)(images)
    assert logits.shape == (5, 3, len(CLASSES))
    for m, network in enumerate(networks):
        assert torch.equal(logits[:, m], network(images))
    assert torch.equal(Ensemble(networks[:1])(images), networks[0](images))
    with pytest.raises(ValueError, match="at least one network"):
        Ensemble([])


def test_one_member_is_the_network_itself() -> None:
    network = Linear(0)
    assert ensemble_of(network, 1) is network
    several = ensemble_of(network, 3)
    assert isinstance(several, Ensemble)
    assert several.networks[0] is network  # what explains or exports a network finds a trained one
    storages = {member.weight.data_ptr() for member in several.networks}
    assert len(storages) == 3
    with pytest.raises(ValueError, match="members must be at least 1, got 0"):
        ensemble_of(network, 0)


# ---- mirrored volumes ----------------------------------------------------------------------------------------------
def test_a_network_that_sees_no_sides_answers_the_same(images: Tensor) -> None:
    network = Ensemble([Linear(seed, symmetric=True) for seed in range(3)])
    plain, mirrored = (torch.softmax(MirrorInferer(m)(images, network), -1) for m in (False, True))
    torch.testing.assert_close(mirrored, plain, atol=1e-6, rtol=0)
    one_sided = Ensemble([Linear(seed) for seed in range(3)])
    plain, mirrored = (torch.softmax(MirrorInferer(m)(images, one_sided), -1) for m in (False, True))
    assert (mirrored - plain).abs().max() > 0.05


def test_a_mirrored_volume_gets_the_same_answer(images: Tensor) -> None:
    network, inferer = Linear(4), MirrorInferer(True)
    torch.testing.assert_close(inferer(images, network), inferer(images.flip(-1), network))


def test_without_mirror_it_is_the_simple_inferer(images: Tensor) -> None:
    assert torch.equal(MirrorInferer()(images, Linear(1)), SimpleInferer()(images, Linear(1)))
    with pytest.raises(ValueError, match="mirror must be true or false, got 'yes'"):
        MirrorInferer("yes")  # type: ignore[arg-type]


def test_probabilities_are_averaged_and_not_logits() -> None:
    class Sided(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            return torch.stack([50 * image[:, 0, 0, 0, 0], 0 * image[:, 0, 0, 0, 0]], dim=1).half()

    image = torch.zeros(1, 1, *SHAPE)
    image[..., 0], image[..., -1] = 1, -0.01
    logits = MirrorInferer(True)(image, Sided())
    assert logits.dtype == torch.float32  # half precision would lose the smaller one
    expected = (1 + 1 / (1 + np.exp(0.5))) / 2
    assert float(torch.softmax(logits, -1)[0, 0]) == pytest.approx(expected, abs=1e-3)


def test_an_output_that_is_not_finite_stays_so(images: Tensor) -> None:
    network = Linear(0)
    network.weight.data[0, 0, 0, 0] = float("nan")
    logits = MirrorInferer(True)(images, network)
    assert not torch.softmax(logits, -1).isfinite().all(-1).any()


def test_the_training_mirrors_along_the_same_axis(bundle_dir: Path, images: Tensor) -> None:
    config = ConfigParser.load_config_file(str(bundle_dir / "configs" / "train.yaml"))
    (flip,) = [
        entry for entry in config["augmentation"] if isinstance(entry, dict) and entry["_target_"] == "RandFlipd"
    ]
    parser = ConfigParser({"flip": flip | {"prob": 1.0}})
    flipped = parser.get_parsed_content("flip")({"image": images[0]})["image"]
    assert torch.equal(torch.as_tensor(flipped), images[0].flip(-1))


# ---- which files ---------------------------------------------------------------------------------------------------
def test_paths_patterns_and_lists(three: list[str], tmp_path: Path) -> None:
    assert checkpoint_paths(three[1]) == [three[1]]
    assert checkpoint_paths(Path(three[1])) == [three[1]]
    assert checkpoint_paths(f"{tmp_path}/*/models/best.pt") == three
    assert checkpoint_paths(f"{tmp_path}/**/*.pt") == three
    assert checkpoint_paths([three[2], f"{tmp_path}/seed[01]/models/best.pt"]) == [three[2], *three[:2]]
    assert checkpoint_paths("not/there.pt") == ["not/there.pt"]
    odd = save(tmp_path / "a[1]" / "models" / "best.pt", 5)
    assert checkpoint_paths(odd) == [odd]  # no pattern: it is there


def test_paths_that_are_none(three: list[str], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint matches .*none"):
        checkpoint_paths([three[0], f"{tmp_path}/none*/best.pt"])
    with pytest.raises(CheckpointError, match="no checkpoint matches"):
        checkpoint_paths(f"{tmp_path}/seed*")  # folders
    with pytest.raises(CheckpointError, match="an empty list"):
        checkpoint_paths([])
    (tmp_path / "link.pt").symlink_to(three[0])
    for again in (three[0], f"{tmp_path}/seed0/../seed0/models/best.pt", str(tmp_path / "link.pt")):
        with pytest.raises(CheckpointError, match="would count twice"):
            checkpoint_paths([three[0], again])
    with pytest.raises(CheckpointError, match="no checkpoint at missing.pt"):
        require_checkpoints([three[0], "missing.pt"])


# ---- settings ------------------------------------------------------------------------------------------------------
def test_every_setting_is_common_or_of_the_groups() -> None:
    assert {*COMMON_SETTINGS} | {*GROUP_SETTINGS} == {*MODEL_SETTINGS, "network"}
    assert set(OTHER) == set(SETTINGS)


@pytest.mark.parametrize("name", COMMON_SETTINGS)
def test_a_setting_that_differs_is_named_with_its_file(three: list[str], tmp_path: Path, name: str) -> None:
    other = save(tmp_path / "other.pt", 7, **{name: OTHER[name]})
    with pytest.raises(CheckpointError) as caught:
        common_settings([*three, other], "")
    assert f"{other} was trained with other settings than {three[0]}" in str(caught.value)
    assert f"{name}: {OTHER[name]!r}, there {SETTINGS[name]!r}" in str(caught.value)
    assert not any(f"{same}:" in str(caught.value) for same in SETTINGS if same != name)
    with pytest.raises(CheckpointError, match=rf"(?s){other}: .*{name}: checkpoint"):  # also for whoever went round it
        load_members([*three[:2], other], ensemble_of(Linear(9), 3), ModelSettings(**SETTINGS))


def test_groups_may_differ_between_members_but_not_from_the_one(three: list[str], tmp_path: Path) -> None:
    other = save(tmp_path / "other.pt", 7, **{name: OTHER[name] for name in GROUP_SETTINGS})
    paths = [*three, other]
    assert common_settings(paths, "") == model_settings(three[0], "")
    network = ensemble_of(Linear(9), 4)
    load_members(paths, network, ModelSettings(**common_settings(paths, "")))
    assert torch.equal(network.networks[3].weight, Linear(7).weight)  # type: ignore[union-attr, operator]
    with pytest.raises(CheckpointError, match="group_by: checkpoint 'site', run 'sex'"):
        load_members([other], Linear(9), ModelSettings(**SETTINGS))


def test_one_that_is_not_there_yet_is_described_by_the_config(bundle_dir: Path, three: list[str]) -> None:
    train = bundle_dir / "configs" / "train.yaml"
    assert common_settings(["none.pt"], train) == model_settings("none.pt", train)
    assert common_settings(three[:1], train) == model_settings(three[0], train)
    with pytest.raises(CheckpointError, match="no checkpoint at none.pt"):
        common_settings([three[0], "none.pt"], train)


# ---- loading -------------------------------------------------------------------------------------------------------
def test_each_file_fills_its_member(three: list[str]) -> None:
    network = ensemble_of(Linear(99), 3)
    load_members(three, network, ModelSettings(**SETTINGS))
    for seed, member in enumerate(network.networks):  # type: ignore[arg-type]
        assert torch.equal(member.weight, Linear(seed).weight)
    with pytest.raises(ValueError, match="2 checkpoints for 3 networks"):
        load_members(three[:2], network, ModelSettings(**SETTINGS))


def test_what_does_not_fit_names_its_file(three: list[str], tmp_path: Path) -> None:
    settings = ModelSettings(**SETTINGS)
    strange = tmp_path / "strange.pt"
    for model in ({"weight": torch.zeros(2, *SHAPE)}, {}, {"weight": Linear(0).weight.data, "more": torch.zeros(1)}):
        torch.save({"model": model, "settings": settings.state_dict()}, strange)
        with pytest.raises(CheckpointError, match=f"{strange}: .*state_dict"):
            load_members([three[0], str(strange)], ensemble_of(Linear(9), 2), settings)
    strange.write_bytes(b"no checkpoint")
    with pytest.raises(CheckpointError, match=f"{strange} cannot be read"):
        load_members([three[0], str(strange)], ensemble_of(Linear(9), 2), settings)
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        load_members([three[0], str(tmp_path / "none.pt")], ensemble_of(Linear(9), 2), settings)


def test_a_training_does_not_vote_twice(three: list[str], tmp_path: Path) -> None:
    """best.pt is one of its training's checkpoint_epoch=*.pt: a pattern that takes all of them would weigh it twice."""
    epoch = save(tmp_path / "seed1" / "models" / "checkpoint_epoch=4.pt", 1)
    with pytest.raises(CheckpointError, match=f"{epoch} holds the same weights as {three[1]}"):
        load_members([*three, epoch], ensemble_of(Linear(9), 4), ModelSettings(**SETTINGS))


def test_members_are_loaded_once(three: list[str]) -> None:
    network = ensemble_of(Linear(9), 3)
    loader = MemberLoader(three, network, ModelSettings(**SETTINGS))
    engine = Engine(lambda engine, batch: None)
    loader.attach(engine)
    engine.run([0])
    for path in three:
        Path(path).unlink()  # a round of new scans later
    engine.run([0])
    assert torch.equal(network.networks[2].weight, Linear(2).weight)  # type: ignore[union-attr, operator]
