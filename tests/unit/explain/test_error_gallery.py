"""The worst errors as pictures: the right scans, the pixels that the network saw, and a network left as it was."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from workflows import CLASSES, Start, Trained, run

from fairlung.pipeline.common.volumes import unit_range
from fairlung.pipeline.data.cohort import load_cohort
from fairlung.pipeline.evaluation.predictions import Predictions, load_predictions
from fairlung.pipeline.explain.error_gallery import MAX_BYTES, encode_picture, worst_errors, write_error_gallery
from fairlung.pipeline.explain.grad_cam import GAP, PANEL, class_activation, error_picture, explained_copy
from fairlung.pipeline.reports.evidence import _errors

SEXES = ("male", "female")


@pytest.fixture(scope="module")
def judged(trained_once: Trained, start: Start) -> SimpleNamespace:
    """An evaluation by the shipped configs, with the scans and the network that it judged."""
    parser = start("train", "evaluate", **trained_once.settings).parser
    dataset, network = (parser.get_parsed_content(name) for name in ("validate::dataset", "network"))
    dataset.prepare()
    network.load_state_dict(torch.load(trained_once.model, weights_only=True))
    folder = trained_once.output / "val" / "evaluation"
    return SimpleNamespace(
        folder=folder,
        settings=trained_once.settings,
        entries=json.loads((folder / "errors" / "errors.json").read_text()),
        table=pd.read_csv(folder / "predictions.csv").set_index("scan"),
        dataset=dataset,
        network=network.eval(),
    )


def gallery(judged: SimpleNamespace, folder: Path, **changes: object) -> list[dict]:
    """A gallery beside a copy of the evaluation's predictions."""
    folder.mkdir(exist_ok=True)
    shutil.copy(judged.folder / "predictions.csv", folder)
    arguments = {"dataset": judged.dataset, "network": judged.network, "class_names": CLASSES, "group_names": SEXES}
    return write_error_gallery(folder / "predictions.csv", **arguments | changes)  # type: ignore[arg-type]


def predictions(group: Sequence[int], wrong: Sequence[bool], confidence: Sequence[float]) -> Predictions:
    """Scans of class a that are taken for b, with a confidence, or not."""
    wrong_, p = np.array(wrong, dtype=bool), np.array(confidence)
    names = np.array([f"s{i}" for i in range(len(p))])
    probabilities = np.where(wrong_[:, None], np.stack([1 - p, p], 1), np.stack([p, 1 - p], 1))
    label = np.zeros(len(p), dtype=np.int64)
    return Predictions(
        names, label, wrong_.astype(np.int64), np.array(group), probabilities, ("a", "b"), SEXES, ("sex",)
    )


# ---- the shipped evaluation ----------------------------------------------------------------------------------------
def test_an_evaluation_shows_exactly_its_errors_worst_first(judged: SimpleNamespace) -> None:
    wrong = judged.table[judged.table["label"] != judged.table["prediction"]]
    assert 2 <= len(wrong) <= 12
    assert {entry["scan"] for entry in judged.entries} == set(wrong.index)
    for entry in judged.entries:
        row = wrong.loc[entry["scan"]]
        assert (entry["label"], entry["group"], entry["prediction"]) == (row["label"], row["sex"], row["prediction"])
        assert entry["confidence"] == pytest.approx(row[f"prob_{row['prediction']}"], abs=1e-6)
        assert entry["confidence"] == pytest.approx(max(row[f"prob_{name}"] for name in CLASSES), abs=1e-6)
    confidences = [entry["confidence"] for entry in judged.entries]
    assert confidences == sorted(confidences, reverse=True)
    assert [entry["image"] for entry in judged.entries] == [f"{i + 1:04d}.png" for i in range(len(wrong))]
    files = {path.name for path in (judged.folder / "errors").iterdir()}
    assert files == {"errors.json", *(entry["image"] for entry in judged.entries)}


def test_a_picture_holds_the_pixels_that_the_network_saw_and_its_overlay(judged: SimpleNamespace) -> None:
    where = {item["scan"]: i for i, item in enumerate(judged.dataset.data)}
    overlays = 0
    for entry in judged.entries:
        path = judged.folder / "errors" / entry["image"]
        assert path.stat().st_size < MAX_BYTES
        with Image.open(path) as opened:
            assert opened.format == "PNG"
            picture = np.asarray(opened.convert("RGB"))
        volume = unit_range(judged.dataset[where[entry["scan"]]]["image"])[0].numpy()
        assert (entry["slice"], entry["num_slices"]) == (len(volume) // 2, len(volume))
        assert 0 <= entry["peak_slice"] < len(volume)
        size = volume.shape[1]
        factor = PANEL // size
        assert picture.shape == (size * factor, 2 * size * factor + GAP, 3)
        middle = np.rint(volume[entry["slice"]] * 255)
        enlarged = np.kron(middle, np.ones((factor, factor)))
        assert (picture[:, : size * factor] == enlarged[..., None]).all()
        overlay = picture[:, size * factor + GAP :]
        overlays += bool((overlay != enlarged[..., None]).any())
    assert overlays >= 1


def test_the_overlay_is_that_of_the_predicted_class(judged: SimpleNamespace) -> None:
    """Drawn again from a second Grad-CAM, of the class in the table."""
    explained = explained_copy(judged.network)
    where = {item["scan"]: i for i, item in enumerate(judged.dataset.data)}
    for entry in judged.entries:
        image = unit_range(judged.dataset[where[entry["scan"]]]["image"])
        activation = class_activation(explained, image, CLASSES.index(entry["prediction"]))
        expected = error_picture(image[0, entry["slice"]].numpy(), activation[entry["slice"]])
        with Image.open(judged.folder / "errors" / entry["image"]) as picture:
            assert np.abs(np.asarray(picture.convert("RGB")).astype(int) - np.asarray(expected)).max() <= 1
        assert activation[entry["peak_slice"]].max() == activation.max()


def test_cells_of_the_cohort_lie_beside_the_predictions(judged: SimpleNamespace, small_cohort: Path) -> None:
    cells = load_cohort(small_cohort, class_names=CLASSES, group_names=SEXES, group_by="sex").cells()
    pd.testing.assert_frame_equal(pd.read_csv(judged.folder / "cells.csv"), cells)


@pytest.mark.slow
def test_no_picture_when_none_is_asked_for_and_what_is_no_number_is_refused_first(
    judged: SimpleNamespace, start: Start, tmp_path: Path
) -> None:
    checkpoint = str(judged.folder.parents[1] / "models" / "best.pt")
    settings = judged.settings | {"output_dir": str(tmp_path), "checkpoint": checkpoint}
    run(start("train", "evaluate", **settings, error_images=0))
    assert (tmp_path / "val" / "evaluation" / "cells.csv").exists()
    assert not (tmp_path / "val" / "evaluation" / "errors").exists()
    for count in (-1, 2.5, None, True):
        with pytest.raises(Exception) as caught:  # noqa: PT011  (MONAI wraps every kind)
            start("train", "evaluate", **settings, error_images=count).initialize()
        assert f"error_images must be a whole number of at least 0, got {count!r}" in str(caught.value.__cause__)


# ---- the network stays as it was -----------------------------------------------------------------------------------
def test_the_network_is_left_without_hooks_gradients_or_other_outputs(judged: SimpleNamespace, tmp_path: Path) -> None:
    network = judged.network
    image = unit_range(judged.dataset[0]["image"])[None]

    def state() -> tuple:
        modules = [
            (module.training, len(module._forward_hooks), len(module._forward_pre_hooks), len(module._backward_hooks))
            for module in network.modules()
        ]
        inplace = [module.inplace for module in network.modules() if isinstance(module, torch.nn.ReLU)]
        return modules, inplace, [(p.requires_grad, p.grad is None) for p in network.parameters()]

    before, weights = state(), {name: value.clone() for name, value in network.state_dict().items()}
    with torch.no_grad():
        logits = network(image)
        entries = gallery(judged, tmp_path)  # without gradients around it: an evaluation's finalize may be called so
        assert not torch.is_grad_enabled()
        assert torch.equal(network(image), logits)
    assert entries == judged.entries
    assert state() == before
    assert all(torch.equal(weights[name], value) for name, value in network.state_dict().items())
    for entry in entries:
        assert (tmp_path / "errors" / entry["image"]).read_bytes() == (
            judged.folder / "errors" / entry["image"]
        ).read_bytes()


# ---- which errors --------------------------------------------------------------------------------------------------
def test_groups_take_turns_and_the_most_confident_is_first() -> None:
    table = predictions(
        group=[0, 0, 0, 0, 1, -1, 1],
        wrong=[True, True, True, True, True, True, False],
        confidence=[0.9, 0.95, 0.8, 0.7, 0.6, 0.55, 0.99],
    )
    assert worst_errors(table, 12).tolist() == [1, 0, 2, 3, 4, 5]
    assert worst_errors(table, 4).tolist() == [1, 0, 4, 5]  # one of each group, then the next worst
    assert worst_errors(table, 2).tolist() == [1, 4]
    assert worst_errors(table, 1).tolist() == [1]
    assert worst_errors(table, 0).tolist() == []
    assert worst_errors(predictions([0], [False], [0.9]), 3).tolist() == []


@given(
    st.lists(st.tuples(st.integers(-1, 1), st.booleans(), st.sampled_from([0.5, 0.6, 0.75, 0.9, 1.0])), min_size=1),
    st.integers(0, 9),
)
def test_every_group_with_errors_is_shown_by_its_worst(rows: list[tuple[int, bool, float]], count: int) -> None:
    group, wrong, confidence = (np.array(column) for column in zip(*rows, strict=True))
    chosen = worst_errors(predictions(*zip(*rows, strict=True)), count)
    assert len(chosen) == len(set(chosen)) == min(count, wrong.sum())
    assert wrong[chosen].all()
    assert (np.diff(confidence[chosen]) <= 0).all()
    shown = [int((group[chosen] == g).sum()) for g in (-1, 0, 1)]
    there = [int((group[wrong] == g).sum()) for g in (-1, 0, 1)]
    for g, (n, available) in enumerate(zip(shown, there, strict=True)):
        worst = np.sort(confidence[wrong & (group == g - 1)])[::-1][:n]
        assert sorted(confidence[chosen][group[chosen] == g - 1], reverse=True) == worst.tolist()
        assert n == available or n >= max(shown) - 1  # a group goes short by one turn at most


def test_errors_without_probabilities_cannot_be_ordered() -> None:
    table = predictions([0], [True], [0.9])
    bare = Predictions(**{**vars(table), "probabilities": None})
    with pytest.raises(ValueError, match="no probabilities"):
        worst_errors(bare, 3)


# ---- pictures ------------------------------------------------------------------------------------------------------
def test_an_overlay_is_grey_where_nothing_is_active_and_bright_at_the_peak() -> None:
    activation = np.zeros((64, 64))
    activation[16:48, 16:48] = np.linspace(0.01, 1, 32)
    picture = np.asarray(error_picture(np.full((64, 64), 0.2), activation)).astype(float)
    assert picture.shape == (256, 2 * 256 + GAP, 3)
    assert (picture[:, :256] == 51).all()
    overlay = picture[:, 256 + GAP :][::4, ::4]
    assert (overlay[:16] == 51).all()
    row = overlay[32, 16:48]
    luminance = row @ [0.2126, 0.7152, 0.0722]
    assert luminance[-1] > 150 > 51 > luminance[8]
    assert (np.diff(luminance[14:]) > 0).all()  # without colour, more is still brighter
    assert (picture[:, 256 : 256 + GAP] == 255).all()


@pytest.mark.parametrize(
    ("shape", "size"), [((24, 20), (240, 200)), ((224, 224), (224, 224)), ((512, 320), (256, 160))]
)
def test_a_picture_is_of_readable_size_whatever_the_crop(shape: tuple[int, int], size: tuple[int, int]) -> None:
    picture = error_picture(np.full(shape, 0.5), np.zeros(shape))
    assert picture.size == (2 * size[1] + GAP, size[0])


def test_a_noisy_slice_is_stored_small_and_still_looks_like_itself() -> None:
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:224, :224] / 224
    anatomy = 0.45 + 0.35 * np.sin(9 * x) * np.cos(7 * y)
    pixels = np.clip(anatomy + rng.normal(0, 0.015, anatomy.shape), 0, 1)
    picture = error_picture(pixels, np.exp(-((x - 0.6) ** 2 + (y - 0.5) ** 2) / 0.02))
    exact = BytesIO()
    picture.save(exact, "PNG", optimize=True)
    content = encode_picture(picture)
    assert len(content) <= MAX_BYTES < len(exact.getvalue())
    stored = np.asarray(Image.open(BytesIO(content)).convert("RGB")).astype(float)
    assert np.abs(stored - np.asarray(picture)).mean() < 4
    flat = error_picture(np.full((224, 224), 0.3), np.zeros((224, 224)))
    assert np.array_equal(np.asarray(Image.open(BytesIO(encode_picture(flat)))), np.asarray(flat))  # small: exact


# ---- files ---------------------------------------------------------------------------------------------------------
def test_an_earlier_gallery_is_replaced_and_other_files_stay(judged: SimpleNamespace, tmp_path: Path) -> None:
    folder = tmp_path / "errors"
    folder.mkdir()
    for name in ("0001.png", "0099.png", "errors.json", "notes.txt", "mine.png"):
        (folder / name).write_text("old")
    entries = gallery(judged, tmp_path, count=2)
    assert len(entries) == 2
    names = {"0001.png", "0002.png", "errors.json", "notes.txt", "mine.png"}
    assert {path.name for path in folder.iterdir()} == names
    assert gallery(judged, tmp_path, count=0) == []
    assert {path.name for path in folder.iterdir()} == {"notes.txt", "mine.png"}


def test_every_group_with_errors_is_among_few_pictures(judged: SimpleNamespace, tmp_path: Path) -> None:
    table = load_predictions(judged.folder / "predictions.csv", CLASSES, SEXES, ["sex"])
    groups = {SEXES[g] for g in table.group[table.label != table.prediction]}
    assert {entry["group"] for entry in gallery(judged, tmp_path, count=len(groups))} == groups == set(SEXES)


def test_a_scan_of_unknown_group_is_shown_as_such_and_no_other_column_is_copied(
    judged: SimpleNamespace, tmp_path: Path
) -> None:
    gallery(judged, tmp_path)
    table = judged.table.reset_index().assign(sex="", patient="P-77")
    table.to_csv(tmp_path / "predictions.csv", index=False)
    arguments = (judged.dataset, judged.network, CLASSES, SEXES)
    entries = write_error_gallery(tmp_path / "predictions.csv", *arguments, count=1)
    assert [entry["group"] for entry in entries] == ["unknown"]
    assert "P-77" not in (tmp_path / "errors" / "errors.json").read_text()


def test_without_an_error_the_list_is_empty(judged: SimpleNamespace, tmp_path: Path) -> None:
    table = judged.table.reset_index().assign(prediction=lambda rows: rows["label"])
    table.to_csv(tmp_path / "predictions.csv", index=False)
    assert write_error_gallery(tmp_path / "predictions.csv", judged.dataset, judged.network, CLASSES, SEXES) == []
    assert json.loads((tmp_path / "errors" / "errors.json").read_text()) == []


@pytest.mark.fault(
    "wrong", "pictures of the worst errors that cannot be made", before="a line of the log; the report knew no reason",
    now="the report says why they are missing",
)  # fmt: skip
def test_a_gallery_that_fails_is_a_warning_and_leaves_the_reason(
    judged: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    read, written = judged.dataset._transform, []

    def fail_after_the_first(index: int) -> dict:
        if written:
            raise MemoryError("no room")
        written.append(index)
        return read(index)

    monkeypatch.setattr(judged.dataset, "_transform", fail_after_the_first)
    with caplog.at_level(logging.WARNING, "fairlung"):
        assert gallery(judged, tmp_path) == []
        assert written and [path.name for path in (tmp_path / "errors").iterdir()] == ["errors.json"]
        said = "no_pictures: MemoryError: no room"
        assert json.loads((tmp_path / "errors" / "errors.json").read_text()) == {"problem": said}
        assert _errors(tmp_path / "errors") == (None, said)
        assert gallery(judged, tmp_path, target_layer="layer9") == []
        shutil.rmtree(tmp_path / "errors")
        (tmp_path / "errors").write_text("a file in the way")
        assert gallery(judged, tmp_path, count=2) == []
    messages = [record.message for record in caplog.records]
    assert messages[0] == "no pictures of the worst errors: MemoryError: no room"
    assert "layer9" in messages[1] and len(messages) == 3
    assert (tmp_path / "errors").read_text() == "a file in the way"


def test_a_scan_that_is_not_in_the_data_set_is_named(
    judged: SimpleNamespace, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    judged.table.reset_index().assign(scan=lambda rows: "other/" + rows["scan"]).to_csv(
        tmp_path / "predictions.csv", index=False
    )
    assert write_error_gallery(tmp_path / "predictions.csv", judged.dataset, judged.network, CLASSES, SEXES) == []
    assert "scan 'other/" in caplog.text and "not in the data set" in caplog.text


def test_only_the_first_process_writes(
    judged: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fairlung.pipeline.explain.error_gallery.is_primary", lambda: False)
    assert gallery(judged, tmp_path) == []
    assert not (tmp_path / "errors").exists()
