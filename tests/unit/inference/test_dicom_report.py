"""DICOM output: what the report and the secondary capture say, and that nobody can be known from them.

Independent readers check the objects where they are installed: dsrdump of dcmtk (content trees and their relations) and
dciodvfy of dicom3tools (attributes against the standard).
"""

from __future__ import annotations

import hashlib
import logging
import re
import shutil
import subprocess
import sys
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pydicom
import pytest
import torch
from ignite.engine import Engine
from PIL import Image
from pydicom.config import disable_value_validation
from pydicom.datadict import DicomDictionary
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sr.codedict import codes
from pydicom.uid import EnhancedCTImageStorage, ExplicitVRLittleEndian, JPEG2000Lossless, generate_uid

from fairlung.pipeline.common.errors import UserError
from fairlung.pipeline.common.names import CLASS_NAMES
from fairlung.pipeline.inference import dicom_report
from fairlung.pipeline.inference.answers import Answer
from fairlung.pipeline.inference.dicom_objects import Model, class_code, probability_code
from fairlung.pipeline.inference.dicom_report import DicomWriter, write_dicom_answers
from fairlung.pipeline.inference.dicom_sources import DicomReportError
from fairlung.pipeline.inference.prediction_writer import PredictionWriter
from fairlung.pipeline.phantoms.writers import write_dicom_series

MODEL = Model("fairlung R3D18Classifier", "0.1.0", hashlib.sha256(b"weights").hexdigest())
PROBABILITIES = dict(zip(CLASS_NAMES, (0.125, 0.7, 1 / 7, 1e-9), strict=True))
WARNINGS = ["missing_slices: 2 of 80 slices are missing", "lossy: pixels were compressed with loss"]
PRIVATE = "99FAIRLUNG"
KEPT = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")

# what dciodvfy says of empty Patient and Study attributes, which a medium's directory would be made of, and of a
# private scheme; it knows no more of our objects than this, and no error
PRIVACY_WARNINGS = {
    f"Warning - Missing attribute or value that would be needed to build DICOMDIR - {name}"
    for name in ("Patient ID", "Study Date", "Study Time", "Study ID")
}
SCHEME_WARNING = "Warning - Unrecognized defined term <99FAIRLUNG> for value 1 of attribute <Coding Scheme Designator>"


def answer_of(files: list[Path] | list[str], **changes: Any) -> Answer:
    intake = {"kind": "dicom", "files": [str(file) for file in files], "shape": None, "indices": []}
    answer = Answer("ward/scan7", "ok", "", "squamous_cell", PROBABILITIES, None, list(WARNINGS), intake)
    return replace(answer, **changes)


def edited(path: Path, change: Callable[[Dataset], None]) -> Path:
    """Change a file in place, whatever the change does to its validity."""
    with disable_value_validation():
        dataset = pydicom.dcmread(path)
        change(dataset)
        dataset.save_as(path)
    return path


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Read-only: four slices of one series."""
    hu = np.random.default_rng(3).integers(-1024, 400, (4, 6, 8)).astype(np.int16)
    folder = write_dicom_series(tmp_path_factory.mktemp("scan") / "dicom", hu, (2.5, 0.75, 0.75), sex="female", age=61)
    return sorted(folder.iterdir())


@pytest.fixture
def copies(series: list[Path], tmp_path: Path) -> list[Path]:
    """The same, to be changed."""
    (tmp_path / "copies").mkdir()
    return [Path(shutil.copy(file, tmp_path / "copies" / file.name)) for file in series]


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    """[5, 7, 3] uint8 without any symmetry, of an odd number of bytes."""
    return np.random.default_rng(1).integers(0, 256, (5, 7, 3)).astype(np.uint8)


def enhanced_ct(path: Path, heights: list[float], orientation: list[float], axis: int = 2) -> Path:
    """A multi-frame CT whose frames lie at ``heights`` along an axis, in this order; without pixels."""
    dataset = Dataset()
    dataset.SOPClassUID = EnhancedCTImageStorage
    dataset.SOPInstanceUID, dataset.StudyInstanceUID, dataset.SeriesInstanceUID = (generate_uid() for _ in range(3))
    dataset.FrameOfReferenceUID = generate_uid()
    dataset.PatientName, dataset.PatientID, dataset.Modality = "DOE^ENHANCED", "ENH-1", "CT"
    dataset.NumberOfFrames, dataset.Rows, dataset.Columns = len(heights), 4, 4
    plane = Dataset()
    plane.ImageOrientationPatient = orientation
    shared = Dataset()
    shared.PlaneOrientationSequence = [plane]
    dataset.SharedFunctionalGroupsSequence = [shared]
    frames = []
    for height in heights:
        position = Dataset()
        position.ImagePositionPatient = [height if i == axis else -10.0 for i in range(3)]
        frame = Dataset()
        frame.PlanePositionSequence = [position]
        frames.append(frame)
    dataset.PerFrameFunctionalGroupsSequence = frames
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.save_as(path, enforce_file_format=True)
    return path


AXIAL, CORONAL = [1.0, 0, 0, 0, 1, 0], [1.0, 0, 0, 0, 0, -1]


# ---------------------------------------------------------------------------------------------------------------------
# what is said
# ---------------------------------------------------------------------------------------------------------------------
def only_group(path: Path) -> Any:
    from highdicom.sr import srread

    groups = srread(path).content.get_image_measurement_groups()
    assert len(groups) == 1
    return groups[0]


def numbers(group: Any) -> dict[str, float]:
    return {item.name.value: item.value for item in group.get_measurements()}


def texts(group: Any, name: Any) -> list[str]:
    from highdicom.sr.utils import find_content_items

    return [item.TextValue for item in find_content_items(group[0], name=name, value_type="TEXT")]


def test_report_says_the_answer_in_codes(series, tmp_path):
    from highdicom.sr import CodedConcept, srread
    from highdicom.sr.utils import find_content_items

    (path,) = write_dicom_answers(tmp_path, answer_of(series), MODEL)
    group = only_group(path)
    measured = group.get_measurements()
    assert [item.value for item in measured] == list(PROBABILITIES.values())  # to the last bit
    assert {item.unit.value for item in measured} == {"1"}
    names = [(item.name.value, item.name.scheme_designator, item.name.meaning) for item in measured]
    assert names[1] == ("P-squamous_cell", PRIVATE, "Probability of Squamous cell carcinoma of lung")
    assert len({value for value, _, _ in names}) == len({meaning for _, _, meaning in names}) == 4
    # the codes as pydicom has them from the standard; COVID-19 is newer than its table
    standard = [codes.SCT.AdenocarcinomaOfLung, codes.SCT.SquamousCellCarcinomaOfLung, None, codes.SCT.Normal]
    modifiers = [
        CodedConcept.from_dataset(find_content_items(item[0], value_type="CODE")[0].ConceptCodeSequence[0])
        for item in measured
    ]
    assert all(known is None or known == found for known, found in zip(standard, modifiers, strict=True))
    assert (modifiers[2].value, modifiers[2].scheme_designator) == ("840539006", "SCT")

    (evaluation,) = group.get_qualitative_evaluations()
    assert (evaluation.name.value, evaluation.name.scheme_designator) == ("prediction", PRIVATE)
    assert evaluation.value == codes.SCT.SquamousCellCarcinomaOfLung
    algorithm = [texts(group, name) for name in (codes.DCM.AlgorithmName, codes.DCM.AlgorithmVersion)]
    assert algorithm == [[MODEL.name], [MODEL.version]]
    assert texts(group, codes.DCM.AlgorithmParameters) == [f"checkpoint digest: {MODEL.digest}"]
    assert texts(group, CodedConcept("warning", PRIVATE, "Quality warning")) == WARNINGS
    (comment,) = texts(group, codes.DCM.Comment)
    assert "Not for diagnosis" in comment and "Research" in comment

    report = srread(path)
    assert report.SOPClassUID.name == "Comprehensive 3D SR Storage"
    assert report.ContentTemplateSequence[0].TemplateIdentifier == "1500"
    assert (report.VerificationFlag, report.PreliminaryFlag, report.CompletionFlag) == (
        "UNVERIFIED",
        "PRELIMINARY",
        "COMPLETE",
    )
    assert report.ContentQualification == "RESEARCH" and "not for diagnosis" in report.SeriesDescription
    assert (report.Manufacturer, report.ManufacturerModelName) == ("fairlung", MODEL.name)
    (observer,) = report.content.get_observer_contexts()
    assert observer.observer_type == codes.DCM.Device
    assert observer.observer_identifying_attributes.serial_number == MODEL.digest


def test_report_refers_to_the_slices_that_were_used(series, tmp_path):
    from highdicom.sr import srread
    from highdicom.sr.utils import find_content_items

    used = [series[2], series[0], series[2]]  # a file named twice is one image
    (path,) = write_dicom_answers(tmp_path, answer_of(used), MODEL)
    headers = [pydicom.dcmread(file) for file in (series[2], series[0])]
    expected = [(header.SOPClassUID, header.SOPInstanceUID) for header in headers]
    assert [image.value for image in only_group(path).source_images] == expected
    report = srread(path)
    evidence = [(study, of, instance, kind) for study, of, instance, kind in report.get_evidence()]
    assert sorted(evidence) == sorted(
        (h.StudyInstanceUID, h.SeriesInstanceUID, h.SOPInstanceUID, h.SOPClassUID) for h in headers
    )
    assert report.StudyInstanceUID == headers[0].StudyInstanceUID
    assert report.SeriesInstanceUID != headers[0].SeriesInstanceUID
    library = find_content_items(report, name=codes.DCM.ImagePositionPatientZ, recursive=True)
    heights = [item.MeasuredValueSequence[0].NumericValue for item in library]
    assert heights == [header.ImagePositionPatient[2] for header in headers]


def test_report_says_what_an_ensemble_and_a_correction_add(series, tmp_path):
    from highdicom.sr.utils import find_content_items

    spread = dict(zip(CLASS_NAMES, (0.01, 0.02, 0.03, 0.0), strict=True))
    before = dict(zip(CLASS_NAMES, (0.2, 0.3, 0.4, 0.1), strict=True))
    answer = answer_of(series[:1], spread=spread, agreement=0.8, uncorrected=before)
    (path,) = write_dicom_answers(tmp_path, answer, MODEL)
    group = only_group(path)
    assert numbers(group) == {f"P-{name}": p for name, p in PROBABILITIES.items()} | {"agreement": 0.8}
    found: dict[str, list[float]] = {"386136009": [], "uncorrected": []}
    for item in group.get_measurements()[: len(PROBABILITIES)]:
        for child in find_content_items(item[0], value_type="NUM", relationship_type="HAS PROPERTIES"):
            found[child.ConceptNameCodeSequence[0].CodeValue].append(child.MeasuredValueSequence[0].FloatingPointValue)
    assert found == {"386136009": list(spread.values()), "uncorrected": list(before.values())}


def test_other_class_names_get_private_codes_of_their_own(series, tmp_path):
    names = ["benign", "Läsion, unklar\\neu\n", "x" * 80, "x" * 81, "Squamous Cell", "COVID-19", "a b", "ab"]
    made = [code(name) for code in (class_code, probability_code) for name in names]
    assert len({(code.value, code.scheme_designator) for code in made}) == len(made)
    assert all(len(code.value) <= 16 and 1 <= len(code.meaning) <= 64 for code in made)
    assert [code.scheme_designator for code in made[:8]] == [PRIVATE] * 4 + ["SCT"] * 2 + [PRIVATE] * 2
    assert class_code("Squamous Cell") == codes.SCT.SquamousCellCarcinomaOfLung
    assert class_code(names[1]).meaning == "Läsion, unklar neu"
    probabilities = {name: i / 28 for i, name in enumerate(names)}
    answer = answer_of(series[:1], prediction=names[1], probabilities=probabilities, warnings=["odd_name: \udcff.dcm"])
    (path,) = write_dicom_answers(tmp_path, answer, MODEL)
    group = only_group(path)
    assert numbers(group) == {probability_code(name).value: p for name, p in probabilities.items()}
    assert group.get_qualitative_evaluations()[0].value.meaning == "Läsion, unklar neu"


def test_montage_is_a_picture_in_the_same_study(series, picture, tmp_path):
    report, montage = write_dicom_answers(tmp_path, answer_of(series), MODEL, picture)
    assert (report.name, montage.name) == ("report.dcm", "montage.dcm")
    image, source = pydicom.dcmread(montage), pydicom.dcmread(series[0])
    assert image.SOPClassUID.name == "Secondary Capture Image Storage"
    assert (image.pixel_array == picture).all() and image.PhotometricInterpretation == "RGB"
    assert image.StudyInstanceUID == source.StudyInstanceUID
    assert len({image.SeriesInstanceUID, source.SeriesInstanceUID, pydicom.dcmread(report).SeriesInstanceUID}) == 3
    references = [item.ReferencedSOPInstanceUID for item in image.SourceImageSequence]
    assert references == [pydicom.dcmread(file).SOPInstanceUID for file in series]
    assert image.ContentQualification == "RESEARCH" and "Not for diagnosis" in image.ImageComments
    assert "LossyImageCompression" not in image


def test_montage_comes_from_a_file_too(series, picture, tmp_path):
    Image.fromarray(picture).save(tmp_path / "rgb.png")
    clear = np.dstack([picture, np.full(picture.shape[:2], 255, np.uint8)])
    clear[0] = 0
    Image.fromarray(clear).save(tmp_path / "rgba.png")
    white = picture.copy()
    white[0] = 255
    for name, expected in (("rgb", picture), ("rgba", white)):
        _, montage = write_dicom_answers(tmp_path / name, answer_of(series[:1]), MODEL, tmp_path / f"{name}.png")
        assert (pydicom.dcmread(montage).pixel_array == expected).all()


def test_montage_of_lossy_slices_says_lossy(copies, picture, tmp_path):
    def lossy(dataset: Dataset) -> None:
        dataset.LossyImageCompression, dataset.LossyImageCompressionRatio = "01", ["10.5", "3"]
        dataset.LossyImageCompressionMethod = ["ISO_10918_1", "DOE^JANE"]

    edited(copies[0], lossy)
    _, montage = write_dicom_answers(tmp_path / "out", answer_of(copies), MODEL, picture)
    image = pydicom.dcmread(montage)
    assert (image.LossyImageCompression, image.LossyImageCompressionRatio) == ("01", [10.5, 3])
    assert image.LossyImageCompressionMethod == "ISO_10918_1"


# ---------------------------------------------------------------------------------------------------------------------
# privacy
# ---------------------------------------------------------------------------------------------------------------------
MARK = "ZQXDOE"
MARKS = {"DA": "19010203", "DT": "19010203040506", "TM": "232323.123456", "AS": "077Y", "UI": "2.25.7777777777777.1"}
SHORT = {"CS": 16, "SH": 16, "AE": 16, "LO": 64, "PN": 64}


def plant(dataset: Dataset) -> None:
    """Text, dates and UIDs that identify somebody in every attribute of the dictionary, and in private ones."""
    from pydicom.tag import Tag

    for tag, (vr, _, _, _, keyword) in DicomDictionary.items():
        # not the file's own make-up, command and directory elements, and the character set
        if Tag(tag).group <= 4 or keyword in (*KEPT, "SpecificCharacterSet", ""):
            continue
        if vr in (*SHORT, "LT", "ST", "UC", "UR", "UT"):
            dataset.add_new(tag, vr, f"{MARK}{tag:08X}"[: SHORT.get(vr)])
        elif vr in MARKS:
            dataset.add_new(tag, vr, MARKS[vr])
    dataset.LossyImageCompression = "01"
    private = dataset.private_block(0x0009, f"{MARK} CREATOR", create=True)
    private.add_new(0x01, "LO", f"{MARK} PRIVATE")
    nested = Dataset()
    nested.RequestedProcedureDescription, nested.PatientName = f"{MARK} NESTED", f"{MARK}^NESTED"
    dataset.RequestAttributesSequence = [nested]


def test_nothing_that_identifies_reaches_an_output_or_a_message(copies, picture, tmp_path, caplog, capfd):
    source = pydicom.dcmread(copies[0])
    for file in copies:
        edited(file, plant)
        # pydicom quotes a character set that it does not know
        file.write_bytes(file.read_bytes().replace(b"ISO_IR 100", b"ZQXDOE 100"))
    planted = copies[0].read_bytes()
    marks = [MARK.encode(), *(mark.encode() for mark in MARKS.values())]
    assert all(mark in planted for mark in marks) and planted.count(MARK.encode()) > 1000
    files = [file.rename(file.with_name(f"{MARK}_{file.name}")) for file in copies]
    (tmp_path / f"{MARK}.dcm").write_bytes(planted[:900])

    with caplog.at_level(logging.DEBUG), caplog.at_level(logging.DEBUG, logger="highdicom"):
        written = write_dicom_answers(tmp_path / "out", answer_of(files), MODEL, picture)
        refusals = []
        for name in (f"{MARK}.dcm", f"{MARK}_gone.dcm"):
            with pytest.raises(DicomReportError) as refused:
                write_dicom_answers(tmp_path / "none", answer_of([tmp_path / name]), MODEL)
            refusals += traceback.format_exception(refused.value)[-1:]
            assert refused.value.__cause__ is None and refused.value.__suppress_context__ == name.endswith("gone.dcm")
    said = "".join([caplog.text, *capfd.readouterr()])
    kept = [source[tag].value for tag in KEPT if tag != "SOPClassUID"]
    for mark in (*marks, b"ward/scan7", *(uid.encode() for uid in kept)):
        assert mark.decode() not in said, mark
    assert all(MARK not in refusal for refusal in refusals)
    for path in written:
        content = path.read_bytes()
        for mark in (*marks, b"ward/scan7", MARK.encode("utf-16-le")):
            assert mark not in content, (path.name, mark)

    for path in written:
        dataset = pydicom.dcmread(path)
        for tag in ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID"):
            assert dataset[tag].is_empty, tag
        assert dataset.StudyDate is dataset.StudyTime is None or dataset["StudyDate"].is_empty
        assert dataset.PatientIdentityRemoved == "YES" and dataset.DeidentificationMethod
        assert dataset.StudyInstanceUID == source.StudyInstanceUID
    assert source.FrameOfReferenceUID.encode() in written[0].read_bytes()


# ---------------------------------------------------------------------------------------------------------------------
# sources of every kind
# ---------------------------------------------------------------------------------------------------------------------
def test_real_ct(data_dir, picture, tmp_path):
    files = sorted((data_dir / "chest_ct_dicom").iterdir())[:5]
    (path, _) = write_dicom_answers(tmp_path, answer_of(files), MODEL, picture)
    uids = [pydicom.dcmread(file).SOPInstanceUID for file in files]
    assert [image.referenced_sop_instance_uid for image in only_group(path).source_images] == uids
    assert b"123456" not in path.read_bytes()  # its PatientID


def test_a_compressed_single_slice(data_dir, tmp_path):
    file = min((data_dir / "tcga_lung_slices").glob("*.dcm"))
    header = pydicom.dcmread(file)
    assert header.file_meta.TransferSyntaxUID == JPEG2000Lossless
    (path,) = write_dicom_answers(tmp_path, answer_of([file]), MODEL)
    (image,) = only_group(path).source_images
    assert image.value == (header.SOPClassUID, header.SOPInstanceUID)


def test_only_headers_are_read(copies, tmp_path):
    whole = write_dicom_answers(tmp_path / "whole", answer_of(copies), MODEL)
    for file in copies:
        content = file.read_bytes()
        file.write_bytes(content[: content.rindex(b"\xe0\x7f\x10\x00OW") + 12])  # the pixels' length, and no pixels
    cut = write_dicom_answers(tmp_path / "cut", answer_of(copies), MODEL)
    assert pydicom.dcmread(cut[0]).SOPInstanceUID == pydicom.dcmread(whole[0]).SOPInstanceUID


def test_missing_and_odd_attributes(copies, picture, tmp_path):
    def bare(dataset: Dataset) -> None:
        keep = {*KEPT[:4], "Rows", "Columns", "PixelData", "BitsAllocated", "SamplesPerPixel"}
        for element in list(dataset):
            if element.keyword not in keep:
                del dataset[element.tag]

    def odd(dataset: Dataset) -> None:
        dataset.SliceThickness, dataset.PixelSpacing, dataset.FrameOfReferenceUID = "7.77", ["0.75"], "DOE^JANE"
        dataset.SOPInstanceUID = "1.2.0003.04"  # zeros that the standard forbids and scanners write

    edited(copies[0], bare)
    edited(copies[1], odd)
    copies[1].write_bytes(copies[1].read_bytes().replace(b"7.77", b"thin"))
    written = write_dicom_answers(tmp_path / "out", answer_of(copies), MODEL, picture)
    with disable_value_validation():
        referred = [image.referenced_sop_instance_uid for image in only_group(written[0]).source_images]
    assert len(referred) == 4 and referred[1] == "1.2.0003.04"
    assert all(b"DOE^JANE" not in path.read_bytes() for path in written)


@pytest.mark.parametrize(
    "heights, indices, expected",
    [
        # frame n (from 1) lies at heights[n - 1]; indices count from the lowest
        ([30, 10, 20, 40], [0, 0, 3], [2, 4]),
        ([30, 10, 20, 40], [0, 1, 2, 3], None),  # all: the file as a whole
        ([30, 10, 10, 40], [0, 3], None),  # two at one place: which is which cannot be told
        ([30, 10, 20], [0, 3], None),  # a stack of another number of slices
    ],
)
def test_multi_frame_files_are_referred_to_by_frame(tmp_path, picture, heights, indices, expected):
    file = enhanced_ct(tmp_path / "enhanced.dcm", heights, AXIAL)
    intake = {"files": [str(file)], "shape": [4, 4, 4], "indices": indices}
    written = write_dicom_answers(tmp_path / "out", answer_of([], intake=intake), MODEL, picture)
    (image,) = only_group(written[0]).source_images
    assert image.referenced_frame_numbers == expected
    (reference,) = pydicom.dcmread(written[1]).SourceImageSequence
    assert reference.get("ReferencedFrameNumber") == expected
    assert reference.ReferencedSOPInstanceUID == image.referenced_sop_instance_uid


def test_frames_that_are_no_axial_stack_are_referred_to_as_a_whole(tmp_path):
    for name, orientation, axis, expected in (
        ("feet up", [1.0, 0, 0, 0, -1, 0], 2, [1, 2]),  # the normal points down, slices still count from below
        ("coronal", CORONAL, 1, None),
    ):
        file = enhanced_ct(tmp_path / f"{name}.dcm", [10, 20, 30], orientation, axis)
        intake = {"files": [str(file)], "shape": [3, 4, 4], "indices": [0, 1]}
        (path,) = write_dicom_answers(tmp_path / name, answer_of([], intake=intake), MODEL)
        assert only_group(path).source_images[0].referenced_frame_numbers == expected, name


# ---------------------------------------------------------------------------------------------------------------------
# identity of the instances, files
# ---------------------------------------------------------------------------------------------------------------------
def uids(paths: list[Path]) -> list[tuple[str, str]]:
    found = []
    for path in paths:
        dataset = pydicom.dcmread(path)
        assert dataset.file_meta.MediaStorageSOPInstanceUID == dataset.SOPInstanceUID
        assert dataset.SOPInstanceUID.is_valid and dataset.SeriesInstanceUID.is_valid
        found.append((dataset.SeriesInstanceUID, dataset.SOPInstanceUID))
    return found


def test_a_repetition_is_the_same_instance_and_a_change_another(series, picture, tmp_path):
    answer = answer_of(series)
    first = write_dicom_answers(tmp_path / "one", answer, MODEL, picture)
    again = write_dicom_answers(tmp_path / "two", answer, MODEL, picture)
    assert uids(first) == uids(again)
    before = [path.read_bytes() for path in first]
    assert [path.read_bytes() for path in again] != before  # the time of writing
    write_dicom_answers(tmp_path / "one", answer, MODEL, picture)
    assert [path.read_bytes() for path in first] == before

    other = picture.copy()
    other[2, 3, 1] ^= 1
    changed_probability = replace(answer, probabilities=PROBABILITIES | {"normal": 2e-9})
    changed = {
        "probability": write_dicom_answers(tmp_path / "a", changed_probability, MODEL, picture),
        "warning": write_dicom_answers(tmp_path / "b", replace(answer, warnings=[]), MODEL, picture),
        "files": write_dicom_answers(tmp_path / "c", answer_of(series[:3]), MODEL, picture),
        "model": write_dicom_answers(tmp_path / "d", answer, replace(MODEL, digest="0" * 64), picture),
        "pixel": write_dicom_answers(tmp_path / "e", answer, MODEL, other),
    }
    reports = {what: uids(paths)[0] for what, paths in changed.items()}
    montages = {what: uids(paths)[1] for what, paths in changed.items()}
    original = uids(first)
    assert [what for what, uid in reports.items() if uid[1] == original[0][1]] == ["pixel"]
    assert [what for what, uid in montages.items() if uid[1] == original[1][1]] == ["probability", "warning"]
    assert [what for what, uid in reports.items() if uid[0] != original[0][0]] == ["model"]
    assert [what for what, uid in montages.items() if uid[0] != original[1][0]] == ["model"]


def test_files_are_whole_or_absent(series, picture, tmp_path, monkeypatch):
    from highdicom.sc import SCImage

    report, montage = write_dicom_answers(tmp_path, answer_of(series), MODEL, picture)
    before = montage.read_bytes()

    def full_disk(self: Dataset, path: Path, **options: Any) -> None:
        Path(path).write_bytes(b"half")
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        original = SCImage.save_as
        patch.setattr(
            SCImage,
            "save_as",
            lambda self, path, **how: (full_disk if isinstance(path, Path) else original)(self, path, **how),
        )
        with pytest.raises(OSError, match="No space"):
            write_dicom_answers(tmp_path, answer_of(series), MODEL, 255 - picture)
    assert montage.read_bytes() == before
    write_dicom_answers(tmp_path, answer_of(series), MODEL)
    assert list(tmp_path.iterdir()) == [report]  # the picture of an earlier answer is not left beside this one


# ---------------------------------------------------------------------------------------------------------------------
# what is refused
# ---------------------------------------------------------------------------------------------------------------------
def without_series(dataset: Dataset) -> None:
    del dataset.SeriesInstanceUID


def with_name_for_uid(dataset: Dataset) -> None:
    dataset.StudyInstanceUID = "DOE^JANE"


def of_another_series(dataset: Dataset) -> None:
    dataset.SeriesInstanceUID = "1.2.3.4444"


def of_another_study(dataset: Dataset) -> None:
    dataset.StudyInstanceUID = "1.2.3.4444"


def without_rows(dataset: Dataset) -> None:
    del dataset.Rows


def an_mr(dataset: Dataset) -> None:
    dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.4"


@pytest.mark.parametrize(
    "change, cause",
    [
        (without_series, "source file 2 of 4 cannot be referred to: it has no SeriesInstanceUID"),
        (with_name_for_uid, "source file 2 of 4 cannot be referred to: its StudyInstanceUID is no UID"),
        (of_another_series, "its source files are of 2 series"),
        (of_another_study, "its source files are of 2 studies"),
        (without_rows, "it has no Rows and Columns"),
        (an_mr, "it is no CT Image"),
    ],
)
def test_sources_that_cannot_be_referred_to_are_named_without_identifiers(copies, tmp_path, change, cause):
    edited(copies[1], change)
    with pytest.raises(DicomReportError, match=re.escape(cause)) as refused:
        write_dicom_answers(tmp_path / "out", answer_of(copies), MODEL)
    said = str(refused.value)
    assert said.startswith("ward/scan7: ") and isinstance(refused.value, UserError)
    assert not re.search(r"\d\.\d|DOE|IM-", said)
    assert not (tmp_path / "out").exists()


MISSING = {
    "instances": ["SOPInstanceUID"], "series": ["SeriesInstanceUID"], "study": ["StudyInstanceUID"],
    "all": ["SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID"],
}  # fmt: skip


def infer(folder: Path, files: dict[str, list[Path]], picture: np.ndarray, **settings: Any) -> pd.DataFrame:
    """The table of an inference with DICOM objects; a scan without files is no DICOM."""
    checkpoint = folder / "model.pt"
    checkpoint.parent.mkdir(exist_ok=True)
    checkpoint.write_bytes(b"weights")
    intake = [
        answer_of(paths).intake | {"warnings": [], "kind": "dicom" if paths else "nifti"} for paths in files.values()
    ]
    batch = {"scan": [*files], "reason": [""] * len(files), "intake": intake}
    engine = Engine(lambda engine, batch: {"pred": torch.zeros(len(files), len(CLASS_NAMES))})
    predictions = PredictionWriter(folder / "predictions.csv", CLASS_NAMES)
    predictions.attach(engine)
    Image.fromarray(picture).save(folder / "montage.png")
    DicomWriter(folder / "dicom", [checkpoint], lambda scan: folder / "montage.png", **settings).attach(engine)
    engine.run([batch])
    predictions.report()
    return pd.read_csv(folder / "predictions.csv", keep_default_na=False).set_index("scan")


@pytest.mark.fault(
    "lost", "DICOM files without the UIDs that a report refers to, --dicom_out",
    before="no object, a line of the log, and 0 answers with warnings",
    now="the montage without references, a warning in the row, and its count",
)  # fmt: skip
@pytest.mark.parametrize("kind", MISSING)
def test_files_without_uids_are_answered_by_the_montage_alone(copies, picture, tmp_path, kind, caplog):
    def bare(dataset: Dataset) -> None:
        for tag in MISSING[kind]:
            delattr(dataset, tag)

    infer(tmp_path / "out", {"scan": copies}, picture)
    assert (tmp_path / "out" / "dicom" / "scan" / "report.dcm").is_file()
    study = pydicom.dcmread(copies[0]).StudyInstanceUID
    for copy in copies:
        edited(copy, bare)
    with caplog.at_level(logging.INFO):
        table = infer(tmp_path / "out", {"scan": copies, "volume": []}, picture)
    told = table.loc["scan", "warnings"]
    assert told.startswith("no_report: source file 1 of 4 cannot be referred to: it has no ") and "montage" in told
    assert table.loc["volume", "warnings"].startswith("no_report: no DICOM file to refer to")
    assert "2 scans answered (2 of them with warnings)" in caplog.text and "2 no_report" in caplog.text
    (path,) = (tmp_path / "out" / "dicom").rglob("*.dcm")  # the report of an earlier run is gone
    image = pydicom.dcmread(path)
    assert "SourceImageSequence" not in image and image.StudyInstanceUID.is_valid and image.SeriesInstanceUID.is_valid
    assert (image.StudyInstanceUID == study) == ("StudyInstanceUID" not in MISSING[kind])
    infer(tmp_path / "again", {"another name": copies}, picture)
    again = pydicom.dcmread(tmp_path / "again" / "dicom" / "another name" / "montage.dcm")
    assert (again.StudyInstanceUID, again.SOPInstanceUID) == (image.StudyInstanceUID, image.SOPInstanceUID)
    if shutil.which("dciodvfy"):
        assert "Error" not in run("dciodvfy", path)


WHOSE = {
    "PatientName": "Müller^Zoë", "PatientID": "0042", "IssuerOfPatientID": "WARD", "PatientBirthDate": "19560102",
    "PatientSex": "F", "StudyDate": "20260105", "StudyTime": "1015", "AccessionNumber": "ACC7", "StudyID": "S1",
    "ReferringPhysicianName": "Kovács^Éva", "StudyDescription": "CT Thorax",
}  # fmt: skip


@pytest.mark.fault(
    "lost", "report and montage of a study that an archive has",
    before="no PatientID, so that Orthanc files another patient and study", now="filed with it: --dicom_identity keep",
)  # fmt: skip
@pytest.mark.parametrize("charset", ["ISO_IR 100", "ISO_IR 192"])
def test_identity_is_kept_when_it_is_asked_for_and_else_left_out(copies, picture, tmp_path, charset):
    def name(dataset: Dataset) -> None:
        dataset.SpecificCharacterSet = charset
        for tag, value in WHOSE.items():
            setattr(dataset, tag, value)

    for copy in copies:
        edited(copy, name)
    infer(tmp_path / "keep", {"scan": copies}, picture, identity="keep")
    infer(tmp_path / "remove", {"scan": copies}, picture)
    for file in ("report.dcm", "montage.dcm"):
        kept, removed = (pydicom.dcmread(tmp_path / what / "dicom" / "scan" / file) for what in ("keep", "remove"))
        source = pydicom.dcmread(copies[0])
        assert {tag: str(kept[tag].value) for tag in WHOSE} == WHOSE
        assert kept.StudyInstanceUID == removed.StudyInstanceUID == source.StudyInstanceUID
        assert "PatientIdentityRemoved" not in kept and removed.PatientIdentityRemoved == "YES"
        assert not any(str(removed.get(tag) or "") for tag in WHOSE)
        if shutil.which("dciodvfy"):
            complaints = run("dciodvfy", tmp_path / "keep" / "dicom" / "scan" / file)
            assert "Error" not in complaints, complaints
    with pytest.raises(ValueError, match="dicom_identity must be one of remove, keep, got 'yes'"):
        infer(tmp_path / "other", {"scan": copies}, picture, identity="yes")


def test_what_is_no_source_no_answer_and_no_picture(series, picture, tmp_path):
    junk = tmp_path / "junk.dcm"
    junk.write_bytes(b"\x00\xffnot DICOM at all " * 40)
    report, _ = write_dicom_answers(tmp_path / "out", answer_of(series), MODEL, picture)
    for files, cause in (
        ([], "no DICOM file"),
        ([tmp_path / "gone.dcm"], "cannot be read as DICOM (FileNotFoundError)"),
        ([junk], "source file 1 of 1 cannot be"),
        ([report], "it is no CT Image"),
    ):
        with pytest.raises(DicomReportError, match=re.escape(cause)):
            write_dicom_answers(tmp_path / "x", answer_of(files), MODEL)
    with pytest.raises(DicomReportError, match="there is no answer"):
        write_dicom_answers(tmp_path / "x", answer_of(series, status="failed", prediction=None), MODEL)
    for montage in (picture[..., 0], picture.astype(float), picture[:0], junk, tmp_path / "gone.png"):
        with pytest.raises(DicomReportError, match=r"ward/scan7: .*montage"):
            write_dicom_answers(tmp_path / "x", answer_of(series), MODEL, montage)
    for values in (("", "1", "d"), ("m" * 65, "1", "d"), ("a\\b", "1", "d"), ("m", "1", "d\n")):
        with pytest.raises(ValueError, match="1 to 64 printable characters"):
            Model(*values)


def test_without_highdicom_it_is_said_before_a_scan_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(dicom_report, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"dicom_out needs highdicom: pip install 'fairlung\[dicom-out\]'"):
        DicomWriter(tmp_path, [], lambda _: None).attach(Engine(lambda *_: None))


def test_highdicom_is_imported_when_it_is_needed():
    code = (
        "import sys\n"
        "import fairlung.pipeline.inference.dicom_report\n"
        "assert not {'highdicom', 'pydicom', 'PIL', 'torch'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# ---------------------------------------------------------------------------------------------------------------------
# independent readers
# ---------------------------------------------------------------------------------------------------------------------
def run(program: str, *arguments: str | Path) -> str:
    if shutil.which(program) is None:
        package = {"dsrdump": "dcmtk", "dciodvfy": "dicom3tools"}[program]
        pytest.skip(f"{program} is not installed (package {package})")
    done = subprocess.run([program, *map(str, arguments)], capture_output=True, text=True, check=False, timeout=600)
    return done.stdout + done.stderr


def objects_of_every_kind(copies: list[Path], picture: np.ndarray, data_dir: Path, folder: Path) -> list[Path]:
    enhanced = enhanced_ct(folder / "enhanced.dcm", [30, 10, 20, 40], AXIAL)
    frames = {"files": [str(enhanced)], "shape": [4, 4, 4], "indices": [0, 3]}
    ensemble = {
        "spread": dict.fromkeys(PROBABILITIES, 0.01),
        "agreement": 0.8,
        "uncorrected": dict.fromkeys(PROBABILITIES, 0.25),
    }

    def poor(dataset: Dataset) -> None:
        for tag in ("StudyDate", "StudyTime", "SliceThickness", "FrameOfReferenceUID", "PatientID", "StudyID"):
            del dataset[tag]
        dataset.LossyImageCompression, dataset.LossyImageCompressionRatio = "01", "10"
        dataset.LossyImageCompressionMethod = "ISO_10918_1"

    edited(copies[0], poor)
    answers = {
        "real": answer_of(sorted((data_dir / "chest_ct_dicom").iterdir())[:3], **ensemble),
        "poor": answer_of(copies[:1], prediction="Läsion", probabilities={"Läsion": 0.5, "y" * 70: 0.5}, warnings=[]),
        "enhanced": answer_of([], intake=frames),
    }
    written = []
    for name, answer in answers.items():
        written += write_dicom_answers(folder / name, answer, MODEL, picture)
    return written


def test_dciodvfy_finds_no_error(copies, picture, data_dir, tmp_path):
    for path in objects_of_every_kind(copies, picture, data_dir, tmp_path):
        lines = run("dciodvfy", path).splitlines()
        assert {"report.dcm": "Comprehensive3DSR", "montage.dcm": "SCImage"}[path.name] in lines
        complaints = {line for line in lines if line.startswith(("Error", "Warning"))}
        assert not {line for line in complaints if line.startswith("Error")}, path
        assert complaints <= PRIVACY_WARNINGS | {SCHEME_WARNING}, path
    # the check can fail: the standard asks for this attribute
    spoilt = edited(shutil.copy(path, tmp_path / "spoilt.dcm"), lambda dataset: delattr(dataset, "ConversionType"))
    assert "Error" in run("dciodvfy", spoilt)


def test_dsrdump_reads_the_tree(copies, picture, data_dir, tmp_path):
    for path in objects_of_every_kind(copies, picture, data_dir, tmp_path):
        if path.name != "report.dcm":
            continue
        tree = run("dsrdump", "+Pl", "+Pn", path)
        assert "Verification Flag   : UNVERIFIED" in tree and "Preliminary Flag    : PRELIMINARY" in tree
        assert 'TEXT:(,,"Comment")="Research software, not a medical device. Not for diagnosis.' in tree
        assert not re.search(r"^[EF]: ", tree, re.MULTILINE), tree
        if path.parent.name == "real":
            assert 'NUM:(,,"Probability of Squamous cell carcinoma of lung")="0.7" (1,UCUM,"no units")' in tree
            assert 'CODE:(,,"Predicted class")=(254634000,SCT,"Squamous cell carcinoma of lung")' in tree
            assert tree.count('IMAGE:(,,"Source of Measurement")=(CT image,)') == 3


def test_montage_looks_the_same_in_dcmtk(series, tmp_path):
    if shutil.which("dcm2pnm") is None:
        pytest.skip("dcm2pnm is not installed (package dcmtk)")
    picture = np.zeros((40, 60, 3), np.uint8)
    picture[:10, :10], picture[:10, -10:], picture[-10:, :10] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    _, montage = write_dicom_answers(tmp_path, answer_of(series), MODEL, picture)
    subprocess.run(["dcm2pnm", montage, tmp_path / "shown.ppm"], check=True, timeout=600)
    with Image.open(tmp_path / "shown.ppm") as shown:
        assert (np.asarray(shown) == picture).all()
