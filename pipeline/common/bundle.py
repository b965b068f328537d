"""The bundle's folder: where it lies, whether it fits this fairlung, what its configs are called, a copy of it."""

import json
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from .. import __version__
from .errors import UserError
from .text import did_you_mean

_BESIDE = Path(__file__).resolve().parents[2]  # bundles/ and studies/ lie beside pipeline/, in a clone and installed
BUNDLE = _BESIDE / "bundles" / "fair_lung_ct"
STUDIES = _BESIDE / "studies"
INSTALLED = _BESIDE.name == "fairlung" and _BESIDE.parent.name in ("site-packages", "dist-packages")
METADATA = "configs/metadata.json"


class BundleError(UserError, ValueError):
    """A folder is no bundle, is one of another fairlung, or has no such config or setting; says what there is."""


def bundle_folder(given: str | Path | None = None) -> Path:
    """The folder of a bundle that this fairlung runs; None is the one that came with it.

    BundleError: it has no metadata.json, or is of another version.
    """
    root = BUNDLE if given is None else Path(given)
    if not (root / METADATA).is_file():
        if given is None:
            raise BundleError(f"fairlung is not installed as a whole: it has no {root / METADATA}; install it anew")
        raise BundleError(f"{root} is no bundle: it has no {METADATA}; name the bundle's folder with --bundle-root")
    check_version(root, required=True)
    return root


def check_version(root: str | Path, required: bool = False) -> None:
    """BundleError when a bundle is of a fairlung with another major or minor version.

    Its metadata.json says so under ``required_packages_version``. One that does not is of 0.1, or no bundle of ours:
    an error where it is ``required``.
    """
    file = Path(root, METADATA)
    found = _metadata(root).get("required_packages_version", {}).get("fairlung") if file.is_file() else None
    if found is None and required:
        what = f"{root} is a bundle of fairlung 0.1 or of others: its {METADATA} names no fairlung that it needs"
    elif found is not None and str(found).split(".")[:2] != __version__.split(".")[:2]:
        what = f"{root} is a bundle of fairlung {found}, this is fairlung {__version__}"
    else:
        return
    raise BundleError(f"{what}; `fairlung bundle --copy DIR` gives one that fits, for overlays of your own")


def bundle_version(root: str | Path) -> str:
    """The version that a bundle says it has."""
    return str(_metadata(root).get("version", ""))


def _metadata(root: str | Path) -> dict[str, Any]:
    try:
        content = json.loads(Path(root, METADATA).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BundleError(f"{Path(root, METADATA)} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise BundleError(f"{Path(root, METADATA)} holds no entries")
    return content


def config_file(root: Path, name: str) -> Path:
    """A config of a bundle by its short name, such as ``systems/ce``, or the path of any other config file."""
    if Path(name).suffix in (".yaml", ".yml", ".json"):
        if not Path(name).is_file():
            raise BundleError(f"there is no config {name}")
        return Path(name)
    configs = root / "configs"
    file = configs / f"{name}.yaml"
    if not file.is_file():
        there = sorted(path.relative_to(configs).with_suffix("").as_posix() for path in configs.rglob("*.yaml"))
        raise BundleError(f"{configs} has no config {name!r}{did_you_mean(name, there)}; it has {', '.join(there)}")
    return file


def merged(files: Iterable[Path]) -> dict[str, Any]:
    """The top-level entries of configs, the later file's where two have one."""
    import yaml

    entries: dict[str, Any] = {}
    for file in files:
        entries |= yaml.safe_load(file.read_text())
    return entries


def bundle_files(root: Path) -> Iterator[Path]:
    """The files of a bundle, sorted, without its models and what programs leave behind."""
    for path in sorted(root.rglob("*")):
        parts = path.relative_to(root).parts
        hidden = any(part.startswith(".") or part in ("__pycache__", "eval") for part in parts)
        if path.is_file() and not hidden and (parts[0] != "models" or path.suffix == ".md"):
            yield path


def copy_bundle(root: Path, folder: Path) -> None:
    """Copy a bundle, without its models, into a new or empty folder; BundleError when it holds something."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise BundleError(f"{folder} holds something already; name a new folder")
    for path in bundle_files(root):
        target = folder / path.relative_to(root)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
