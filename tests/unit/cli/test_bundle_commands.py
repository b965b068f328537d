"""The commands of the three jobs say what MONAI's own would be told; the bundle is shown, copied and archived."""

from __future__ import annotations

import hashlib
import json
import runpy
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from monai.bundle import ConfigParser
from typer.testing import CliRunner
from workflows import CLASSES, SMALL_SETTINGS

from fairlung.pipeline.cli.app import app
from fairlung.pipeline.cli.bundle_commands import CommandLineError, asked
from fairlung.pipeline.networks.checkpoint import same_checkpoint


def fairlung(*words: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, [*words])
    assert result.exit_code == code, result.output
    return result.output


# ---- the three jobs --------------------------------------------------------------------------------------------------
@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The command lines that monai.bundle is run with; nothing is run."""
    lines: list[list[str]] = []
    monkeypatch.setattr(runpy, "run_module", lambda name, **_: lines.append([name, *sys.argv[1:]]))
    monkeypatch.setattr(sys, "argv", ["fairlung"])
    return lines


@pytest.mark.parametrize(
    ("words", "configs", "settings"),
    [
        ("train --cohort c.csv -o a --alpha 0.7", ["train"], ["--cohort=c.csv", "--output_dir", "a", "--alpha=0.7"]),
        ("train -c demo -c systems/ce --resume", ["train", "demo", "systems/ce"], ["--resume"]),
        ("evaluate -c systems/ce --split=test", ["train", "systems/ce", "evaluate"], ["--split=test"]),
        ("infer D --checkpoint a.pt -o out", ["inference"], ["--scans=D", "--checkpoint=a.pt", "--output_dir", "out"]),
        ("infer D --engine ray -o o --address h:1 --models 2", ["inference", "ray_inference"],
            ["--scans=D", "--output_dir", "o", "--models=2", "--ray_address=h:1"]),
        ("infer D --engine=local", ["inference"], ["--scans=D"]),
        ("infer --read-timeout 5 DIR", ["inference"], ["--read_timeout=5", "--scans=DIR"]),
        ("train --network_def::dropout -1", ["train"], ["--network_def::dropout=-1"]),
    ],
)  # fmt: skip
def test_what_monai_is_told(
    words: str, configs: list[str], settings: list[str], bundle_dir: Path, started: list[list[str]]
) -> None:
    fairlung(*words.split())
    ((module, run, files, root, *rest),) = started
    assert (module, run, root) == ("monai.bundle", "run", f"--bundle_root={bundle_dir}")
    assert yaml.safe_load(files.removeprefix("--config_file=")) == [
        str(bundle_dir / "configs" / f"{name}.yaml") for name in configs
    ]
    assert rest == settings


def test_another_bundle(bundle_dir: Path, tmp_path: Path, started: list[list[str]]) -> None:
    fairlung("bundle", "--copy", str(tmp_path / "mine"))
    fairlung("train", "--bundle-root", str(tmp_path / "mine"))
    assert started[0][2:] == [
        f"--config_file={[str(tmp_path / 'mine' / 'configs' / 'train.yaml')]}",
        f"--bundle_root={tmp_path / 'mine'}",
    ]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train", "cohort.csv"], "settings are given as --name value, got 'cohort.csv'"),
        (["infer", "a", "b"], "settings are given as --name value, got 'b'"),
        (["train", "-x", "1"], "settings are given as --name value, got '-x'"),
        (["train", "-o"], "-o needs a value"),
        (["infer", "--engine", "slurm"], "--engine must be one of local, ray, got 'slurm'"),
        (["infer", "--address", "h:1"], "--address is that of a cluster, for --engine ray"),
        (["train", "-c", "systems/fokal"], "did you mean 'systems/focal'?"),
        (["bundle", "--weights", "best.pt"], "--weights and --weights-url are for --zip"),
    ],
)
def test_words_that_a_job_does_not_take(words: list[str], said: str, started: list[list[str]]) -> None:
    assert said in fairlung(*words, code=1)
    assert not started


@pytest.mark.fault(
    "wrong", "a setting given twice, --alpha 0.7 ... --alpha 0.8", before="the last one, without a word",
    now="one line with both values",
)  # fmt: skip
@pytest.mark.parametrize("second", [["--alpha", "0.8"], ["--alpha=0.8"]])
def test_a_setting_given_twice(second: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["fairlung"])
    assert "error: alpha is given twice: 0.7 and 0.8" in fairlung("train", "--alpha", "0.7", *second, code=1)


@pytest.mark.parametrize("job", ["train", "evaluate", "infer"])
def test_help_has_every_setting_once_with_its_value(job: str, started: list[list[str]]) -> None:
    text = fairlung(job, "--help")
    configs = {"train": ["train"], "evaluate": ["train", "evaluate"], "infer": ["inference"]}[job]
    assert text.endswith(fairlung("settings", *configs))
    assert f"fairlung {job}" in text.splitlines()[0] and not started


def test_help_is_of_the_overlays_too() -> None:
    assert "--gamma 2" in fairlung("train", "-c", "systems/focal", "--help")
    assert "--gamma" not in fairlung("train", "--help")


def test_a_value_may_begin_with_one_dash() -> None:
    assert asked(["--weight_decay", "-1", "--columns=a=b"]).settings == ["--weight_decay=-1", "--columns=a=b"]
    with pytest.raises(CommandLineError):
        asked(["-1"])


# ---- the bundle ------------------------------------------------------------------------------------------------------
def test_its_folder_alone_on_a_line(bundle_dir: Path) -> None:
    assert fairlung("bundle") == f"{bundle_dir}\n"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    said = {"settings": SMALL_SETTINGS | {"network": "R3D18Classifier"}, "training": {"run": "r7"}}
    torch.save({"model": {"weight": torch.arange(4.0)}, **said}, tmp_path / "best.pt")
    return tmp_path / "best.pt"


@pytest.mark.filterwarnings("ignore:No hash value")
def test_an_archive_is_what_monai_downloads(checkpoint: Path, bundle_dir: Path, tmp_path: Path) -> None:
    from monai.bundle import download, load

    assert "wrote" in fairlung("bundle", "--zip", str(tmp_path), "--weights", str(checkpoint))
    archive = tmp_path / "fair_lung_ct_v0.1.0.zip"
    download("fair_lung_ct", url=archive.as_uri(), bundle_dir=str(tmp_path / "zoo"), progress=False)
    there = tmp_path / "zoo" / "fair_lung_ct"
    for path in bundle_dir.rglob("*.yaml"):
        assert (there / path.relative_to(bundle_dir)).read_bytes() == path.read_bytes()
    assert {path.name for path in there.iterdir()} == {"LICENSE", "configs", "docs", "models"}
    assert same_checkpoint(there / "models" / "model.pt", checkpoint)
    network: Any = torch.nn.Module()
    network.weight = torch.nn.Parameter(torch.zeros(4))
    load("fair_lung_ct", model=network, bundle_dir=str(tmp_path / "zoo"), device="cpu")
    assert network.weight.tolist() == [0, 1, 2, 3]
    image = json.loads((there / "configs" / "metadata.json").read_text())["network_data_format"]["inputs"]["image"]
    assert image["spatial_shape"] == [SMALL_SETTINGS[name] for name in ("num_slices", "crop_size", "crop_size")]
    assert f"{archive} is there already" in fairlung("bundle", "--zip", str(tmp_path), code=1).replace("\n", "")


def test_an_archive_is_the_same_each_time(tmp_path: Path) -> None:
    for name in "ab":
        fairlung("bundle", "--zip", str(tmp_path / name))
    first, second = (tmp_path / name / "fair_lung_ct_v0.1.0.zip" for name in "ab")
    assert first.read_bytes() == second.read_bytes()
    with zipfile.ZipFile(first) as archive:
        assert not [name for name in archive.namelist() if name.endswith(".pt")]


def test_weights_that_lie_elsewhere(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MONAI's download_large_files brings them, held to their digest."""
    from monai.bundle import download_large_files

    (tmp_path / "host").mkdir()
    url = (tmp_path / "host" / "model.pt").as_uri()
    fairlung("bundle", "--zip", str(tmp_path / "z"), "--weights", str(checkpoint), "--weights-url", url)
    with zipfile.ZipFile(tmp_path / "z" / "fair_lung_ct_v0.1.0.zip") as archive:
        archive.extractall(tmp_path)
    there = tmp_path / "fair_lung_ct"
    assert not (there / "models" / "model.pt").exists()
    weights = tmp_path / "z" / "fair_lung_ct_v0.1.0.pt"
    (entry,) = ConfigParser.load_config_file(there / "large_files.yml")["large_files"]
    assert entry["path"] == "models/model.pt" and entry["url"] == url
    assert entry["hash_val"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    weights.rename(tmp_path / "host" / "model.pt")
    download_large_files(str(there))
    assert same_checkpoint(there / "models" / "model.pt", checkpoint)


def test_an_archive_of_weights_that_inference_does_not_run(checkpoint: Path, tmp_path: Path) -> None:
    content = torch.load(checkpoint, weights_only=True)
    torch.save(content | {"settings": content["settings"] | {"network": "I3D"}}, checkpoint)
    said = fairlung("bundle", "--zip", str(tmp_path / "z"), "--weights", str(checkpoint), code=1)
    assert "holds a I3D" in said
    torch.save(content["model"], checkpoint)
    assert "holds weights alone" in fairlung(
        "bundle", "--zip", str(tmp_path / "z"), "--weights", str(checkpoint), code=1
    )
    said = fairlung("bundle", "--zip", str(tmp_path / "z"), "--weights-url", "https://a.org/b", code=1)
    assert "name them too, with --weights" in said
    assert list((tmp_path / "z").iterdir()) == []


def test_the_metadata_of_other_classes(checkpoint: Path, tmp_path: Path) -> None:
    content = torch.load(checkpoint, weights_only=True)
    torch.save(content | {"settings": content["settings"] | {"class_names": CLASSES[:2]}}, checkpoint)
    fairlung("bundle", "--zip", str(tmp_path / "z"), "--weights", str(checkpoint))
    with zipfile.ZipFile(tmp_path / "z" / "fair_lung_ct_v0.1.0.zip") as archive:
        metadata = json.loads(archive.read("fair_lung_ct/configs/metadata.json"))
    answer = metadata["network_data_format"]["outputs"]["pred"]
    assert answer["num_channels"] == 2 and answer["channel_def"] == {"0": CLASSES[0], "1": CLASSES[1]}
