"""The features of the judged scans, saved by an evaluation: a row of numbers a scan, and no image."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from numpy.typing import NDArray
from torch import Tensor, nn

from ..common import run_folder
from ..common.distributed import is_primary, world_size
from ..common.errors import UserError
from ..common.files import encoded, json_or_nothing, replacing
from ..common.references import references
from ..data.cohort import Cohort
from ..inference.about_scans import AboutScans
from ..networks.catalogue import CATALOGUE, OF_NETWORK
from ..networks.checkpoint import said_of, training_record
from ..networks.frozen import FrozenHead, build_network
from ..networks.weights import weights_file

AIR_HU, BODY_HU = -950, -150  # below is air outside the lungs, above is tissue of the body
PERCENTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
IMAGE_STATISTICS = ("mean", "sd", "p05", "p25", "p50", "p75", "p95", "share_air", "share_body")


class FeatureError(UserError, ValueError):
    """Features that cannot be saved or read; says which and why."""


@dataclass(frozen=True)
class Features:
    """What is known of N scans; names are those of predictions.csv, in its order."""

    scan: NDArray[np.str_]  # [N]
    network: NDArray[np.float32]  # [N, D] of the judged network
    untrained: NDArray[np.float32]  # [N, D] of the same network before its training
    image: NDArray[np.float32]  # [N, 9] IMAGE_STATISTICS of the network's input
    label: NDArray[np.str_]  # [N] classes
    patient_known: NDArray[np.bool_]  # [N] whether the cohort says whose the scan is
    untrained_is: str  # which weights the untrained network has
    judged: str  # which run the judged network is of
    cohort: str  # digest of the cohort: no patient of one is in two splits

    def kinds(self) -> dict[str, NDArray[np.float32]]:
        return {"network": self.network, "untrained": self.untrained, "image": self.image}


def features_of(network: nn.Module, image: Tensor) -> Tensor:
    """[N, D] float32: what the ``torch.nn.Linear`` layer that is called last is given for volumes [N, 1, D, H, W].

    Dimensions between the first and the last, such as time, are averaged. FeatureError where no such layer is called.
    """
    from monai.networks.utils import eval_mode

    last: dict[str, Tensor] = {}

    def keep(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        last["input"] = arguments[0]

    hooks = [part.register_forward_pre_hook(keep) for part in network.modules() if isinstance(part, nn.Linear)]
    try:
        with eval_mode(network):
            network(image)
    finally:
        for hook in hooks:
            hook.remove()
    if not last:
        raise FeatureError(
            f"save_features: {type(network).__name__} calls no torch.nn.Linear layer, so has no features"
        )
    found = last["input"].float()
    return found.reshape(len(image), -1, found.shape[-1]).mean(1)


def image_statistics(image: Tensor, window: Sequence[float]) -> Tensor:
    """[N, 9] :data:`IMAGE_STATISTICS` of volumes [N, 1, D, H, W] in [0, 1], which stand for the HU of ``window``.

    Padding, of negative values, is left out.
    """
    low, high = window
    air, body = ((hu - low) / (high - low) for hu in (AIR_HU, BODY_HU))
    rows = []
    for volume in image.float():
        grey = volume[volume >= 0].sort().values  # torch.quantile takes no more than 16 million values
        at = [grey[round(share * (len(grey) - 1))] for share in PERCENTILES]
        rows.append(
            torch.stack([grey.mean(), grey.std(), *at, (grey < air).float().mean(), (grey > body).float().mean()])
        )
    return torch.stack(rows)


class UntrainedNetwork:
    """Builds the judged network as it was before its training: with the run's seed and, if at hand, published weights.

    Args:
        config: the running config, of which ``network_def`` is built anew.
        checkpoint: the judged one; settings.json of its training says the seed and the weights.
        output_dir: of the evaluation.
        seed: of the evaluation, which stands in where the training's is not known.
    """

    def __init__(self, config: Mapping[str, Any], checkpoint: str | Path, output_dir: str | Path, seed: int) -> None:
        folder = run_folder.training_dir(checkpoint, Path(output_dir))
        known = json_or_nothing(folder / run_folder.SETTINGS) if folder else {}
        self.config, self.seed, self.known = dict(config), int(known.get("seed", seed)), "seed" in known
        reads = any(entry.startswith("initial_weights") for entry in references(config.get("network_def", {})))
        self.pretrained, self.weights = bool(reads and known.get("pretrained")), known.get("weights")

    def build(self) -> tuple[nn.Module, str]:
        """The network on the CPU, and which weights it has."""
        if self.pretrained and self._at_hand():
            with suppress(Exception):  # a damaged file, or one of another network: random weights are said to be so
                built = build_network(self.config, self.seed, pretrained=True, weights=self.weights)
                return built, f"the published weights that the training began with, the others of seed {self.seed}"
        of = f"random weights of seed {self.seed}"
        if self.pretrained:
            of += ", as the training's published ones are not at hand"
        elif self.known:
            of = f"the training's initial weights, of seed {self.seed}"
        return build_network(self.config, self.seed, pretrained=False, weights=None), of

    def _at_hand(self) -> bool:
        """Whether the published weights are on this machine: nothing is downloaded here."""
        network = str(self.config["network_def"].get("_target_", "")).rpartition(".")[2]
        named = OF_NETWORK.get(network) if self.weights is None else CATALOGUE.get(self.weights)
        path = weights_file(named) if named else Path(self.weights or "")
        return path.is_file()


class FeatureWriter:
    """Handler of an evaluation: writes features.npz beside the table of predictions; without ``save`` removes old ones.

    It holds :class:`Features`, with ``image_names``. The network is run once more for it, and the untrained one too, in
    float32. One process and one checkpoint alone: FeatureError.
    """

    def __init__(
        self, predictions: str | Path, network: nn.Module, untrained: UntrainedNetwork, window: Sequence[float],
        checkpoints: Sequence[str], cohort: Cohort, about: AboutScans, save: bool = False,
    ) -> None:  # fmt: skip
        self.path = Path(predictions).with_name(run_folder.FEATURES)
        self.network, self.untrained, self.window, self.save = network, untrained, tuple(window), save
        self.checkpoint, self.cohort, self.about = checkpoints[0], cohort, about
        if save and len(checkpoints) > 1:
            raise FeatureError(f"save_features is for one checkpoint, and {len(checkpoints)} answer together here")
        if save and world_size() > 1:
            raise FeatureError(f"save_features is for one process, and {world_size()} run")
        if save and any(isinstance(part, FrozenHead) for part in network.modules()):
            raise FeatureError("save_features is for a network of volumes; a head on frozen features makes none anew")
        if save and not any(isinstance(part, nn.Linear) for part in network.modules()):
            raise FeatureError(f"save_features: {type(network).__name__} has no torch.nn.Linear layer, so no features")

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.EPOCH_STARTED, self._start)
        if self.save:
            engine.add_event_handler(Events.ITERATION_COMPLETED, self._add)
            engine.add_event_handler(Events.EPOCH_COMPLETED, self._write)

    def _start(self, engine: Engine) -> None:
        if is_primary():  # those of earlier predictions
            for name in (run_folder.FEATURES, run_folder.PROBE, run_folder.DUPLICATES):
                self.path.with_name(name).unlink(missing_ok=True)
        if self.save:
            self._begin()

    def _begin(self) -> None:
        self._scans: list[str] = []
        self._labels: list[str] = []
        self._rows: list[tuple[Tensor, ...]] = []
        before, self._untrained_is = self.untrained.build()
        self._before = before.to(next(self.network.parameters()).device)

    def _add(self, engine: Engine) -> None:
        self._see(engine.state.output["image"], engine.state.batch)

    def _see(self, image: Tensor, batch: Mapping[str, Any]) -> None:
        found = features_of(self.network, image), features_of(self._before, image), image_statistics(image, self.window)
        self._rows.append(tuple(part.cpu() for part in found))
        self._scans += [encoded(scan).decode() for scan in batch["scan"]]
        self._labels += [self.cohort.class_names[int(label)] for label in batch["label"]]

    def _write(self, engine: Engine) -> None:
        self._end(self.path)

    def _end(self, path: Path) -> None:
        network, untrained, image = (torch.cat(part).numpy() for part in zip(*self._rows, strict=True))
        known = [self.about.knows_patient(scan) for scan in self._scans]
        content = {"scan": np.array(self._scans), "features": network, "untrained": untrained, "image": image}
        content |= {"label": np.array(self._labels), "patient_known": np.array(known)}
        about = {"untrained_is": self._untrained_is, "judged": self.judged(), "cohort": self.cohort.digest}
        texts = {name: np.array(text) for name, text in about.items()}
        with replacing(path) as part, part.open("wb") as file:
            np.savez_compressed(file, allow_pickle=False, image_names=np.array(IMAGE_STATISTICS), **content, **texts)
        del self._rows, self._before

    def judged(self) -> str:
        """Which run the judged network is of, in words."""
        return said_of(training_record(self.checkpoint))

    def write_others(self, path: Path, batches: Iterable[tuple[Tensor, Mapping[str, Any]]]) -> None:
        """The features of other scans, as images and batches, into ``path``; once the network has its weights."""
        self._begin()
        for image, batch in batches:
            self._see(image, batch)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._end(path)


def features_of_split(output_dir: str | Path, split: str, judged: str) -> Features:
    """Those of a split: of its own evaluation or of a search among it, those of the network ``judged`` first.

    FeatureError where there are none, or the only ones are damaged.
    """
    places = [Path(output_dir, split, folder, run_folder.FEATURES) for folder in ("evaluation", "")]
    found = [load_features(path) for path in [path for path in places if path.is_file()] or places[:1]]
    return next((one for one in found if one.judged == judged), found[0])


def load_features(path: str | Path) -> Features:
    """The content of a features.npz; FeatureError where there is none, or one that is damaged."""
    try:
        with Path(path).open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            columns = (file[name] for name in ("scan", "features", "untrained", "image", "label", "patient_known"))
            found = Features(*columns, *(str(file[name]) for name in ("untrained_is", "judged", "cohort")))
    except FileNotFoundError:
        raise FeatureError(f"no {path}: evaluate with --save_features True") from None
    except Exception as error:  # numpy and zipfile raise many kinds
        raise FeatureError(f"{path} cannot be read as features: {error}") from error
    for name in ("label", "patient_known"):
        if getattr(found, name).shape != found.scan.shape:
            raise FeatureError(f"{path}: {name} has the shape {getattr(found, name).shape} for {len(found.scan)} scans")
    for name, values in found.kinds().items():
        if values.ndim != 2 or len(values) != len(found.scan):
            raise FeatureError(f"{path}: {name} has the shape {values.shape} for {len(found.scan)} scans")
        if not np.isfinite(values).all():
            scan = found.scan[np.flatnonzero(~np.isfinite(values).all(1))[0]]
            raise FeatureError(f"{path}: {name} of {scan} holds values that are not finite")
    return found
