"""A trained classifier in Python: scans in, a table out, by the bundle's inference.yaml; or its network alone."""

import inspect
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from ignite.engine import Engine, Events
from monai.bundle import ConfigParser
from torch import Tensor, nn

from fairlung.transforms.addresses import shown
from fairlung.transforms.scan import ScanError

from .. import networks
from ..common.bundle import BUNDLE, BundleError, check_version
from ..common.text import one_line
from ..data.intake_records import failure_reason, record_of
from ..networks.checkpoint import NETWORK, CheckpointError, ModelSettings, model_settings
from .members import checkpoint_paths, load_members, require_checkpoints
from .prediction_writer import PredictionWriter

logger = logging.getLogger(__name__)


# classes of fairlung.pipeline.networks that load_model builds by their name
NETWORKS = ("CNNRNNClassifier", "CTResNet152", "I3D", "R3D18Classifier", "RACNet", "ResNeSt50")


def load_model(checkpoint: str | Path, network: nn.Module | None = None) -> nn.Module:
    """The network of a checkpoint with its weights, on the CPU, in evaluation mode.

    It takes volumes [N, 1, D, H, W] in [0, 1], prepared as the checkpoint's settings say
    (:func:`~.networks.model_settings`), and gives logits [N, C] in the order of its ``class_names``.
    :class:`Classifier` does the preparing, too.

    Args:
        checkpoint: a file that train.yaml wrote, or published weights.
        network: an untrained one to load the weights into, where the class of the checkpoint's is not of
            :mod:`~.networks`, or was given more than the number of classes.

    Raises:
        CheckpointError: there is no such file, it is none of this bundle, its network does not fit, or it holds but a
            head on frozen features.

    Example:
        A checkpoint as train.yaml writes it, but of a network that learnt nothing:

        >>> import torch
        >>> from fairlung.pipeline import R3D18Classifier, load_model
        >>> from fairlung.pipeline.networks import model_settings
        >>> settings = model_settings("", BUNDLE / "configs" / "train.yaml") | {"network": "R3D18Classifier"}
        >>> torch.save({"model": R3D18Classifier(4).state_dict(), "settings": settings}, "model.pt")
        >>> network = load_model("model.pt")
        >>> network(torch.rand(2, 1, 8, 24, 24)).shape
        torch.Size([2, 4])
    """
    require_checkpoints([checkpoint])
    settings = model_settings(checkpoint, "")
    name = _network_name(checkpoint)
    if network is None:
        if name not in NETWORKS:
            known = ", ".join(NETWORKS)
            raise CheckpointError(f"{checkpoint} is of a {name}, none of {known}: pass network, an untrained {name}")
        kind = getattr(networks, name)
        slices = {"slices": settings["num_slices"]} if "slices" in inspect.signature(kind).parameters else {}
        network = kind(len(settings["class_names"]), **slices)
    load_members([checkpoint], network, ModelSettings(**settings))
    return network.eval()


def _network_name(checkpoint: str | Path) -> str:
    """The class of a checkpoint's network; CheckpointError of a head, which cannot answer for a scan."""
    name = str(model_settings(checkpoint, "")[NETWORK])
    if "on frozen features" in name:
        whole = "the whole network is whole.pt beside it, which a training writes unless its model_file is empty"
        raise CheckpointError(f"{checkpoint} is the {name.split(',')[0]}, and takes no scans: {whole}")
    return name


class Classifier:
    """Answers paths of scans as ``monai.bundle run inference.yaml`` does, with the same config; nothing is written.

    Args:
        checkpoint: file written by train.yaml, a pattern such as ``runs/*/models/best.pt``, or several: an ensemble. Of
            another network than inference.yaml's the bundle's overlay in ``configs/networks/`` is taken.
        bundle_root: folder of the bundle. None takes the one that came with fairlung.
        settings: others of inference.yaml, such as ``flip_tta=True``, ``num_workers=4``, or ``network_def`` of a
            network of your own. Without workers scans are read in this process, and a scan that crashes its reader ends
            it.

    Raises:
        BundleError: no bundle, one of another version, or a setting that inference.yaml does not have.
        CheckpointError: a checkpoint is missing, is none of this bundle, or differs from the others.

    Example:
        A checkpoint as train.yaml writes it, but of a network that learnt nothing, and a folder of slices:

        >>> import numpy as np, torch, yaml
        >>> from PIL import Image
        >>> from fairlung.pipeline import Classifier, R3D18Classifier
        >>> from fairlung.pipeline.networks import model_settings
        >>> settings = model_settings("", BUNDLE / "configs" / "train.yaml")
        >>> settings |= {"num_slices": 8, "image_size": 32, "crop_size": 24, "network": "R3D18Classifier"}
        >>> settings["group_names"] = ["male", "female"]
        >>> torch.save({"model": R3D18Classifier(4).state_dict(), "settings": settings}, "model.pt")
        >>> Path("scan").mkdir()
        >>> for i in range(12):
        ...     Image.fromarray(np.full((64, 64), 20 * i, np.uint8)).save(f"scan/{i}.png")
        >>> table = Classifier("model.pt").predict(["scan", "nothing"])
        >>> table["status"].tolist()
        ['ok', 'failed']
        >>> float(table.loc[0, [f"prob_{name}" for name in settings["class_names"]]].sum().round(3))
        1.0

        >>> volume, record = Classifier("model.pt").read("scan")
        >>> tuple(volume.shape), record["slices_found"]
        ((1, 8, 24, 24), 12)

        A data frame keeps its columns, so that :func:`~.audit` can judge the answers:

        >>> import pandas as pd
        >>> known = pd.DataFrame({"scan": ["scan"], "label": ["normal"], "sex": ["female"]})
        >>> Classifier("model.pt").predict(known).columns[:4].tolist()
        ['scan', 'label', 'sex', 'prediction']
    """

    def __init__(
        self, checkpoint: str | Path | Sequence[str | Path], bundle_root: str | Path | None = None, **settings: Any
    ) -> None:
        root = BUNDLE if bundle_root is None else Path(bundle_root)
        file = root / "configs" / "inference.yaml"
        if not file.is_file():
            raise BundleError(f"no bundle at {root} ({file.name} is not there): pass bundle_root, the bundle's folder")
        check_version(root)
        self._config = ConfigParser.load_config_file(file)
        if unknown := settings.keys() - self._config.keys():
            raise BundleError(f"{file.name} has no setting {', '.join(sorted(unknown))}")
        given = [checkpoint] if isinstance(checkpoint, (str, Path)) else checkpoint
        # scans are read by this process: forking loader processes out of a server's threads is not safe
        self._config |= {"bundle_root": str(root), "checkpoint": [str(path) for path in given], "num_workers": 0}
        self._config |= {"pseudonyms": None}  # whoever calls knows the scans' names
        self._config |= settings
        paths = checkpoint_paths([str(path) for path in given])
        require_checkpoints(paths)
        if "network_def" not in settings:
            self._config |= _network_def(root, _network_name(paths[0]))
        parser = ConfigParser(deepcopy(self._config))
        self.network = parser.get_parsed_content("network").eval()
        load_members(paths, self.network, parser.get_parsed_content("settings"))
        self._prepare = parser.get_parsed_content("preprocessing")
        self._inferer = parser.get_parsed_content("inferer")  # once: it may compile the network, or choose what does
        self.writer: PredictionWriter = parser.get_parsed_content("predictions")  # how an answer becomes a row

    def read(self, scan: str | Path) -> tuple[Tensor, Mapping[str, Any]]:
        """A scan as ``network`` takes it, float32 [1, D, H, W] in [0, 1], and the record of how it was read.

        ScanError: it cannot be read; carries the record.
        """
        try:
            item = self._prepare({"image": os.fspath(scan)})
        except Exception as error:  # MONAI's, of the transform
            raise ScanError(failure_reason(error), dict(record_of(error) or {})) from error
        return torch.as_tensor(item["image"]), item["intake"]

    def predict(
        self, scans: pd.DataFrame | Iterable[str | Path | None] | str | Path, batch_size: int = 0
    ) -> pd.DataFrame:
        """A row a scan, in the order of the scans; may be called by several threads. Addresses lose a login.

        Args:
            scans: paths, or one, each of a file or of a folder with one scan; what is no path is a scan that failed.
                Or a data frame with the paths in its column ``scan``; it keeps its index and its other columns.
            batch_size: 0 leaves it to inference.yaml.

        Returns:
            The columns of inference's predictions.csv but study: scan, prediction, prob_<class> (in [0, 1]), status
            (ok|failed|skipped), reason, warnings. Without an answer, prediction and probabilities are None or NaN.

        Raises:
            ValueError: a data frame without the column ``scan``, or with one that the answers have too.
        """
        if isinstance(scans, pd.DataFrame):
            if "scan" not in scans:
                raise ValueError(f"scans: no column 'scan'; there is {', '.join(map(str, scans.columns))}")
            if taken := [name for name in self.writer.columns[1:] if name in scans]:
                raise ValueError(f"scans: the answers have a column {taken[0]!r} too; rename it or leave it out")
            answers = self.predict(scans["scan"].tolist(), batch_size).set_index(scans.index)
            return pd.concat([scans, answers.drop(columns="scan")], axis=1)
        paths = [scans] if isinstance(scans, (str, Path)) else scans
        names = [os.fspath(path) if isinstance(path, (str, Path)) else "" for path in paths]
        answers = _Answers(self.writer)
        # a path is no part of the config: MONAI would run one that begins with "$". A tuple it leaves alone.
        items = tuple({"image": name, "scan": shown(name)} for name in names if name)
        if items:
            config = deepcopy(self._config)  # MONAI writes into it
            config |= {"network": self.network, "inferer": self._inferer, "handlers": [answers]}
            config |= {"dataset": config["dataset"] | {"data": items}}
            if batch_size:
                config["batch_size"] = batch_size
            ConfigParser(config).get_parsed_content("evaluator").run()
        no_path = dict.fromkeys(self.writer.columns) | {"scan": "", "warnings": ""}
        no_path |= {"status": "failed", "reason": "no path"}
        rows = iter(answers.rows)
        table = [next(rows) if name else [*no_path.values()] for name in names]
        return pd.DataFrame(table, columns=self.writer.columns)


def _network_def(root: Path, name: str) -> dict[str, Any]:
    """``network_def`` of the bundle's overlay for a network; nothing where there is none, or none is needed."""
    for file in sorted((root / "configs" / "networks").glob("*.yaml")):
        section = ConfigParser.load_config_file(file)["network_def"]
        if section["_target_"].rpartition(".")[2] == name:
            return {"network_def": section}
    return {}


class _Answers:
    """Ignite handler that collects rows, as inference's writer makes them."""

    def __init__(self, writer: PredictionWriter) -> None:
        self.writer = writer
        self.rows: list[list[Any]] = []

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._append)

    def _append(self, engine: Engine) -> None:
        for answer in self.writer.answer(engine.state.batch, engine.state.output["pred"]):
            if answer.status == "failed":
                logger.warning("%s failed: %s", one_line(answer.scan), one_line(answer.reason))
            self.rows.append(self.writer.cells(answer))
