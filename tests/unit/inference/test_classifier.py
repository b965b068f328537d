"""Answers in Python: those of inference.yaml (tests of the registered model compare them), and what is refused."""

from __future__ import annotations

from pathlib import Path

import fsspec
import pandas as pd
import pytest
import torch
import yaml
from workflows import CLASSES, SMALL_SETTINGS

from fairlung.pipeline import Classifier, R3D18Classifier, load_model
from fairlung.pipeline.inference.classifier import BUNDLE, NETWORKS, BundleError
from fairlung.pipeline.networks import I3D, RACNet
from fairlung.pipeline.networks.checkpoint import CheckpointError, model_settings
from fairlung.transforms import ScanError, read_scan

RACNET = {**SMALL_SETTINGS, "class_names": ["a", "b"], "num_slices": 5, "network": "RACNet"}


@pytest.fixture(scope="module")
def checkpoints(bundle_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two networks that learnt nothing."""
    folder = tmp_path_factory.mktemp("checkpoints")
    settings = model_settings("", bundle_dir / "configs" / "train.yaml")
    settings |= {"num_slices": 8, "image_size": 32, "crop_size": 24, "network": "R3D18Classifier"}
    settings["group_names"] = ["male", "female"]
    for seed in range(2):
        torch.manual_seed(seed)
        content = {"model": R3D18Classifier(len(CLASSES)).state_dict(), "settings": settings}
        torch.save(content, folder / f"{seed}.pt")
    return sorted(folder.iterdir())


@pytest.fixture
def other_network(bundle_dir: Path, tmp_path: Path) -> tuple[Path, I3D]:
    """A checkpoint of another network than inference.yaml's, and the network."""
    settings = {**SMALL_SETTINGS, "network": "I3D"}
    network = I3D(len(CLASSES)).eval()
    torch.save({"model": network.state_dict(), "settings": settings}, tmp_path / "i3d.pt")
    return tmp_path / "i3d.pt", network


def changed(path: Path, **settings: object) -> Path:
    """The same checkpoint, but for what it says of itself."""
    content = torch.load(path, weights_only=True)
    content["settings"] |= settings
    torch.save(content, path.with_name("changed.pt"))
    return path.with_name("changed.pt")


def test_a_checkpoint_says_which_network_it_is_of(other_network: tuple[Path, I3D], small_cohort: Path) -> None:
    path, network = other_network
    found, volume = load_model(path), torch.rand(2, 1, 8, 24, 24)
    assert type(found) is I3D and not found.training
    with torch.no_grad():
        assert torch.equal(found(volume), network(volume))
    scan = small_cohort.parent / pd.read_csv(small_cohort)["scan"][0]
    frame = pd.DataFrame({"scan": [None, scan], "label": ["normal", "covid19"], "site": [3, 4]}, index=[7, 5])
    answers = Classifier(path).predict(frame)
    assert answers.columns[:4].tolist() == ["scan", "label", "site", "prediction"] and answers.index.tolist() == [7, 5]
    assert answers["status"].tolist() == ["failed", "ok"] and answers["site"].tolist() == [3, 4]
    volume, record = Classifier(path).read(scan)
    again, _ = read_scan(scan, num_slices=8, trim_fraction=0.1, size=32)
    torch.testing.assert_close(volume, again[:, :, 4:-4, 4:-4], atol=1 / 255, rtol=0)
    assert record["status"] == "ok" and type(volume) is torch.Tensor
    with torch.no_grad():
        expected = torch.softmax(network(volume[None]), 1)[0]
    said = answers.loc[5, [f"prob_{name}" for name in CLASSES]].to_numpy(float)
    torch.testing.assert_close(torch.tensor(said.tolist()), expected, atol=1e-3, rtol=0)
    with pytest.raises(ScanError, match="nowhere"):
        Classifier(path).read("nowhere")
    one = Classifier(path).predict(str(scan))  # one path is not its letters
    assert len(one) == 1 and one["prediction"][0] == answers["prediction"][5]
    with pytest.raises(ValueError, match="the answers have a column 'prediction' too"):
        Classifier(path).predict(answers)
    with pytest.raises(ValueError, match="no column 'scan'; there is path"):
        Classifier(path).predict(frame.rename(columns={"scan": "path"})[["path"]])


def test_a_checkpoint_that_makes_no_network_alone_says_what_it_is(other_network: tuple[Path, I3D]) -> None:
    path, network = other_network
    head = "head of I3D on frozen features, i3d-kinetics400 0123456789ab"
    for load in (load_model, Classifier):
        with pytest.raises(CheckpointError, match=r"changed.pt is the head of I3D on frozen .* whole.pt beside it"):
            load(changed(path, network=head))
    with pytest.raises(CheckpointError, match="is of a DenseNet121, none of .*: pass network, an untrained DenseNet"):
        load_model(changed(path, network="DenseNet121"))
    given = load_model(changed(path, network="Mine"), I3D(len(CLASSES)))
    assert all(torch.equal(value, network.state_dict()[name]) for name, value in given.state_dict().items())
    with pytest.raises(CheckpointError, match=r"(?s)changed.pt: .*size mismatch"):
        load_model(changed(path, class_names=["a", "b"]))
    with pytest.raises(CheckpointError, match="no checkpoint at .*gone.pt"):
        load_model(path.with_name("gone.pt"))


def test_every_network_that_a_checkpoint_may_name_is_built_as_trained(tmp_path: Path) -> None:
    """RACNet also depends on the number of slices; other arguments do not change the weights' shapes."""
    torch.save({"model": RACNet(2, slices=5).state_dict(), "settings": RACNET}, tmp_path / "racnet.pt")
    assert type(load_model(tmp_path / "racnet.pt")) is RACNet
    overlays = [path for folder in ("networks", "systems") for path in (BUNDLE / "configs" / folder).glob("*.yaml")]
    targets = [yaml.safe_load(path.read_text()).get("network_def", {}).get("_target_", "") for path in overlays]
    ours = {target.rpartition(".")[2] for target in targets if target.startswith("fairlung")}
    assert {*ours, "R3D18Classifier"} == set(NETWORKS)


@pytest.mark.slow
def test_several_checkpoints_answer_together(checkpoints: list[Path], small_cohort: Path) -> None:
    scans = [small_cohort.parent / scan for scan in pd.read_csv(small_cohort)["scan"][:2]]
    names = [f"prob_{name}" for name in CLASSES]
    own = [Classifier(path).predict([*scans, None]) for path in checkpoints]
    together = Classifier(str(checkpoints[0].parent / "*.pt"), flip_tta=False).predict(scans, batch_size=2)
    for table in own:
        assert table["scan"].tolist() == [*map(str, scans), ""]
        assert table["status"].tolist() == ["ok", "ok", "failed"]
        assert table[names].loc[:1].sum(axis=1).tolist() == pytest.approx([1, 1])
        assert table[names].loc[2].isna().all()
    mean = (own[0][names] + own[1][names]).loc[:1] / 2
    pd.testing.assert_frame_equal(together[names], mean, rtol=1e-4, check_dtype=False)
    assert {"agreement", *(f"spread_{name}" for name in CLASSES)} <= set(together.columns)


def test_a_scan_at_an_address_is_answered_and_its_login_is_not_repeated(
    checkpoints: list[Path], small_cohort: Path
) -> None:
    scan, address = small_cohort.parent / pd.read_csv(small_cohort)["scan"][0], "memory://ann:QZXPASS@bucket/scan"
    store = fsspec.filesystem("memory")
    store.put(str(scan), address, recursive=True)
    try:
        here, there = Classifier(checkpoints[0]).predict([scan, address]).to_dict("records")
    finally:
        store.rm(address, recursive=True)
    assert there == here | {"scan": "memory://bucket/scan"} and there["status"] == "ok"


def test_what_is_missing_is_named(checkpoints: list[Path], tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no bundle at .*pass bundle_root"):
        Classifier(checkpoints[0], tmp_path)
    with pytest.raises(BundleError, match="inference.yaml has no setting flip"):
        Classifier(checkpoints[0], flip=True)
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        Classifier(tmp_path / "gone.pt")
