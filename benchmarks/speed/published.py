"""The authors' code, imported from the user's own checkout as it is; what stands in the way is mended from outside.

- ``train.py`` imports its neighbours as ``src.*``, ``evaluate.py`` by their plain names: both find the same modules.
- The network wants to download Kinetics-400 weights; it is built without, and gets the weights of ours.
- scikit-learn and matplotlib are only used for what is printed and drawn at the end: where they are missing, names
  stand in for them that fail when they are used.
"""

from __future__ import annotations

import importlib
import sys
import types
import warnings
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torchvision.models.video import r3d_18

from fairlung.pipeline.common.imports import standing_in

PACKAGE = "src"
PLAIN = ("dataset", "model", "losses")
NEEDED = ("dataset.py", "model.py", "losses.py", "train.py", "evaluate.py")
OPTIONAL = ("sklearn.metrics", "sklearn.preprocessing", "matplotlib.pyplot")


class PublishedCode:
    """The modules of a checkout.

    Args:
        folder: the checkout.

    Raises:
        FileNotFoundError: it does not hold the published files.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder).resolve()
        missing = [name for name in NEEDED if not (self.folder / name).is_file()]
        if missing:
            raise FileNotFoundError(
                f"--published {folder}: no {', '.join(missing)}; it must be a checkout of the authors' code"
            )
        package = types.ModuleType(PACKAGE)
        package.__path__ = [str(self.folder)]
        sys.modules[PACKAGE] = package
        for name in PLAIN:
            sys.modules.pop(f"{PACKAGE}.{name}", None)
        self.dataset, self.model, self.losses = (importlib.import_module(f"{PACKAGE}.{name}") for name in PLAIN)
        self.model.r3d_18 = partial(_without_weights, r3d_18)

    @property
    def train(self) -> Any:
        return self._script("train")

    @property
    def evaluate(self) -> Any:
        return self._script("evaluate")

    def _script(self, name: str) -> Any:
        with _optional(), _as_plain_names({plain: getattr(self, plain) for plain in PLAIN}):
            return importlib.import_module(f"{PACKAGE}.{name}")

    def network(self, ours: nn.Module) -> nn.Module:
        """Their network with the weights of ours."""
        network = self.model.LungDiagnosisModel3D(num_classes=4)
        network.load_state_dict(translated(ours.state_dict()))
        return network

    def scans(self, folders: list[Path], train: bool = False, depth: int = 64) -> Any:
        """Their data set of scan folders, all of class 0, men."""
        with _quiet():
            data = self.dataset.LungCTDataset([], target_depth=depth, is_train=train)
        data.samples = [(str(folder), 0, 1) for folder in folders]
        return data


def translated(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A state dict of ours under the names of theirs."""
    places = {"stem": "features.0", **{f"layer{k}": f"features.{k}" for k in range(1, 5)}, "fc": "fc"}
    found = {}
    for name, value in state.items():
        _, part, rest = name.split(".", 2)
        found[f"{places[part]}.{rest}"] = value
    return found


def _without_weights(build: Any, weights: Any = None) -> nn.Module:
    return build(weights=None)


class _Absent(types.ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)

        def fail(*args: Any, **kwargs: Any) -> Any:
            raise RuntimeError(f"{self.__name__} is not installed, {name} cannot be used")

        return fail


@contextmanager
def _optional() -> Any:
    stood_in = []
    for name in OPTIONAL:
        try:
            importlib.import_module(name)
        except ImportError:
            for part in (name.partition(".")[0], name):
                if part not in sys.modules:
                    sys.modules[part] = _Absent(part)
                    stood_in.append(part)
    try:
        yield
    finally:
        for name in stood_in:
            sys.modules.pop(name, None)


@contextmanager
def _as_plain_names(modules: dict[str, Any]) -> Any:
    with standing_in(modules), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def _quiet() -> Any:
    from contextlib import redirect_stdout
    from io import StringIO

    with redirect_stdout(StringIO()):
        yield
