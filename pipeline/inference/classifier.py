"""A trained classifier in Python: paths of scans in, a table out, by the bundle's inference.yaml."""

import logging
import os
from collections.abc import Iterable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import pandas as pd
from ignite.engine import Engine, Events
from monai.bundle import ConfigParser

from ..common.bundle import BUNDLE, BundleError, check_version
from ..common.text import one_line
from .members import load_members, require_checkpoints
from .prediction_writer import PredictionWriter

logger = logging.getLogger(__name__)


class Classifier:
    """Answers paths of scans as ``monai.bundle run inference.yaml`` does, with the same config; nothing is written.

    Args:
        checkpoint: file written by train.yaml, a pattern such as ``runs/*/models/best.pt``, or several: an ensemble.
        bundle_root: folder of the bundle. None takes the one that came with fairlung.
        settings: others of inference.yaml, such as ``flip_tta=True`` or ``num_workers=4``. Without workers scans are
            read in this process, and a scan that crashes its reader ends it.

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
        parser = ConfigParser(deepcopy(self._config))
        paths = parser.get_parsed_content("checkpoints")
        require_checkpoints(paths)
        self.network = parser.get_parsed_content("network").eval()
        load_members(paths, self.network, parser.get_parsed_content("settings"))
        self.writer: PredictionWriter = parser.get_parsed_content("predictions")  # how an answer becomes a row

    def predict(self, paths: Iterable[str | Path | None], batch_size: int = 0) -> pd.DataFrame:
        """A row a scan, in the order of the paths; may be called by several threads.

        Each path is of a file or of a folder with one scan; what is no path is a scan that failed. ``batch_size`` 0
        leaves it to inference.yaml. The columns are those of inference's predictions.csv but study: scan,
        prediction, prob_<class> (in [0, 1]), status (ok|failed|skipped), reason, warnings. Without an answer,
        prediction and probabilities are None or NaN.
        """
        names = [os.fspath(path) if isinstance(path, (str, Path)) else "" for path in paths]
        answers = _Answers(self.writer)
        # a path is no part of the config: MONAI would run one that begins with "$". A tuple it leaves alone.
        scans = tuple({"image": name, "scan": name} for name in names if name)
        if scans:
            config = deepcopy(self._config)  # MONAI writes into it
            config |= {"network": self.network, "handlers": [answers], "dataset": config["dataset"] | {"data": scans}}
            if batch_size:
                config["batch_size"] = batch_size
            ConfigParser(config).get_parsed_content("evaluator").run()
        no_path = dict.fromkeys(self.writer.columns) | {"scan": "", "warnings": ""}
        no_path |= {"status": "failed", "reason": "no path"}
        rows = iter(answers.rows)
        table = [next(rows) if name else [*no_path.values()] for name in names]
        return pd.DataFrame(table, columns=self.writer.columns)


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
