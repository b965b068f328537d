"""Damaged scans are refused, warned of, or answered right: whatever bytes a file holds.

What no reader can detect is left out by name: values of single pixels where a format has no checksum (native and
compressed DICOM, JPEG, NIfTI and the others while not compressed), and headers that say something else that is
plausible. For the latter another reader of the same file is the oracle.
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import planted_defects as planted
import pydicom
import pytest
import SimpleITK as sitk
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from fairlung.transforms import LoadScan, ScanError, find_scans
from fairlung.transforms.load_scan import LUNG_WINDOW

SIZE = planted.PNG_SIZE
LOAD = LoadScan(size=SIZE)
THINNED = slice(None, None, 2)  # every second slice of the clean chest: cheaper, and draws the warnings below
OWN_WARNINGS = {"few_slices", "thick_steps"}

fuzz = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], print_blob=False)


def few(examples: int) -> settings:
    return settings(fuzz, max_examples=examples)


# --- what a reader may answer ----------------------------------------------------------------------------------------


def windowed(hu: np.ndarray) -> np.ndarray:
    low, high = LUNG_WINDOW
    return np.clip((hu.astype(float) - low) / (high - low), 0, 1)


def read(path: Path) -> tuple[np.ndarray | None, set[str]]:
    """Volume and codes of warnings, or None where it is refused; anything but ScanError is a failure."""
    try:
        volume, record = LOAD.read(path)
    except ScanError as error:
        record = error.record or {}
        volume = None
    if volume is None:
        assert record["status"] in ("refused", "skipped") and record["reason"]
        return None, set()
    assert volume.isfinite().all() and volume.min() >= 0 and volume.max() <= 1
    return volume[0].numpy(), {warning.split(":")[0] for warning in record["warnings"]}


def equal(one: np.ndarray, other: np.ndarray) -> bool:
    return one.shape == other.shape and bool(np.abs(one - other).max() <= 1e-4)


def turns(volume: np.ndarray) -> Iterator[np.ndarray]:
    """The volume with its axes in every order and direction."""
    for order in itertools.permutations(range(3)):
        for axes in itertools.chain.from_iterable(itertools.combinations(range(3), n) for n in range(4)):
            yield np.flip(volume.transpose(order), axes)


def check(path: Path, *right: np.ndarray | Callable[[], np.ndarray], own: set[str] = OWN_WARNINGS) -> None:
    """Refused, or warned of beyond what the undamaged scan draws, or one of the right volumes."""
    volume, warned = read(path)
    if volume is None or warned - own:
        return
    assert any(equal(volume, each() if callable(each) else each) for each in right), "a wrong volume passes for good"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


def replaced(data: bytes, changes: list[tuple[float, int]], within: int | None = None) -> bytes:
    """Bytes with some of the first ``within`` set to other values; places are shares of them."""
    damaged = bytearray(data)
    for share, value in changes:
        damaged[int(share * (len(data) if within is None else within))] = value
    return bytes(damaged)


SHARES = st.floats(0, 1, exclude_max=True)
CHANGES = st.lists(st.tuples(SHARES, st.integers(0, 255)), min_size=1, max_size=3)
CUTS = st.one_of(SHARES, st.integers(1, 64))  # a share of the file that is left, or bytes that are missing


def cut(data: bytes, where: float | int) -> bytes:
    return data[:-where] if isinstance(where, int) else data[: int(where * len(data))]


# --- DICOM -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def series(folder: Path) -> Path:
    """Every second slice of the clean series."""
    path = planted.write_clean(folder / "series")
    planted.removed(range(1, 40, 2))(path)
    return path


@pytest.fixture(scope="module")
def volume() -> np.ndarray:
    return windowed(planted.clean_volume()[0][THINNED])


@pytest.fixture
def restored(series: Path) -> Iterator[Path]:
    """The series, and as it was after each test."""
    before = {file: file.read_bytes() for file in series.iterdir()}
    yield series
    restore(before)


def restore(before: dict[Path, bytes]) -> None:
    for file, data in before.items():
        file.write_bytes(data)


def header_length(data: bytes) -> int:
    return data.index(b"\xe0\x7f\x10\x00")  # of the pixels


def by_itk(series: Path) -> np.ndarray:
    """What SimpleITK makes of the series: every file by itself, in the order of their positions."""
    found = []
    for file in series.glob("*.dcm"):
        image = sitk.ReadImage(str(file))
        if image.GetNumberOfComponentsPerPixel() == 1:
            found.append((image.GetOrigin()[2], sitk.GetArrayFromImage(sitk.DICOMOrient(image, "LPS"))[0]))
    return windowed(np.stack([plane for _, plane in sorted(found, key=lambda each: each[0])]))


@pytest.mark.slow
@few(90)
@given(index=st.sampled_from([0, 7, 19]), changes=CHANGES)
def test_bytes_of_a_header(series: Path, volume: np.ndarray, index: int, changes: list[tuple[float, int]]) -> None:
    """Of one slice. One of another series or patient is no slice of the scan; of the ends nobody misses it."""
    file = planted.files_of(series)[index]
    data = file.read_bytes()
    try:
        file.write_bytes(replaced(data, changes, header_length(data)))
        check(series, volume, np.delete(volume, index, axis=0) if index in (0, 19) else volume)
    finally:
        file.write_bytes(data)


@few(40)
@given(index=st.sampled_from([0, 7, 19]), where=CUTS)
def test_a_slice_cut_anywhere(series: Path, volume: np.ndarray, index: int, where: float | int) -> None:
    file = planted.files_of(series)[index]
    data = file.read_bytes()
    try:
        file.write_bytes(cut(data, where))
        check(series)
    finally:
        file.write_bytes(data)


NUMBERS = st.one_of(st.integers(-5000, 5000), st.floats(-1e4, 1e4).map(lambda value: round(value, 3)))
DECIMALS = NUMBERS.map(str)
VALUES = {
    "RescaleSlope": DECIMALS,
    "RescaleIntercept": DECIMALS,
    "ImagePositionPatient": st.lists(DECIMALS, min_size=0, max_size=4),
    "ImageOrientationPatient": st.lists(st.sampled_from(["0", "1", "-1", "0.6", "0.8"]), min_size=6, max_size=6),
    "PixelSpacing": st.lists(DECIMALS, min_size=1, max_size=3),
    "NumberOfFrames": st.integers(-5, 2**31 - 1).map(str),
    "Rows": st.integers(0, 65535),
    "Columns": st.integers(0, 65535),
    "BitsAllocated": st.sampled_from([1, 8, 16, 32, 12]),
    "BitsStored": st.integers(0, 32),
    "HighBit": st.integers(0, 32),
    "PixelRepresentation": st.integers(0, 2),
    "SamplesPerPixel": st.integers(0, 4),
    "PhotometricInterpretation": st.sampled_from(["MONOCHROME1", "RGB", "PALETTE COLOR", "YBR_FULL", ""]),
    "ImageType": st.lists(st.sampled_from(["ORIGINAL", "DERIVED", "PRIMARY", "AXIAL", "MPR", "MIP", ""]), max_size=4),
    "Modality": st.sampled_from(["", "CT", "MR", "OT"]),
    "SOPClassUID": st.sampled_from(["", "1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.5.1.4.1.1.2.1", "1.2"]),
    "AcquisitionNumber": st.integers(-3, 3).map(str),
    "InstanceNumber": st.integers(-3, 3).map(str),
    "GantryDetectorTilt": DECIMALS,
    "RescaleType": st.sampled_from(["HU", "US", "OD", "", "HU "]),
    "SliceThickness": DECIMALS,
    "SpacingBetweenSlices": DECIMALS,
    "PatientPosition": st.sampled_from(["HFS", "FFP", "HFDL", ""]),
}
ELEMENTS = st.sampled_from(sorted(VALUES)).flatmap(lambda name: st.tuples(st.just(name), VALUES[name]))


@pytest.mark.slow
@few(70)
@given(elements=st.lists(ELEMENTS, min_size=1, max_size=2), everywhere=st.booleans())
@example(elements=[("RescaleIntercept", "-1000")], everywhere=True)  # plausible: what another reader makes of it
@example(elements=[("NumberOfFrames", "2147483647")], everywhere=True)
@example(elements=[("BitsStored", 12), ("HighBit", 15)], everywhere=True)
@example(elements=[("ImageOrientationPatient", ["0", "1", "0", "-1", "0", "0"])], everywhere=True)
@pytest.mark.filterwarnings("ignore")  # of pydicom, which writes values that are none
def test_values_of_elements(
    series: Path, volume: np.ndarray, elements: list[tuple[str, Any]], everywhere: bool
) -> None:
    before = {file: file.read_bytes() for file in series.iterdir()}

    def change(dataset: Any, index: int) -> None:
        for name, value in elements:
            dataset[name].value = value if name in dataset else setattr(dataset, name, value)

    try:
        with pydicom.config.disable_value_validation():
            planted.edit(series, change, None if everywhere else [7])
        check(series, volume, lambda: by_itk(series))
    finally:
        restore(before)


@pytest.fixture(scope="module")
def packed(folder: Path) -> dict[str, Path]:
    """The first twelve slices of the clean series in each compression, or a real slice that is so compressed."""
    found = {}
    for syntax in ("RLELossless", "JPEG2000Lossless"):
        found[syntax] = planted.write_clean(folder / syntax)
        planted.removed(range(12, 40))(found[syntax])
        planted.compressed(syntax)(found[syntax])
    for syntax, number in (("JPEGLSLossless", 80), ("JPEGLossless", 70)):
        found[syntax] = folder / syntax
        found[syntax].mkdir()
        shutil.copy(planted.DATA / "ct_syntaxes" / f"1.2.840.10008.1.2.4.{number}.dcm", found[syntax])
    return found


@pytest.mark.parametrize("syntax", ["RLELossless", "JPEGLSLossless", "JPEG2000Lossless", "JPEGLossless"])
def test_compressed_pixels_cut_anywhere(packed: dict[str, Path], syntax: str) -> None:
    """Within a file that is whole otherwise: decoders fill up what they lack, or say so to nobody."""
    from pydicom.encaps import encapsulate, generate_frames

    load = LoadScan(min_slices=1)
    file = planted.files_of(packed[syntax])[0]
    data = file.read_bytes()
    dataset = pydicom.dcmread(file)
    frame = next(generate_frames(dataset.PixelData, number_of_frames=1))
    right = load(packed[syntax])

    @few(12)
    @given(where=CUTS)
    @example(where=2)
    @example(where=0.999)
    def damage(where: float | int) -> None:
        left = cut(frame, where) or b"\0"
        if syntax == "RLELossless" and len(frame) - len(left) < 2:
            return  # it has no mark of its end: one byte less is filled up by the padding
        left += bytes(len(left) % 2)
        assume(len(left) < len(frame))  # else padding has made a changed byte of it, and RLE has no sum to tell
        dataset.PixelData = encapsulate([left])
        dataset.save_as(file)
        try:
            found = load(packed[syntax])
        except ScanError:
            return
        assert equal(found.numpy(), right.numpy()), "a wrong volume passes for good"

    try:
        damage()
    finally:
        file.write_bytes(data)


# --- NIfTI, NRRD, MetaImage ------------------------------------------------------------------------------------------

VOLUMES: dict[str, Callable[[Path], Path]] = {
    "nii": planted.nifti(name="scan.nii"),
    "nii.gz": planted.nifti(),
    "nrrd": planted.itk("scan.nrrd"),
    "nrrd, packed": planted.itk("scan.nrrd", pack=True),
    "mha": planted.itk("scan.mha"),
    "mha, packed": planted.itk("scan.mha", pack=True),
}


@pytest.fixture(scope="module")
def files(folder: Path) -> dict[str, tuple[Path, bytes]]:
    found = {}
    for kind, plant in VOLUMES.items():
        below = folder / kind
        below.mkdir()
        path = plant(below)
        found[kind] = path, path.read_bytes()
    return found


def whole_volume() -> np.ndarray:
    return windowed(planted.clean_volume()[0])


def text_header(data: bytes) -> int:
    """Length of the header of an NRRD or MetaImage."""
    for end in (b"ElementDataFile = LOCAL\n", b"\n\n"):
        if end in data[:2000]:
            return data.index(end) + len(end)
    return 348


@pytest.mark.parametrize("kind", VOLUMES)
def test_bytes_of_a_volumes_header(files: dict[str, tuple[Path, bytes]], kind: str) -> None:
    """What is answered is the volume, turned as the header now says; or what another reader makes of the file."""
    path, data = files[kind]
    turned = list(turns(whole_volume()))

    def by_others() -> np.ndarray:
        return windowed(sitk.GetArrayFromImage(sitk.DICOMOrient(sitk.ReadImage(str(path)), "LPS")))

    @few(35)
    @given(changes=CHANGES)
    def damage(changes: list[tuple[float, int]]) -> None:
        path.write_bytes(replaced(data, changes, text_header(data)))
        others = [by_others] if path.name.endswith(".nii") else []  # SimpleITK is ours of the others
        check(path, *turned, *others)

    damage()


@pytest.mark.parametrize("kind", VOLUMES)
def test_a_volume_cut_anywhere(files: dict[str, tuple[Path, bytes]], kind: str) -> None:
    path, data = files[kind]

    @few(15)
    @given(where=CUTS)
    def damage(where: float | int) -> None:
        path.write_bytes(cut(data, where))
        assert read(path)[0] is None

    damage()


@pytest.mark.parametrize("kind", ["nii.gz", "nrrd, packed", "mha, packed"])
def test_bytes_of_a_packed_volume(files: dict[str, tuple[Path, bytes]], kind: str) -> None:
    """Also where the slices that are taken lie before the damage."""
    path, data = files[kind]
    begin = 0 if kind == "nii.gz" else text_header(data)
    right = whole_volume()

    @few(30)
    @given(share=SHARES, bit=st.integers(0, 7))
    def damage(share: float, bit: int) -> None:
        place = begin + int(share * (len(data) - begin))
        path.write_bytes(data[:place] + bytes([data[place] ^ 1 << bit]) + data[place + 1 :])
        found = read(path)[0]
        assert found is None or equal(found, right)  # such as of the time in the head of a gzip stream

    damage()


# --- slices ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pictures(folder: Path) -> Path:
    """Fourteen PNG and fourteen JPEG slices."""
    (folder / "pictures").mkdir()
    path = planted.slices()(folder / "pictures")
    for index in range(40):
        file = path / f"{index}.png"
        if index % 2:
            with Image.open(file) as image:
                image.save(file.with_suffix(".jpg"), quality=95)
            file.unlink()
        if index >= 28:
            file.with_suffix(".jpg" if index % 2 else ".png").unlink()
    return path


@few(60)
@given(name=st.sampled_from(["6.png", "7.jpg"]), where=CUTS)
def test_a_picture_cut_anywhere(pictures: Path, name: str, where: float | int) -> None:
    data = (pictures / name).read_bytes()
    right = read(pictures)[0]
    assert right is not None
    try:
        (pictures / name).write_bytes(cut(data, where))
        check(pictures, right)
    finally:
        (pictures / name).write_bytes(data)


@few(60)
@given(name=st.sampled_from(["6.png", "7.jpg"]), changes=CHANGES)
@example(name="6.png", changes=[(0.90234375, 198)])  # Pillow decodes it without a word
def test_bytes_of_a_picture(pictures: Path, name: str, changes: list[tuple[float, int]]) -> None:
    """PNG has checksums. JPEG has none: another picture is then answered, if it is one."""
    data = (pictures / name).read_bytes()
    right = read(pictures)[0]
    assert right is not None
    try:
        (pictures / name).write_bytes(replaced(data, changes))
        if name.endswith(".png"):
            check(pictures, right)
        else:
            read(pictures)
    finally:
        (pictures / name).write_bytes(data)


# --- anything --------------------------------------------------------------------------------------------------------


@few(60)
@given(
    name=st.sampled_from(["a.dcm", "a", "a.nii", "a.nii.gz", "a.nrrd", "a.nhdr", "a.mha", "a.mhd", "a.jpg", "a.png"]),
    begin=st.sampled_from(
        [b"", bytes(128) + b"DICM", b"\x08\0\5\0CS\n\0", b"NRRD0004\n", b"ObjectType = Image\nNDims = 3\n",
         b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"\x1f\x8b\x08\0", (348).to_bytes(4, "little")]
    ),
    rest=st.binary(max_size=400),
)  # fmt: skip
def test_a_file_of_anything(folder: Path, name: str, begin: bytes, rest: bytes) -> None:
    below = folder / "anything"
    shutil.rmtree(below, ignore_errors=True)
    below.mkdir()
    (below / name).write_bytes(begin + rest)
    try:
        found = find_scans(below)
    except FileNotFoundError:
        found = []
    for item in [*found, {"image": below / name}, {"image": below}]:
        assert read(item["image"])[0] is None


def test_what_lies_beside_the_bytes_is_read(files: dict[str, tuple[Path, bytes]]) -> None:
    """The tests above change these files: undamaged they are answered."""
    for path, data in files.values():
        path.write_bytes(data)
        found = read(path)[0]
        assert found is not None and equal(found, whole_volume())
