"""Checkpoints carry the settings that a network's input and output depend on, and refuse to be loaded under others.

A run's checkpoint is ``{"model": weights, "settings": ..., "training": ...}``. Published weights (``model.pt``) are a
plain state dict, as ``monai.bundle.load`` and the model zoo expect; what a checkpoint says beside its weights then
stands in the state dict's own ``_metadata``, where torch keeps the versions of its layers and reads no other entry.
"""

from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml

from ..common.errors import UserError
from ..common.files import replacing, why_unreadable

# settings of train.yaml that give a checkpoint its meaning
MODEL_SETTINGS = (
    "class_names", "group_by", "group_names", "age_bands", "window", "trim_fraction", "num_slices", "image_size",
    "fast_decode", "crop_size",
)  # fmt: skip
PUBLISHED = "fairlung"  # entry of a state dict's _metadata: settings and training of published weights
TRAINING = "training"  # beside the settings in a checkpoint: what it says of its training, compared with nothing
NETWORK = "network"  # saved beside them: the class of the network, which a config says with network_def
INFERENCE_NETWORK = "R3D18Classifier"  # the one that inference.yaml runs
FIRST_SETTINGS = {"age_bands": None, "fast_decode": False, NETWORK: "R3D18Classifier"}  # where none were saved yet

_OTHER_NETWORK = (
    "\nuse the configs of its own network, such as ['train.yaml','systems/cnn_rnn.yaml','evaluate.yaml'] or "
    f"['inference.yaml','networks/i3d.yaml']; inference.yaml without an overlay runs {INFERENCE_NETWORK}"
)


class CheckpointError(UserError, ValueError):
    """A checkpoint is missing, is none of this bundle, or was made under other settings; a training would be lost."""


class ModelSettings:
    """The settings saved beside the weights; loading compares instead of overwriting.

    Has the ``state_dict`` interface of whatever MONAI's ``CheckpointSaver`` and ``CheckpointLoader`` handle.
    """

    def __init__(self, **settings: Any) -> None:
        names = (*MODEL_SETTINGS, NETWORK)
        missing, unknown = sorted(set(names) - set(settings)), sorted(set(settings) - set(names))
        if missing or unknown:
            raise ValueError(f"model settings: missing {missing}, unknown {unknown}")
        self.settings = {name: _plain(settings[name]) for name in names}

    def state_dict(self) -> dict[str, Any]:
        return dict(self.settings)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        state = {**FIRST_SETTINGS, **state}
        differing = {name: run for name, run in self.settings.items() if _plain(state.get(name)) != run}
        if differing:
            listed = "\n  ".join(f"{n}: checkpoint {state.get(n)!r}, run {run!r}" for n, run in differing.items())
            other = _OTHER_NETWORK if state[NETWORK] != self.settings[NETWORK] else ""
            raise CheckpointError(f"the checkpoint was trained with other settings:\n  {listed}{other}")


def _plain(value: Any) -> Any:
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def require_checkpoint(path: str | Path) -> None:
    """CheckpointError, with what to do, when there is no checkpoint, or one of a training that diverged."""
    if not Path(path).is_file():
        raise CheckpointError(f"no checkpoint at {path}: train first (train.yaml writes it), or pass --checkpoint FILE")
    try:
        weights = checkpoint_content(path)["model"]
    except CheckpointError:  # what it is instead is said where its settings are read
        return
    if bad := [name for name, value in weights.items() if not torch.isfinite(value).all()]:
        raise CheckpointError(f"{path} holds weights that are not finite ({bad[0]}): its training diverged, train anew")


def model_settings(checkpoint: str | Path, train_config: str | Path) -> dict[str, Any]:
    """The settings a checkpoint was trained with: :data:`MODEL_SETTINGS`, and of a checkpoint also ``network``.

    Where there is no checkpoint yet, the values of ``train_config``, the path of train.yaml, describe the untrained
    network for tools that only build it. A file that is not a checkpoint of this bundle is a CheckpointError.
    """
    if not Path(checkpoint).is_file():
        config = yaml.safe_load(Path(train_config).read_text())
        return {name: config[name] for name in MODEL_SETTINGS}
    return {**FIRST_SETTINGS, **checkpoint_content(checkpoint)["settings"]}


def training_record(checkpoint: str | Path) -> dict[str, Any]:
    """What a checkpoint says of its training (:class:`~.TrainingRecord`); nothing where it is of 0.1, or not there."""
    return dict(checkpoint_content(checkpoint).get(TRAINING) or {}) if Path(checkpoint).is_file() else {}


def said_of(record: Mapping[str, Any]) -> str:
    """A :func:`training_record` in a line: run, epoch, date, MLflow run and the scores it had then."""
    if "run" not in record:
        return "it does not say of which run"
    said = [f"epoch {record.get('epoch')}", str(record.get("date"))]
    said += [f"{name} {value:.4f}" for name, value in record.get("metrics", {}).items()]
    said += [f"MLflow run {record['mlflow_run']}"] if record.get("mlflow_run") else []
    return f"run {record['run']} ({', '.join(said)})"


def checkpoint_content(checkpoint: str | Path) -> dict[str, Any]:
    """What a file says: ``model`` (its weights), ``settings``, and mostly ``training``; of published weights too.

    CheckpointError: it cannot be read, is none of this bundle, or holds weights that nothing says the settings of.
    """
    try:
        content = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch raises many kinds for files that are no checkpoint
        raise CheckpointError(
            f"{checkpoint} cannot be read as a checkpoint: {why_unreadable(checkpoint, error)}"
        ) from error
    if isinstance(content, dict) and {"model", "settings"} <= set(content):
        return content
    if not isinstance(content, dict) or not content or not all(map(torch.is_tensor, content.values())):
        raise CheckpointError(
            f"{checkpoint} is not a checkpoint of this bundle: it holds no 'model' with its 'settings'"
        )
    said = getattr(content, "_metadata", {}).get(PUBLISHED)
    if not isinstance(said, Mapping) or "settings" not in said:
        raise CheckpointError(
            f"{checkpoint} holds weights alone: nothing in it says of which classes, window and sizes they are; take "
            "the run's best.pt, or the model.pt that a training or `fairlung bundle --zip` made of it"
        )
    return {"model": content, **said}


def write_weights(checkpoint: str | Path, path: str | Path) -> None:
    """Write a checkpoint as published weights: a plain state dict, with its settings and training inside it."""
    content = checkpoint_content(checkpoint)
    weights = OrderedDict(content["model"])
    versions = getattr(content["model"], "_metadata", {})
    said = {name: content[name] for name in ("settings", TRAINING) if name in content}
    weights._metadata = {**versions, PUBLISHED: said}  # type: ignore[attr-defined]
    with replacing(Path(path)) as part:
        torch.save(weights, part)


def same_checkpoint(path: str | Path, other: str | Path) -> bool:
    """Whether two files hold the same weights and say the same of them, as a checkpoint or as published weights."""
    first, second = checkpoint_content(path), checkpoint_content(other)
    if first.keys() != second.keys() or first["model"].keys() != second["model"].keys():
        return False
    said = all(first[name] == second[name] for name in first.keys() - {"model"})
    return said and all(torch.equal(value, second["model"][name]) for name, value in first["model"].items())
