"""The worst errors of an evaluation as pictures: the middle slice, and the same slice with what the network looked at.

The overlay is Grad-CAM (Selvaraju et al. 2017) of the predicted class at the last convolutional stage: the channels of
the stage, weighted by the mean gradient of the class's logit, summed, negative values set to 0. It shows which region
raised the logit, coarsely (a voxel of the R3D-18's stage is 8 slices by 16 by 16 pixels), not that it is diseased.
"""

import io
import json
import logging
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from PIL.Image import Dither, Image
from torch import nn

from fairlung.transforms.checks import check_whole

from ..common.distributed import is_primary
from ..common.files import write_json
from ..common.names import UNKNOWN, UNKNOWN_GROUP
from ..common.volumes import slice_counts, unit_range
from ..data.dataset import ScanDataset
from ..data.groups import group_columns
from ..data.intake_records import not_made
from ..evaluation.predictions import Predictions, load_predictions
from ..networks.ensemble import members_of
from ..networks.frozen import whole_network
from .grad_cam import class_activation, error_picture, explained_copy

logger = logging.getLogger(__name__)

FOLDER = "errors"  # beside the predictions
INDEX = "errors.json"
MAX_BYTES = 60_000  # of a picture: a report holds all of them
PALETTES = (256, 128, 64)  # colours that are tried, in turn, for a picture that is larger


def write_error_gallery(
    predictions: str | Path, dataset: ScanDataset, network: nn.Module, class_names: Sequence[str],
    group_names: Sequence[str], group_by: str | Sequence[str] = "sex", count: int = 12, target_layer: str | None = None,
) -> list[dict[str, Any]]:  # fmt: skip
    """Write pictures of the worst errors into ``errors`` beside a labelled prediction table, and say what they show.

    The files are ``0001.png``, ... (:func:`error_picture`) and ``errors.json``, a list of ``scan``, ``label``,
    ``group``, ``prediction``, ``confidence`` (probability of the predicted class), ``image`` (file name), ``slice``
    (the slice shown, from 0), ``num_slices`` and ``peak_slice`` (the slice of the highest activation), worst first.
    An earlier gallery is removed. ``network`` stays as it is: a copy is explained; of an ensemble the mean over its
    members. The content of errors.json is returned, empty where nothing was written.

    An evaluation must not be lost by its pictures: what fails after the check of ``count`` is a warning. errors.json
    then holds an object whose ``problem`` says why, for the report.

    Args:
        predictions: CSV with columns scan, label, the group columns, prediction and a probability a class.
        dataset: the scans of the table, with the volume [1, D, H, W] of each as the network sees it.
        count: pictures at most, at least 0 (ValueError); 0 makes none.
        target_layer: module whose output [N, F, d, h, w] is explained; None is :func:`~.explained_layer`.
    """
    check_whole("error_images", count, least=0)
    if not is_primary():
        return []
    folder = Path(predictions).parent / FOLDER
    entries: list[dict[str, Any]] = []
    try:
        _discard(folder)
        if count:
            table = load_predictions(predictions, class_names, group_names, group_columns(group_by))
            entries = _write(folder, table, worst_errors(table, count), dataset, network, target_layer)
    except Exception as error:  # memory, a full disk, a scan that is gone
        logger.warning("no pictures of the worst errors: %s: %s", type(error).__name__, error)
        with suppress(OSError):
            _discard(folder)
            folder.mkdir(exist_ok=True)
            write_json(folder / INDEX, {"problem": not_made("pictures", error)})
    return entries


def worst_errors(predictions: Predictions, count: int) -> NDArray[np.int64]:
    """[K <= count] rows of the wrong predictions with the highest probability, the most confident first.

    Groups (unknown is one) take turns: all groups' worst errors come before any group's second. Where ``count`` cuts a
    turn, the more confident errors are in. Predictions without probabilities are a ValueError.
    """
    if predictions.probabilities is None:
        raise ValueError("the predictions have no probabilities: errors cannot be ordered")
    confidence = predictions.probabilities[np.arange(len(predictions.label)), predictions.prediction]
    table = pd.DataFrame({"group": predictions.group, "confidence": confidence})
    wrong = predictions.prediction != predictions.label
    table = table[wrong].sort_values("confidence", ascending=False, kind="stable")
    turn = table.groupby("group").cumcount().sort_values(kind="stable")
    chosen = table.loc[turn.index[:count]].sort_values("confidence", ascending=False, kind="stable")
    return chosen.index.to_numpy(dtype=np.int64)


def encode_picture(picture: Image) -> bytes:
    """A picture as PNG: exact, or in the most colours of :data:`PALETTES` within :data:`MAX_BYTES`, else the fewest."""

    def png(picture: Image) -> bytes:
        buffer = io.BytesIO()
        picture.save(buffer, "PNG", optimize=True)
        return buffer.getvalue()

    content = png(picture)
    for colours in PALETTES:
        if len(content) > MAX_BYTES:  # median cut, refined by k-means: most colours are greys, as most pixels are
            content = png(picture.quantize(colours, kmeans=1, dither=Dither.NONE))
    return content


def _write(
    folder: Path, table: Predictions, rows: NDArray[np.int64], dataset: ScanDataset, network: nn.Module,
    target_layer: str | None,
) -> list[dict[str, Any]]:  # fmt: skip
    assert table.probabilities is not None
    where = {item["scan"]: i for i, item in enumerate(dataset.data)}
    networks = [explained_copy(whole_network(member), target_layer) for member in members_of(network)]
    folder.mkdir(exist_ok=True)
    entries: list[dict[str, Any]] = []
    for number, row in enumerate(rows, start=1):
        scan, prediction, group = str(table.scan[row]), int(table.prediction[row]), int(table.group[row])
        if scan not in where:
            raise ValueError(f"scan {scan!r} of the predictions is not in the data set")
        image = unit_range(torch.as_tensor(dataset.volume(where[scan])))
        activation = np.mean([class_activation(each, image, prediction, target_layer) for each in networks], axis=0)
        depth = slice_counts(image[None])[0]
        middle, name = depth // 2, f"{number:04d}.png"
        picture = error_picture(image[0, middle].cpu().numpy(), activation[middle])
        (folder / name).write_bytes(encode_picture(picture))
        entry = {
            "scan": scan, "label": table.class_names[table.label[row]],
            "group": UNKNOWN if group == UNKNOWN_GROUP else table.group_names[group],
            "prediction": table.class_names[prediction], "confidence": float(table.probabilities[row, prediction]),
            "image": name, "slice": middle, "num_slices": depth, "peak_slice": int(activation.max((1, 2)).argmax()),
        }  # fmt: skip
        entries.append(entry)
    (folder / INDEX).write_text(json.dumps(entries, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return entries


def _discard(folder: Path) -> None:
    """Remove a gallery: the files by the names that we give them, and the folder when nothing else is in it."""
    for path in (folder / INDEX, *folder.glob("[0-9][0-9][0-9][0-9].png")):
        path.unlink(missing_ok=True)
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
