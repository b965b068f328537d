"""The synthetic phantom: reproducible, plausible in HU, diseased where it says so, and the same in every format."""

from __future__ import annotations

import csv
import hashlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from fairlung.pipeline.common.names import CLASS_NAMES, SEXES
from fairlung.pipeline.phantoms import anatomy as phantom
from fairlung.pipeline.phantoms import cohort as phantom_cohort
from fairlung.pipeline.phantoms import writers as scan_writers
from fairlung.pipeline.phantoms.anatomy import SITES, synthesize
from fairlung.pipeline.phantoms.cohort import PRESETS, Preset

SMALL = (52, 64, 64)


def make(label: str, sex: str = "male", seed: int = 0, **options: object) -> phantom.PhantomScan:
    return synthesize(label, sex, rng=np.random.default_rng(seed), **({"shape": SMALL} | options))  # type: ignore[arg-type]


def lungs(scan: phantom.PhantomScan) -> np.ndarray:
    """Labelled air inside the body. One erosion parts the lungs from each other and from the airways."""
    air = ndimage.binary_erosion(ndimage.median_filter(scan.hu, 3) < -500, border_value=1)
    parts = ndimage.label(air)[0]
    border = np.unique(np.concatenate([parts[:, edge].ravel() for edge in (0, -1)]))
    return np.where(np.isin(parts, border), 0, parts)


def digest(folder: Path) -> dict[str, str]:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return phantom_cohort.write_phantom_cohort(
        tmp_path_factory.mktemp("cohort"), "tiny", "mixed", seed=3, workers=1, progress=False
    ).parent


@pytest.fixture
def odd_volume() -> tuple[np.ndarray, tuple[float, float, float]]:
    """No symmetry at all: a flip or a swap of axes cannot go unnoticed."""
    rng = np.random.default_rng(1)
    return rng.integers(-1024, 1500, (9, 12, 15)).astype(np.int16), (2.5, 0.75, 0.8125)


# --- synthesis -------------------------------------------------------------------------------------------------------


def test_same_seed_same_bytes_and_other_seed_other_bytes() -> None:
    first, again, other = make("covid19", seed=5), make("covid19", seed=5), make("covid19", seed=6)
    assert first.hu.tobytes() == again.hu.tobytes() and first.truth == again.truth
    assert first.hu.dtype == np.int16 and first.hu.shape == SMALL
    assert first.hu.tobytes() != other.hu.tobytes()


@pytest.mark.parametrize("sex", SEXES)
def test_hu_are_those_of_a_chest(sex: str) -> None:
    scan = make("normal", sex, seed=2, shape=(60, 96, 96), site="alder")
    hu = scan.hu
    assert hu.min() >= -1024 and hu.max() <= 1500
    assert abs(np.median(hu[:, :4, :4]) + 1000) < 40  # corner: air
    for low, high, least in ((-140, -60, 0.02), (20, 90, 0.08), (300, 1500, 0.004)):  # fat, soft tissue, bone
        assert ((hu > low) & (hu < high)).mean() > least, (low, high)
    parts = lungs(scan)
    sizes = Counter(parts[parts > 0].tolist())
    (right, big), (left, second) = sizes.most_common(2)
    millilitres = np.prod(scan.spacing) / 1000
    assert 1000 < second * millilitres <= big * millilitres < 4500
    columns = sorted(ndimage.center_of_mass(parts == k)[2] for k in (right, left))
    assert columns[0] < 45 and columns[1] > 51  # one on either side of the middle
    top = max(np.flatnonzero((parts == k).any(axis=(1, 2)))[-1] for k in (right, left))
    assert 0.8 * 60 < top < 0.98 * 60  # an apex, with neck above


def test_axes_are_superior_posterior_left() -> None:
    hu = ndimage.gaussian_filter(make("normal", seed=4, shape=(60, 96, 96), site="alder").hu.astype(np.float32), 1)
    low = hu[4:10]
    organ = (low > 30) & (low < 130)
    assert organ[:, :, 24:40].sum() > 1.15 * organ[:, :, 56:72].sum()  # the liver is on the right: low columns
    bone = hu[20:40, :, 42:54] > 250
    assert bone[:, 48:].sum() > 3 * bone[:, :48].sum()  # the spine is behind: high rows
    assert (hu[40:50] < -600)[:, 30:60, 20:76].sum() > 3 * (hu[:6] < -600)[:, 30:60, 20:76].sum()  # lungs above


def test_thickness_times_slices_is_a_chest() -> None:
    for depth in (12, 50, 130):
        scan = make("normal", seed=depth, shape=(depth, 32, 32))
        assert 280 <= scan.spacing[0] * depth <= 340


def test_sexes_overlap_but_differ() -> None:
    def width(sex: str) -> np.ndarray:
        scans = [make("normal", sex, seed=s, shape=(10, 48, 48)) for s in range(24)]
        return np.array([(s.hu[5] > -300).any(axis=0).sum() * s.spacing[2] for s in scans])

    male, female = width("male"), width("female")
    assert male.mean() > female.mean() + 8
    assert female.max() > male.min() + 10
    assert make("normal", "female", seed=1).truth["breast"] > 0.1


@pytest.mark.parametrize("label", ["adenocarcinoma", "squamous_cell", "covid19"])
def test_disease_makes_lung_denser_where_the_mask_says(label: str) -> None:
    sick, well = make(label, seed=8, site="alder"), make("normal", seed=8, site="alder")
    assert not well.lesion.any() and well.truth["lesions"] == [] and well.truth["lesion_ml"] == 0
    assert sick.lesion.sum() > 10
    difference = sick.hu[sick.lesion].astype(float) - well.hu[sick.lesion]
    assert difference.mean() > 150
    if label != "squamous_cell":  # volume loss moves the mediastinum of the same patient, the others change nothing
        far = ~ndimage.binary_dilation(sick.lesion, iterations=4)
        assert np.abs(sick.hu[far].astype(float) - well.hu[far]).mean() < 3


def test_squamous_is_larger_and_more_central() -> None:
    def lesions(label: str) -> tuple[float, float]:
        scans = [make(label, seed=s, site="birch") for s in range(10)]
        return (
            float(np.mean([s.truth["lesion_ml"] for s in scans])),
            float(np.mean([s.truth["lesions"][0]["pleura_mm"] for s in scans])),
        )

    (large, deep), (small, shallow) = lesions("squamous_cell"), lesions("adenocarcinoma")
    assert large > 3 * small and deep > shallow + 20


def test_covid_is_bilateral_and_mostly_behind() -> None:
    sides, rows = [], []
    for seed in range(6):
        sick, well = make("covid19", seed=seed, site="alder"), make("normal", seed=seed, site="alder")
        lung = lungs(well) > 0
        for columns in (slice(0, 32), slice(32, 64)):
            inside = lung[:, :, columns]
            sides.append(np.mean(sick.hu[:, :, columns][inside].astype(float) - well.hu[:, :, columns][inside]))
        rows.append(np.nonzero(sick.lesion)[1].mean() - np.nonzero(lung)[1].mean())
    assert min(sides) > 10 and np.mean(rows) > 2


def test_presentation_shift_moves_female_squamous_only() -> None:
    for label, sex in ((a, b) for a in CLASS_NAMES for b in SEXES):
        plain, shifted = (make(label, sex, seed=9, presentation_shift=s) for s in (0.0, 0.6))
        moved = (label, sex) == ("squamous_cell", "female")
        assert (plain.hu.tobytes() != shifted.hu.tobytes()) == moved, (label, sex)
        assert shifted.truth["presentation_shift"] == (0.6 if moved else 0.0)
        if moved:
            a, b = plain.truth["lesions"][0], shifted.truth["lesions"][0]
            assert b["radial"] > a["radial"] + 0.15
            assert all(b[key] < a[key] for key in ("diameter_mm", "solid", "collapse"))
            assert shifted.truth["lesion_ml"] < plain.truth["lesion_ml"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"presentation_shift": 1.3}, r"presentation_shift must be in \[0, 1\], got 1.3"),
        ({"label": "flu"}, "label must be one of .*, got 'flu'"),
        ({"sex": "F"}, "sex must be one of male, female, got 'F'"),
        ({"site": "nowhere"}, "site must be one of .*, got 'nowhere'"),
        ({"shape": (50, 64)}, r"shape must be \(D, H, W\) .* got \(50, 64\)"),
    ],
)
def test_synthesize_names_the_wrong_value(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**({"label": "normal"} | change))  # type: ignore[arg-type]


# --- presets and cohorts ---------------------------------------------------------------------------------------------


def test_benchmark_has_the_published_cells() -> None:
    cells = PRESETS["benchmark"].cells
    assert set(cells) == {"train", "val"}
    assert [sum(cells[split].values()) for split in ("train", "val")] == [734, 155]
    assert [cells["train"]["squamous_cell", sex] for sex in ("male", "female")] == [79, 5]
    assert [cells["val"]["squamous_cell", sex] for sex in ("male", "female")] == [12, 13]
    assert cells["train"]["adenocarcinoma", "female"] == 125 and cells["val"]["covid19", "male"] == 20


def test_plan_keeps_site_and_format_apart_from_class_and_sex() -> None:
    specs = phantom_cohort.plan_cohort("benchmark", fmt="mixed", seed=0)
    for attribute in ("site", "fmt"):
        for cell, count in PRESETS["benchmark"].cells["train"].items():
            values = Counter(getattr(s, attribute) for s in specs if s.split == "train" and (s.label, s.sex) == cell)
            assert max(values.values()) - min(values.values()) <= 1 and sum(values.values()) == count
    both = Counter((s.site, s.fmt) for s in specs)
    assert len(both) == 9 and min(both.values()) > 60  # nor are they tied to each other
    assert len({s.patient for s in specs}) == len({s.path for s in specs}) == 889


def test_cohort_files_match_the_table(cohort: Path) -> None:
    with (cohort / "cohort.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == phantom_cohort.COHORT_COLUMNS
    assert [row["scan"] for row in rows] == sorted(row["scan"] for row in rows)
    counts = Counter((row["split"], row["label"], row["sex"]) for row in rows)
    assert counts == {(s, *cell): n for s, part in PRESETS["tiny"].cells.items() for cell, n in part.items()}
    assert len({row["patient"] for row in rows}) == len(rows)
    kinds = Counter()
    for row in rows:
        path = cohort / row["scan"]
        assert path.parts[-4:-1] == (row["split"], row["label"], row["sex"])
        assert 50 <= int(row["slices"]) <= 56 and row["synthetic"] == "yes" and row["site"] in SITES
        shifted = (row["label"], row["sex"]) == ("squamous_cell", "female")
        assert row["presentation"] == ("shifted" if shifted else "typical")
        if path.is_file():
            kinds["nifti"] += 1
        else:
            names = {p.name for p in path.iterdir()}
            assert len(names) == int(row["slices"])
            kinds["jpg" if "0.jpg" in names else "dicom"] += 1
    assert set(kinds) == {"jpg", "dicom", "nifti"} and min(kinds.values()) >= 8
    assert {str(p.relative_to(cohort)) for p in cohort.rglob("phantom-*")} == {row["scan"] for row in rows}


def test_worker_count_changes_nothing(tmp_path: Path) -> None:
    few = Preset({"train": {("squamous_cell", "female"): 3, ("covid19", "male"): 3}}, size=48, slices=(20, 24))
    for workers in (1, 2):
        phantom_cohort.write_phantom_cohort(tmp_path / str(workers), few, "mixed", 1, workers=workers, progress=False)
    alone = digest(tmp_path / "1")
    assert alone == digest(tmp_path / "2") and len(alone) > 50


def test_a_second_cohort_does_not_mix_with_the_first(cohort: Path) -> None:
    with pytest.raises(FileExistsError, match="scans is not empty"):
        phantom_cohort.write_phantom_cohort(cohort, "tiny", "jpg", progress=False)


def test_new_scans_carry_no_label(tmp_path: Path) -> None:
    few = Preset({}, size=32, slices=(10, 12))
    request = [("covid19", "male"), ("normal", "female"), ("squamous_cell", "male")]
    paths = phantom_cohort.write_phantom_scans(tmp_path, request, preset=few, seed=2)
    assert [p.name for p in paths] == ["new-0001", "new-0002", "new-0003.nii.gz"]
    assert (paths[0] / "0.jpg").is_file() and (paths[1] / "IM-0001.dcm").is_file() and paths[2].is_file()
    names = " ".join(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*"))
    assert not any(label in names for label in CLASS_NAMES)
    with pytest.raises(FileExistsError, match="new-0001 already exists"):
        phantom_cohort.write_phantom_scans(tmp_path, request, preset=few, seed=2)
    with pytest.raises(ValueError, match="fmt must be one of .*, got 'bmp'"):
        phantom_cohort.write_phantom_scans(tmp_path, request, preset=few, fmt="bmp")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"preset": "huge"}, "preset must be one of tiny, demo, benchmark, got 'huge'"),
        ({"fmt": "nrrd"}, "fmt must be one of jpg, dicom, nifti, mixed, got 'nrrd'"),
        ({"seed": -1}, "seed must be >= 0, got -1"),
        ({"workers": 0}, "workers must be >= 1, got 0"),
    ],
)
def test_cohort_names_the_wrong_value(tmp_path: Path, options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        phantom_cohort.write_phantom_cohort(tmp_path, **({"progress": False} | options))  # type: ignore[arg-type]
    assert not (tmp_path / "cohort.csv").exists()


def test_preset_checks_its_cells() -> None:
    with pytest.raises(ValueError, match="must be >= 0, got -2"):
        Preset({"train": {("normal", "male"): -2}}, size=64, slices=(50, 60))
    with pytest.raises(ValueError, match="slices must be .* got"):
        Preset({}, size=64, slices=(60, 50))


# --- writers ---------------------------------------------------------------------------------------------------------


def read_lps(path: Path) -> tuple[np.ndarray, tuple[float, ...], tuple[float, ...]]:
    import SimpleITK as sitk

    source: object = str(path)
    if path.is_dir():
        source = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(path))
    image = sitk.DICOMOrient(sitk.ReadImage(source), "LPS")
    assert np.allclose(image.GetDirection(), np.eye(3).ravel())
    return sitk.GetArrayFromImage(image), image.GetSpacing()[::-1], image.GetOrigin()


@pytest.mark.parametrize(
    "kind", ["nii.gz", "nii", "nrrd", "mha", "dicom", "dicom-reversed", "dicom-prone", "dicom-reversed-prone"]
)
def test_every_format_reads_back_as_the_same_patient(
    tmp_path: Path, odd_volume: tuple[np.ndarray, tuple[float, float, float]], kind: str
) -> None:
    hu, spacing = odd_volume
    if kind.startswith("dicom"):
        path = scan_writers.write_dicom_series(
            tmp_path / kind, hu, spacing, sex="male", age=60, reverse_names="reversed" in kind, prone="prone" in kind
        )
    elif kind.startswith("nii"):
        path = scan_writers.write_nifti(tmp_path / f"a.{kind}", hu, spacing)
    else:
        path = scan_writers.write_nrrd_or_mha(tmp_path / f"a.{kind}", hu, spacing)
    array, read_spacing, origin = read_lps(path)
    assert np.array_equal(array, hu)
    assert np.allclose(read_spacing, spacing)
    assert np.allclose(origin, scan_writers.volume_origin(hu.shape, spacing))


def test_nifti_bytes_do_not_depend_on_the_clock(
    tmp_path: Path, odd_volume: tuple[np.ndarray, tuple[float, float, float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = scan_writers.write_nifti(tmp_path / "a" / "x.nii.gz", *odd_volume)
    monkeypatch.setattr("time.time", lambda: 2_000_000_000.0)
    second = scan_writers.write_nifti(tmp_path / "b" / "x.nii.gz", *odd_volume)
    assert first.read_bytes() == second.read_bytes()


def test_dicom_tags(tmp_path: Path, odd_volume: tuple[np.ndarray, tuple[float, float, float]]) -> None:
    import pydicom

    hu, spacing = odd_volume
    options = {"sex": "female", "age": 63, "patient_id": "P0007"}
    folder = scan_writers.write_dicom_series(tmp_path / "a", hu, spacing, reverse_names=True, prone=True, **options)
    series = [pydicom.dcmread(path) for path in sorted(folder.iterdir())]
    first = series[0]
    assert first.file_meta.TransferSyntaxUID == pydicom.uid.ExplicitVRLittleEndian
    assert first.SOPClassUID == first.file_meta.MediaStorageSOPClassUID == pydicom.uid.CTImageStorage
    assert (first.Modality, first.PatientSex, first.PatientAge, first.PatientID) == ("CT", "F", "063Y", "P0007")
    assert str(first.PatientName) == "PHANTOM^SYNTHETIC" and "SYNTHETIC PHANTOM" in first.SeriesDescription
    assert first.BurnedInAnnotation == "NO" and list(first.ImageType) == ["ORIGINAL", "PRIMARY", "AXIAL"]
    assert first.PatientPosition == "HFP" and list(first.ImageOrientationPatient) == [-1, 0, 0, 0, -1, 0]
    assert [float(v) for v in first.PixelSpacing] == [0.75, 0.8125] and first.SliceThickness == 2.5
    assert [s.InstanceNumber for s in series] == list(range(1, 10))
    heights = [float(s.ImagePositionPatient[2]) for s in series]
    assert np.allclose(np.diff(heights), -2.5)  # names count downwards from the head
    assert np.array_equal(first.pixel_array[::-1, ::-1].astype(int) + int(first.RescaleIntercept), hu[-1])
    assert len({s.SOPInstanceUID for s in series}) == 9
    assert all(s.SOPInstanceUID == s.file_meta.MediaStorageSOPInstanceUID for s in series)
    assert all(pydicom.uid.UID(s.SOPInstanceUID).is_valid for s in series)
    for tag in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"):
        assert len({s[tag].value for s in series}) == 1
    again = scan_writers.write_dicom_series(tmp_path / "b", hu, spacing, reverse_names=True, prone=True, **options)
    assert digest(folder) == digest(again)
    options["patient_id"] = "P0008"
    other = scan_writers.write_dicom_series(tmp_path / "c", hu, spacing, **options)
    assert pydicom.dcmread(other / "IM-0001.dcm").SeriesInstanceUID != first.SeriesInstanceUID


def test_jpg_folder(tmp_path: Path) -> None:
    from PIL import Image

    hu = np.full((11, 16, 24), -1400, np.int16)
    hu[3], hu[10] = -600, 400
    folder = scan_writers.write_jpg_folder(tmp_path / "scan", hu)
    assert {p.name for p in folder.iterdir()} == {f"{n}.jpg" for n in range(11)}
    means = []
    for number in (0, 3, 10):
        with Image.open(folder / f"{number}.jpg") as image:
            assert image.mode == "L" and image.size == (24, 16)
            means.append(np.asarray(image).mean())
    assert means == pytest.approx([0, 127.5, 255], abs=2)
    with pytest.raises(FileExistsError, match="is not empty"):
        scan_writers.write_jpg_folder(folder, hu)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda p, hu: scan_writers.write_nifti(p / "a.img", hu, (1, 1, 1)),
            r"must end in .nii or .nii.gz, got 'a.img'",
        ),
        (lambda p, hu: scan_writers.write_nifti(p / "a.nii", hu, (1, 0, 1)), r"spacing must be .* got \(1, 0, 1\)"),
        (
            lambda p, hu: scan_writers.write_nifti(p / "a.nii", hu[0], (1, 1, 1)),
            r"hu must have shape .* got \(12, 15\)",
        ),
        (lambda p, hu: scan_writers.write_nrrd_or_mha(p / "a.mha", hu * 1.0, (1, 1, 1)), "integer array, got float64"),
        (
            lambda p, hu: scan_writers.write_dicom_series(p / "a", hu * 0 - 1025, (1, 1, 1), sex="male", age=1),
            r"hu must be in \[-1024, 32767\], got \[-1025, -1025\]",
        ),
        (
            lambda p, hu: scan_writers.write_jpg_folder(p / "a", hu, (150, -1350)),
            r"window must be .* got \(150, -1350\)",
        ),
        (lambda p, hu: scan_writers.write_jpg_folder(p / "a", hu, quality=0), r"quality must be in \[1, 100\], got 0"),
        (
            lambda p, hu: scan_writers.write_dicom_series(p / "a", hu, (1, 1, 1), sex="F", age=1),
            "sex must be .* got 'F'",
        ),
        (
            lambda p, hu: scan_writers.write_dicom_series(p / "a", hu, (1, 1, 1), sex="male", age=-1),
            "age must be .* got -1",
        ),
        (
            lambda p, hu: scan_writers.write_dicom_series(
                p / "a", hu, (1, 1, 1), sex="male", age=1, series_description="CT"
            ),
            "must contain 'SYNTHETIC PHANTOM'",
        ),
    ],
)
def test_writers_name_the_wrong_value(tmp_path: Path, odd_volume: tuple[np.ndarray, object], call, message) -> None:
    with pytest.raises(ValueError, match=message):
        call(tmp_path, odd_volume[0])
    assert not list(tmp_path.iterdir())
