"""The bundle's folder: found beside the package, held to the version, its configs by short names, copied whole."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fairlung.pipeline import __version__
from fairlung.pipeline.common import bundle
from fairlung.pipeline.common.bundle import (
    METADATA,
    BundleError,
    bundle_folder,
    check_version,
    config_file,
    copy_bundle,
)


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    copy_bundle(bundle_folder(), tmp_path / "mine")
    return tmp_path / "mine"


def test_the_bundle_is_the_one_beside_the_package(bundle_dir: Path, mine: Path) -> None:
    assert bundle_folder() == bundle_dir and bundle_folder(str(mine)) == mine
    assert json.loads((bundle_dir / METADATA).read_text())["required_packages_version"]["fairlung"] == __version__


def test_a_copy_is_whole_and_has_no_models(bundle_dir: Path, mine: Path, tmp_path: Path) -> None:
    (mine / "models" / "model.pt").write_bytes(b"weights")
    (mine / "configs" / "__pycache__").mkdir()
    (mine / "configs" / "__pycache__" / "a.pyc").write_bytes(b"code")
    copy_bundle(mine, tmp_path / "again")
    kept = {path.relative_to(bundle_dir) for part in ("configs", "docs") for path in (bundle_dir / part).rglob("*.*")}
    copied = {path.relative_to(tmp_path / "again") for path in (tmp_path / "again").rglob("*") if path.is_file()}
    assert copied == {path for path in kept if path.parts[-2] != "__pycache__"} | {
        Path("LICENSE"),
        Path("models/README.md"),
    }
    assert (tmp_path / "again" / "LICENSE").read_bytes() == (bundle_dir / "LICENSE").read_bytes()


@pytest.mark.parametrize("there", ["a file in it", "a file of that name"])
def test_a_copy_replaces_nothing(there: str, bundle_dir: Path, tmp_path: Path) -> None:
    held = tmp_path / "mine" / "notes.txt" if there == "a file in it" else tmp_path / "mine"
    held.parent.mkdir(exist_ok=True)
    held.write_text("mine")
    with pytest.raises(BundleError, match="mine holds something already; name a new folder"):
        copy_bundle(bundle_dir, tmp_path / "mine")
    assert held.read_text() == "mine"
    (tmp_path / "empty").mkdir()
    copy_bundle(bundle_dir, tmp_path / "empty")


@pytest.mark.fault(
    "words", "a bundle folder of another version", before="a stack, or a setting that nothing reads",
    now="one line with both versions",
)  # fmt: skip
@pytest.mark.parametrize(
    ("needs", "said"),
    [
        ("99.0.1", rf"mine is a bundle of fairlung 99.0.1, this is fairlung {__version__}; .*--copy DIR"),
        (None, r"mine is a bundle of fairlung 0.1 or of others: .*metadata.json names no fairlung"),
    ],
)
def test_a_bundle_of_another_version(mine: Path, needs: str | None, said: str) -> None:
    metadata = json.loads((mine / METADATA).read_text())
    metadata["required_packages_version"] |= {"fairlung": needs}
    (mine / METADATA).write_text(json.dumps(metadata))
    with pytest.raises(BundleError, match=said):
        bundle_folder(mine)
    if needs is None:  # inference.yaml of 0.1 still answers
        check_version(mine)
    else:
        with pytest.raises(BundleError, match=said):
            check_version(mine)


def test_another_patch_version_fits(mine: Path) -> None:
    metadata = json.loads((mine / METADATA).read_text())
    metadata["required_packages_version"]["fairlung"] = ".".join([*__version__.split(".")[:2], "99"])
    (mine / METADATA).write_text(json.dumps(metadata))
    assert bundle_folder(mine) == mine


@pytest.mark.parametrize(("content", "said"), [("{", "cannot be read"), ("[]", "holds no entries")])
def test_a_damaged_metadata_json(mine: Path, content: str, said: str) -> None:
    (mine / METADATA).write_text(content)
    with pytest.raises(BundleError, match=said):
        bundle_folder(mine)


def test_a_folder_that_is_no_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BundleError, match=r"is no bundle: it has no configs/metadata.json; .*--bundle-root"):
        bundle_folder(tmp_path)
    monkeypatch.setattr(bundle, "BUNDLE", tmp_path)  # an installation without its data files
    with pytest.raises(BundleError, match="fairlung is not installed as a whole: .*; install it anew"):
        bundle_folder()


def test_configs_have_short_names(bundle_dir: Path, tmp_path: Path) -> None:
    assert config_file(bundle_dir, "systems/ce") == bundle_dir / "configs" / "systems" / "ce.yaml"
    (tmp_path / "my.yaml").write_text("alpha: 0.7")
    assert config_file(bundle_dir, str(tmp_path / "my.yaml")) == tmp_path / "my.yaml"
    with pytest.raises(BundleError, match=r"no config 'systems/fokal' \(did you mean 'systems/focal'\?\)"):
        config_file(bundle_dir, "systems/fokal")
    with pytest.raises(BundleError, match="there is no config .*none.yaml"):
        config_file(bundle_dir, str(tmp_path / "none.yaml"))
