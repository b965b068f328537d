"""Overlays lie where the network looked: in the scan's own space, as another library reads it, and in the pictures."""

from __future__ import annotations

import logging
import tracemalloc
import warnings
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path, PurePosixPath
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ignite.engine import Engine
from monai.engines import SupervisedEvaluator
from monai.transforms import CenterSpatialCrop, Compose, Resize
from nibabel.affines import apply_affine
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform
from PIL import Image
from torch import Tensor, nn

from fairlung.pipeline.common.files import FORBIDDEN, ScanPaths
from fairlung.pipeline.explain.grad_cam import GAP
from fairlung.pipeline.explain.montage import DPI, MARGIN, NOTICE, montage_figure
from fairlung.pipeline.explain.overlays import OverlayWriter
from fairlung.pipeline.explain.scan_map import map_to_scan, write_map
from fairlung.pipeline.inference.answers import Answer, answer_scans
from fairlung.pipeline.inference.prediction_writer import PredictionWriter
from fairlung.pipeline.networks.ensemble import Ensemble

CLASSES = ("adenocarcinoma", "squamous_cell", "covid19", "normal")
WINDOW = (-1350.0, 150.0)
RNG = np.random.default_rng(3)


def record(shape: Sequence[int], indices: Sequence[int], affine: np.ndarray | None = None, **more: Any) -> dict:
    """An intake record as LoadScand makes it."""
    spacing = None if affine is None else np.linalg.norm(affine[:3, :3], axis=0)[::-1].tolist()
    return {
        "kind": "slices" if affine is None else "nifti",
        "status": "ok",
        "reason": "",
        "warnings": [],
        "series": "",
        "slices_found": shape[0],
        "slices_used": len(set(indices)),
        "shape": list(shape),
        "spacing": spacing,
        "affine": None if affine is None else affine.tolist(),
        "indices": list(indices),
        "orientation": "",
        "value_range": [-1000.0, 400.0],
        "tilt_degrees": None,
        "decoder": "",
        "files": [],
    } | more


def forward(volume: np.ndarray, indices: Sequence[int], image_size: int, crop_size: int) -> np.ndarray:
    """What preprocessing does to a scan [D, H, W]: the stock transforms of the bundle."""
    resize = Compose(
        [
            Resize((len(indices), image_size, image_size), mode="area"),
            CenterSpatialCrop((len(indices), crop_size, crop_size)),
        ]
    )
    return np.asarray(resize(torch.as_tensor(volume[np.asarray(indices)], dtype=torch.float32)[None]))[0]


# ---- names -----------------------------------------------------------------------------------------------------------
parts = st.one_of(
    st.sampled_from(["..", ".", "", "a", "A", "a.png", "a_map.nii.gz", "a:b", "a_b", "con", "nul.txt", " x ", "x."]),
    st.text(max_size=12),
    st.text(alphabet="\udcff\x00\n\u00e9e\u0301", min_size=1, max_size=4),
    st.text(alphabet="xü中", min_size=250, max_size=300),
)


@given(st.lists(st.lists(parts, min_size=1, max_size=3).map("/".join), unique=True, max_size=12))
@settings(max_examples=200)
def test_files_of_scans_stay_in_the_folder_and_never_meet(names: list[str]) -> None:
    paths = ScanPaths()
    made = [paths(name) for name in names]
    assert [paths(name) for name in names] == made
    files, folders = set(), set()
    for path in made:
        pure = PurePosixPath(path)
        assert not pure.is_absolute() and ".." not in pure.parts and str(pure) == path
        for part in pure.parts:
            assert not FORBIDDEN.search(part) and part == part.strip(" .") and len(part.encode()) < 200
        folders |= {str(parent).casefold() for parent in pure.parents}
        files |= {f"{path}.png".casefold(), f"{path}_map.nii.gz".casefold()}
    assert len(files) == 2 * len(names)
    assert not files & folders


def test_ordinary_names_stay_as_they_are() -> None:
    paths = ScanPaths()
    for name in ("a/b/0001", "x.nii.gz", "study#2", "Patient 7/CT thorax (1)", "1.2.840.113", "Müller_é"):
        assert paths(name) == name
    assert paths("X.nii.gz") not in ("x.nii.gz", "X.nii.gz")


# ---- the map ---------------------------------------------------------------------------------------------------------
def test_a_map_undoes_the_choice_of_slices_and_the_crop_exactly() -> None:
    activation = RNG.random((4, 6, 6))
    made = map_to_scan(activation, [2, 3, 6, 9], (12, 9, 9), image_size=9, crop_size=6)
    inside = made[:, 1:7, 1:7] / 255  # MONAI's central crop of 6 out of 9 starts at 9 // 2 - 6 // 2
    flat = activation.reshape(4, -1)
    positions = np.arange(12)
    linear = np.stack([np.interp(positions, [2, 3, 6, 9], flat[:, i], left=0, right=0) for i in range(36)], axis=1)
    np.testing.assert_allclose(inside.reshape(12, -1), linear, atol=0.5 / 255 + 1e-6)
    made[:, 1:7, 1:7] = 0
    assert not made.any()


def test_slices_that_came_several_times_are_averaged() -> None:
    activation = np.stack([np.full((4, 4), value) for value in (0.2, 0.4, 0.6, 1.0, 1.0)])
    made = map_to_scan(activation, [0, 0, 0, 1, 1], (2, 4, 4), 4, 4)
    assert (made[0] == 102).all() and (made[1] == 255).all()


@given(st.data())
@settings(max_examples=150)
def test_a_bright_voxel_of_the_network_lies_where_it_came_from(data: st.DataObject) -> None:
    """The brightest voxel of the map is one that preprocessing sends to the network's bright voxel."""
    shape = tuple(data.draw(st.integers(least, most)) for least, most in ((1, 12), (8, 40), (8, 40)))
    image_size = data.draw(st.integers(2, 24))
    crop_size = data.draw(st.integers(1, image_size))
    indices = sorted(data.draw(st.lists(st.integers(0, shape[0] - 1), min_size=1, max_size=6)))
    where = tuple(data.draw(st.integers(0, size - 1)) for size in (len(indices), crop_size, crop_size))
    activation = np.zeros((len(indices), crop_size, crop_size))
    activation[where] = 1
    made = map_to_scan(activation, indices, shape, image_size, crop_size)
    brightest = np.unravel_index(made.argmax(), made.shape)
    assert made[brightest] > 0
    one_hot = np.zeros(shape)
    one_hot[brightest] = 1
    assert forward(one_hot, indices, image_size, crop_size)[where] > 0


@pytest.mark.parametrize("size", [(48, 48), (24, 24), (48, 12), (96, 24)], ids=str)
def test_there_is_no_shift_by_a_part_of_a_voxel(size: tuple[int, int]) -> None:
    """A ramp comes back as it was, in rows and columns that are 4, 2, 1 and 1/2 voxels of the scan a pixel."""
    height, width = size
    rows, columns = np.meshgrid((np.arange(height) + 0.5) / height, (np.arange(width) + 0.5) / width, indexing="ij")
    ramp = np.broadcast_to((rows + 2 * columns) / 3, (3, height, width))
    made = map_to_scan(forward(ramp, [0, 2], 24, 16), [0, 2], ramp.shape, 24, 16) / 255
    seen = (np.abs(rows - 0.5) < 6 / 24) & (np.abs(columns - 0.5) < 6 / 24)  # two pixels away from the crop's border
    assert seen.sum() >= 36
    np.testing.assert_allclose(made[:, seen], ramp[:, seen], atol=0.6 / 255)


def test_a_map_needs_memory_for_itself_and_a_few_slices() -> None:
    activation = RNG.random((16, 14, 14)).astype(np.float32)
    tracemalloc.start()
    made = map_to_scan(activation, range(0, 160, 10), (160, 96, 96), 16, 14)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < made.nbytes + 12 * 96 * 96 * 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"indices": [0, 4]}, r"indices must be in \[0, 4\), got 0 to 4"),
        ({"indices": [0, 1, 2]}, r"activation has the shape \(2, 6, 6\), which must be \(3, 6, 6\)"),
        ({"crop_size": 8}, r"which must be \(2, 8, 8\)"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, Any], message: str) -> None:
    arguments = {"indices": [0, 3], "shape": (4, 9, 9), "image_size": 9, "crop_size": 6} | change
    with pytest.raises(ValueError, match=message):
        map_to_scan(np.ones((2, 6, 6)), **arguments)


# ---- the map in the eyes of another library --------------------------------------------------------------------------
def rotation(axis: int, degrees: float) -> np.ndarray:
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    others = [i for i in range(3) if i != axis]
    matrix = np.eye(3)
    matrix[np.ix_(others, others)] = [[c, -s], [s, c]]
    return matrix


def oblique(codes: str, spacing: Sequence[float]) -> np.ndarray:
    """Affine of voxels stored along ``codes`` (RAS letters), tilted by up to 12 degrees."""
    axes = {"R": (0, 1), "L": (0, -1), "A": (1, 1), "P": (1, -1), "S": (2, 1), "I": (2, -1)}
    affine = np.eye(4)
    for column, code in enumerate(codes):
        row, sign = axes[code]
        affine[:3, column] = 0
        affine[row, column] = sign * spacing[column]
    affine[:3, :3] = rotation(0, 12) @ rotation(2, -7) @ affine[:3, :3]
    affine[:3, 3] = (-31.5, 44.25, -120.125)
    return affine


def to_lps(stored: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[D, H, W] and the affine of (W, H, D), as the intake record has it; by nibabel."""
    turn = ornt_transform(io_orientation(affine), axcodes2ornt("LPS"))
    return apply_orientation(stored, turn).transpose(2, 1, 0), affine @ inv_ornt_aff(turn, stored.shape)


def save_scan(path: Path, stored: np.ndarray, affine: np.ndarray) -> None:
    """NIfTI by nibabel, NRRD and MHA by ITK."""
    if path.name.endswith(".nii.gz"):
        image = nib.Nifti1Image(stored, affine)
        image.set_qform(affine, 1)
        nib.save(image, path)
        return
    lps = np.diag([-1, -1, 1, 1]) @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image = sitk.GetImageFromArray(stored.transpose(2, 1, 0))
    image.SetSpacing(spacing.tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    sitk.WriteImage(image, str(path))


@pytest.mark.parametrize("codes", ["RAS", "LPS", "LAS", "PSR", "ILP"])
@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd", ".mha"])
def test_itk_finds_the_map_where_it_finds_the_scan(codes: str, suffix: str, tmp_path: Path) -> None:
    """The network's own input is taken for an activation: its map must be the scan, wherever the network saw it."""
    lengths = {"R": (20, 0.8), "L": (20, 0.8), "A": (20, 0.7), "P": (20, 0.7), "S": (9, 2.5), "I": (9, 2.5)}
    affine = oblique(codes, [lengths[code][1] for code in codes])
    stored = RNG.integers(-1300, 140, [lengths[code][0] for code in codes]).astype(np.int16)
    save_scan(tmp_path / f"scan{suffix}", stored, affine)
    volume, lps_affine = to_lps(stored, affine)
    indices = list(range(1, 8))
    windowed = np.clip((volume - WINDOW[0]) / (WINDOW[1] - WINDOW[0]), 0, 1)
    made = map_to_scan(forward(windowed, indices, 20, 14), indices, volume.shape, 20, 14)
    write_map(tmp_path / "map.nii.gz", made, lps_affine.tolist(), "test")

    scan = sitk.ReadImage(str(tmp_path / f"scan{suffix}"))
    map_ = sitk.ReadImage(str(tmp_path / "map.nii.gz"))
    on_scan = sitk.GetArrayFromImage(sitk.Resample(map_, scan, sitk.Transform(), sitk.sitkNearestNeighbor, -1.0))
    hu = sitk.GetArrayFromImage(scan).astype(float)
    expected = (hu - WINDOW[0]) / (WINDOW[1] - WINDOW[0])
    assert (on_scan >= 0).all()  # the grids cover the same space
    seen = on_scan > 0
    assert seen.sum() == 7 * 14 * 14
    np.testing.assert_allclose(on_scan[seen], expected[seen], atol=0.6 / 255)


def test_a_voxel_has_one_physical_point_in_map_and_scan(tmp_path: Path) -> None:
    affine = oblique("RAS", (0.8, 0.7, 2.5))
    stored = np.full((24, 20, 9), -900, dtype=np.int16)
    stored[6, 12, 5] = 100
    save_scan(tmp_path / "scan.nii.gz", stored, affine)
    volume, lps_affine = to_lps(stored, affine)
    activation = np.zeros((9, 20, 20))
    z, y, x = np.argwhere(volume == 100)[0]
    assert forward((volume == 100).astype(float), range(9), 20, 20)[z, y].argmax() == x * 20 // 24
    activation[z, y, x * 20 // 24] = 1
    write_map(tmp_path / "map.nii.gz", map_to_scan(activation, range(9), volume.shape, 20, 20), lps_affine, "test")
    points = []
    for name in ("scan", "map"):
        image = sitk.ReadImage(str(tmp_path / f"{name}.nii.gz"))
        brightest = np.argwhere(sitk.GetArrayFromImage(image) == sitk.GetArrayFromImage(image).max())
        assert len(brightest) == 1
        points.append(image.TransformIndexToPhysicalPoint(brightest[0][::-1].tolist()))
    np.testing.assert_allclose(points[1], points[0], atol=1e-4)
    np.testing.assert_allclose(np.array(points[0]) * (-1, -1, 1), apply_affine(affine, (6, 12, 5)), atol=1e-4)


def test_values_read_back_between_0_and_1_and_the_header_says_what_it_is(tmp_path: Path) -> None:
    volume = np.arange(256, dtype=np.uint8).reshape(4, 8, 8)
    write_map(tmp_path / "m.nii.gz", volume, np.diag([0.7, 0.7, 2, 1]), f"Grad-CAM of {'ü' * 100}")
    image = nib.load(tmp_path / "m.nii.gz")
    assert image.get_data_dtype() == np.uint8
    values = image.get_fdata()
    assert values.min() == 0 and 0.999999 < values.max() <= 1
    np.testing.assert_allclose(values, volume.transpose(2, 1, 0) / 255, atol=1e-6)
    assert image.header.get_xyzt_units()[0] == "mm"
    assert bytes(image.header["descrip"]).startswith(b"Grad-CAM of ???")


def test_a_sheared_grid_is_exact_or_refused_but_never_shifted(tmp_path: Path) -> None:
    """A tilted gantry without resampling: no orthogonal axes are right."""
    affine = np.diag([0.7, 0.7, 2.5, 1.0])
    affine[1, 2] = 2.5 * np.tan(np.radians(15))
    write_map(tmp_path / "m.nii.gz", np.ones((30, 40, 40), dtype=np.uint8), affine, "")
    header = nib.load(tmp_path / "m.nii.gz").header
    assert (header["sform_code"], header["qform_code"]) == (1, 0)
    np.testing.assert_allclose(header.get_best_affine(), affine, atol=1e-6)
    with pytest.raises(RuntimeError, match="orthonormal"):
        sitk.ReadImage(str(tmp_path / "m.nii.gz"))


def test_a_slice_folder_has_no_geometry_and_its_map_says_so(tmp_path: Path) -> None:
    volume = RNG.integers(0, 255, (3, 4, 5)).astype(np.uint8)
    write_map(tmp_path / "m.nii.gz", volume, None, "Grad-CAM of covid19")
    image = nib.load(tmp_path / "m.nii.gz")
    assert (image.header["sform_code"], image.header["qform_code"]) == (0, 0)
    assert image.header.get_zooms() == (1, 1, 1)
    assert bytes(image.header["descrip"]).startswith(b"no geometry; Grad-CAM of covid19")
    np.testing.assert_allclose(image.get_fdata() * 255, volume.transpose(2, 1, 0), atol=1e-3)


# ---- the montage -----------------------------------------------------------------------------------------------------
def answer(scan: str, intake: dict, class_names: Sequence[str] = CLASSES, members: int = 1, seed: int = 0) -> Answer:
    logits = torch.as_tensor(np.random.default_rng(seed).normal(size=(1, members, len(class_names))))
    return answer_scans({"scan": [scan], "reason": [""], "intake": [intake]}, logits, class_names)[0]


LONG = tuple(f"{'W' * i}interstitial-pneumonia/fibrosis_with $_{i}$ superinfection" for i in range(12))
MANY = [f"missing_slices: {i} of 80 slices are missing; {'the spacing is an average ' * i}" for i in range(20)]
ODD = "a/" + "Universitätsklinikum_Heidelberg/" * 6 + "W" * 120 + "/\u4e2d\udcff $x$\n"
CASES = {
    "plain": ("a/b/0001", CLASSES, 1, []),
    "much to say": (ODD, LONG, 5, MANY),
    "many classes": ("x.nii.gz", tuple(f"c{i}" for i in range(40)), 3, MANY[:1]),
}


@pytest.mark.parametrize("case", CASES)
def test_nothing_in_a_montage_lies_on_anything_else_or_outside(case: str) -> None:
    scan, names, members, told = CASES[case]
    intake = record((30, 40, 40), range(30), oblique("LPS", (0.7, 0.7, 2)), warnings=told)
    said = answer(scan, intake, names, members)
    figure = montage_figure(RNG.random((30, 24, 24)), RNG.random((30, 24, 24)), said, scan)
    texts = [text for text in figure.axes[0].texts if text.get_text()]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        boxes = [(text.get_text(), text.get_window_extent().padded(-1.5)) for text in texts]
    for text, box in boxes:
        assert figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1, text
        assert figure.bbox.y0 <= box.y0 and box.y1 <= figure.bbox.y1, text
    for (text, box), (other, its) in combinations(boxes, 2):
        assert not box.overlaps(its), (text, other)
    shown = "\n".join(text.get_text() for text in texts)
    assert NOTICE in shown
    assert f"{said.probabilities[said.prediction or '']:.3f}" in shown
    assert f"Quality warnings: {len(told) or 'none'}" in shown
    assert ("more classes, together" in shown) == (len(names) > 12)
    assert ("\u00b1" in shown) == (members > 1)


@pytest.mark.parametrize("shape", [(5, 224, 224), (20, 40, 40)], ids=str)
def test_a_montage_shows_the_networks_pixels_untouched(shape: tuple[int, int, int], tmp_path: Path) -> None:
    volume = np.rint(RNG.random(shape) * 255) / 255
    intake = record((40, 50, 50), range(10, 10 + shape[0]), oblique("LPS", (0.7, 0.7, 2)))
    figure = montage_figure(volume, np.zeros(shape), answer("s", intake), "s")
    figure.savefig(tmp_path / "m.png", dpi=DPI)
    picture = np.asarray(Image.open(tmp_path / "m.png").convert("RGB"))
    factor = max(1, 256 // shape[1])
    size = shape[1] * factor
    slices = np.kron(np.rint(volume * 255), np.ones((1, factor, factor)))[..., None].repeat(3, -1)
    found = []  # in the panel of the overlay, which is empty here and has no label
    for first in range(40, 120):
        panel = picture[first : first + size, MARGIN + size + GAP : MARGIN + 2 * size + GAP]
        found += [k for k in range(shape[0]) if (panel == slices[k]).all()]
    assert len(found) == 1
    shown = {text.get_text() for text in figure.axes[0].texts}
    expected = range(5) if shape[0] == 5 else (np.arange(8) * 2.5 + 1.25).astype(int)
    assert {f"slice {11 + k}" for k in expected} <= shown
    assert found[0] == expected[0]


# ---- the handler -----------------------------------------------------------------------------------------------------
class Bright(nn.Module):
    """Logits are means of features, each the volume or what is left of it to 1: Grad-CAM is the feature itself."""

    explained_layer = "stage"

    def __init__(self, classes: Sequence[int] = (1, -1, 0, 0)) -> None:
        super().__init__()
        self.stage = nn.Conv3d(1, len(classes), 1)
        self.scale = nn.Parameter(torch.ones(1))
        with torch.no_grad():
            self.stage.weight[:, 0, 0, 0, 0] = torch.tensor([float(sign) for sign in classes])
            self.stage.bias[:] = torch.tensor([float(sign < 0) for sign in classes])

    def forward(self, image: Tensor) -> Tensor:
        return self.scale * self.stage(image).mean((2, 3, 4))


SIZE, CROP, DEPTH = 12, 8, 5


def batch(scans: Sequence[str], reasons: Sequence[str] | None = None, seed: int = 0, **intake: Any) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    indices = [1, 2, 4, 6, 7]
    made = record((9, 24, 24), indices, oblique("LPS", (0.7, 0.7, 2)), **intake)
    return {
        "image": torch.as_tensor(rng.random((len(scans), 1, DEPTH, CROP, CROP)) ** 0.5, dtype=torch.float32),
        "scan": list(scans),
        "reason": list(reasons or [""] * len(scans)),
        "intake": [dict(made) for _ in scans],
    }


def infer(folder: Path, network: nn.Module, batches: list[dict], **changes: Any) -> OverlayWriter:
    members = len(network.networks) if isinstance(network, Ensemble) else 1
    overlay = OverlayWriter(folder / "overlays", network, CLASSES, SIZE, CROP, **changes)
    predictions = PredictionWriter(folder / "predictions.csv", CLASSES, members=members)
    SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=batches,
        network=network,
        val_handlers=[predictions, overlay],
        decollate=False,
    ).run()
    return overlay


def voxels(path: Path | None) -> np.ndarray:
    assert path is not None
    return nib.load(path).get_fdata().transpose(2, 1, 0)


def expected_map(activation: Tensor) -> np.ndarray:
    peak = activation / activation.max()
    return map_to_scan(peak[0].numpy(), [1, 2, 4, 6, 7], (9, 24, 24), SIZE, CROP) / 255


def test_each_answered_scan_has_its_montage_and_map(tmp_path: Path) -> None:
    given = [batch(["a/0001", "a/0002"]), batch(["../x.nii.gz", "broken"], ["", "no slice"], seed=1)]
    overlay = infer(tmp_path, Bright(), given)
    table = pd.read_csv(tmp_path / "predictions.csv").set_index("scan")
    assert table["status"].tolist() == ["ok", "ok", "ok", "failed"]
    assert table["prediction"][:3].tolist() == ["adenocarcinoma"] * 3  # the volumes are brighter than half
    images = {scan: image for part in given for scan, image in zip(part["scan"], part["image"], strict=True)}
    for scan in ("a/0001", "a/0002", "../x.nii.gz"):
        montage = overlay.montage_path(scan)
        assert montage is not None and montage.is_relative_to(tmp_path / "overlays")
        with Image.open(montage) as picture:
            assert picture.format == "PNG" and min(picture.size) > 600
        np.testing.assert_allclose(voxels(overlay.map_path(scan)), expected_map(images[scan]), atol=1.1 / 255)
    assert overlay.montage_path("a/0001") == tmp_path / "overlays" / "a" / "0001.png"
    assert overlay.map_path("a/0001") == tmp_path / "overlays" / "a" / "0001_map.nii.gz"
    assert overlay.montage_path("broken") is None and overlay.map_path("broken") is None
    assert len([path for path in (tmp_path / "overlays").rglob("*") if path.is_file()]) == 6


def test_the_explained_class_is_that_of_the_answer_and_the_weights_those_of_the_run(tmp_path: Path) -> None:
    """Weights that come after the handler was made, as a checkpoint's do, turn the answer to the dark class."""
    network = Bright()
    overlay = OverlayWriter(tmp_path, network, CLASSES, SIZE, CROP)
    network.scale.data[:] = -1.0
    given = batch(["s"])
    engine = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=[given],
        network=network,
        val_handlers=[PredictionWriter(tmp_path / "p.csv", ["x", "y", "z", "w"]), overlay],
        decollate=False,
    )
    overlay.class_names = ("x", "y", "z", "w")
    engine.run()
    assert engine.state.answers[0].prediction in ("z", "w")  # 0, and the others are below
    assert overlay.montage_path("s") is not None
    assert not voxels(overlay.map_path("s")).any()  # nothing raises a class whose logit is 0 everywhere
    network.scale.data[:] = 1.0
    engine.run()
    assert engine.state.answers[0].prediction == "x"
    np.testing.assert_allclose(voxels(overlay.map_path("s")), expected_map(given["image"][0]), atol=1.1 / 255)


def test_an_ensemble_is_explained_by_the_mean_of_its_members(tmp_path: Path) -> None:
    """One member looks at the bright, one at the dark; in scale they differ by 1000, which must not matter."""
    looks_at_dark = Bright((-1, 1, 0, 0))
    looks_at_dark.scale.data[:] = 1e-3
    given = batch(["s"])
    network = Ensemble([Bright(), looks_at_dark])
    overlay = infer(tmp_path, network, [given])
    assert pd.read_csv(tmp_path / "predictions.csv")["prediction"].tolist() == ["adenocarcinoma"]
    image = given["image"][0]
    dark = 1 - image
    mean = image / image.max() + dark / dark.max()
    np.testing.assert_allclose(voxels(overlay.map_path("s")), expected_map(mean), atol=1.1 / 255)
    listed = OverlayWriter(tmp_path, list(network.networks), CLASSES, SIZE, CROP)
    np.testing.assert_allclose(listed._activation(image, 0, DEPTH), (mean / mean.max())[0].numpy(), atol=1e-6)


def test_a_mirrored_volume_is_explained_the_right_way_round(tmp_path: Path) -> None:
    """Its activation is turned back: a network that knows no sides is explained as without mirroring."""
    given = batch(["s"])
    maps = [voxels(infer(tmp_path, Bright(), [given], mirror=mirror).map_path("s")) for mirror in (False, True)]
    np.testing.assert_allclose(maps[1], maps[0], atol=1.1 / 255)


def test_a_short_scan_that_is_padded_is_explained_without_the_padding(tmp_path: Path) -> None:
    given = batch(["s"])
    given["image"][:, :, 3:] = -1.0
    given["intake"][0]["indices"] = [0, 1, 2]
    given["intake"][0]["shape"] = [3, 24, 24]
    made = voxels(infer(tmp_path, Bright(), [given]).map_path("s"))
    dark = 1 - given["image"][0, :, :3]  # the padding makes the volume dark
    expected = map_to_scan((dark / dark.max())[0].numpy(), [0, 1, 2], (3, 24, 24), SIZE, CROP) / 255
    np.testing.assert_allclose(made, expected, atol=1.1 / 255)


@pytest.mark.fault(
    "wrong", "a picture or map that was asked for cannot be made",
    before="a line of the log, and an answer without a warning", now="a warning in the answer's row, and counted",
)  # fmt: skip
def test_what_fails_is_a_warning_that_names_the_scan_and_costs_nothing_else(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    given = batch(["fine", "odd", "no shape", "taken"])
    given["intake"][1]["indices"] = [0, 1]
    given["intake"][2]["shape"] = None
    (tmp_path / "overlays" / "taken_map.nii.gz").mkdir(parents=True)
    (tmp_path / "overlays" / "odd.png").write_bytes(b"of an earlier run")
    with caplog.at_level(logging.WARNING, "fairlung.pipeline.inference.answers"):
        overlay = infer(tmp_path, Bright(), [given])
    table = pd.read_csv(tmp_path / "predictions.csv", keep_default_na=False)
    assert table["status"].tolist() == ["ok"] * 4
    said = ["no_overlay: 2 indices of a volume of 5 slices", "no_map: the scan's shape is not known"]
    assert table["warnings"].tolist() == ["", *said, "no_overlay: Is a directory"]
    assert [m for m in caplog.messages if ": no_" in m] == [
        f"{scan}: {warning}" for scan, warning in zip(table["scan"][1:], table["warnings"][1:], strict=True)
    ]
    assert overlay.map_path("fine") is not None
    assert overlay.montage_path("no shape") is not None and overlay.map_path("no shape") is None
    assert overlay.montage_path("odd") is None and not (tmp_path / "overlays" / "odd.png").exists()
    left = {path.name for path in (tmp_path / "overlays").iterdir()}
    assert left == {"fine.png", "fine_map.nii.gz", "no shape.png", "taken_map.nii.gz"}


def test_a_scan_that_fails_now_keeps_no_overlay_of_an_earlier_run(tmp_path: Path) -> None:
    infer(tmp_path, Bright(), [batch(["s"])])
    overlay = infer(tmp_path, Bright(), [batch(["s"], ["gone"])])
    assert overlay.montage_path("s") is None
    assert not any((tmp_path / "overlays").iterdir())


def test_the_network_is_left_as_it_was(tmp_path: Path) -> None:
    network = Bright().train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    infer(tmp_path, network, [batch(["s"])])
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in network.parameters())
    assert not network.stage._forward_hooks and not network.stage._forward_pre_hooks
    assert not network.stage._backward_hooks


def test_maps_and_names_can_be_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    titles = []

    def figure(*arguments: Any) -> Any:
        titles.append(arguments[-1])
        return montage_figure(*arguments)

    monkeypatch.setattr("fairlung.pipeline.explain.overlays.montage_figure", figure)
    overlay = infer(tmp_path, Bright(), [batch(["Doe_John"])], maps=False, named=False)
    assert [path.name for path in (tmp_path / "overlays").iterdir()] == ["Doe_John.png"]
    assert overlay.map_path("Doe_John") is None
    assert titles == ["Chest CT"]


def test_settings_that_cannot_work_are_refused_at_once(tmp_path: Path) -> None:
    for size in (0, -1, 2.5, True):
        with pytest.raises(ValueError, match=f"crop_size must be a whole number of at least 1, got {size!r}"):
            OverlayWriter(tmp_path, Bright(), CLASSES, 12, size)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="network must be at least one"):
        OverlayWriter(tmp_path, [], CLASSES, 12, 8)
    with pytest.raises(ValueError, match="target_layer: the network has no module 'layer9'"):
        OverlayWriter(tmp_path, Bright(), CLASSES, 12, 8, target_layer="layer9").attach(Engine(lambda *_: None))


def test_a_handler_in_the_wrong_place_is_told_so(tmp_path: Path) -> None:
    overlay = OverlayWriter(tmp_path, Bright(), CLASSES, SIZE, CROP)
    with pytest.raises(RuntimeError, match="must be attached after the PredictionWriter"):
        SupervisedEvaluator(
            device=torch.device("cpu"), val_data_loader=[batch(["s"])], network=Bright(), val_handlers=[overlay],
            decollate=False,
        )  # fmt: skip
