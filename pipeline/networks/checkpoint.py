"""Checkpoints carry the settings that a network's input and output depend on, and refuse to be loaded under others."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml

from ..common.errors import UserError
from ..common.files import why_unreadable

# settings of train.yaml that give a checkpoint its meaning
MODEL_SETTINGS = (
    "class_names", "group_by", "group_names", "age_bands", "window", "trim_fraction", "num_slices", "image_size",
    "fast_decode", "crop_size",
)  # fmt: skip
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
        weights = torch.load(path, map_location="cpu", weights_only=True, mmap=True)["model"]
    except Exception:  # what it is instead is said where its settings are read
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
    return {**FIRST_SETTINGS, **_content(checkpoint)["settings"]}


def training_record(checkpoint: str | Path) -> dict[str, Any]:
    """What a checkpoint says of its training (:class:`~.TrainingRecord`); nothing where it is of 0.1, or not there."""
    return dict(_content(checkpoint).get(TRAINING) or {}) if Path(checkpoint).is_file() else {}


def said_of(record: Mapping[str, Any]) -> str:
    """A :func:`training_record` in a line: run, epoch, date, MLflow run and the scores it had then."""
    if "run" not in record:
        return "it does not say of which run"
    said = [f"epoch {record.get('epoch')}", str(record.get("date"))]
    said += [f"{name} {value:.4f}" for name, value in record.get("metrics", {}).items()]
    said += [f"MLflow run {record['mlflow_run']}"] if record.get("mlflow_run") else []
    return f"run {record['run']} ({', '.join(said)})"


def _content(checkpoint: str | Path) -> dict[str, Any]:
    try:
        content = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch raises many kinds for files that are no checkpoint
        raise CheckpointError(
            f"{checkpoint} cannot be read as a checkpoint: {why_unreadable(checkpoint, error)}"
        ) from error
    if not isinstance(content, dict) or not {"model", "settings"} <= set(content):
        raise CheckpointError(
            f"{checkpoint} is not a checkpoint of this bundle: it holds no 'model' with its 'settings'"
        )
    return content
