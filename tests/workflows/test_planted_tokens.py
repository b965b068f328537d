"""Nothing of a DICOM header that may name somebody is in anything that the commands write, log or show."""

from __future__ import annotations

import gzip
import io
import logging
import shutil
import traceback
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pydicom
import pytest
from pydicom.config import disable_value_validation
from pydicom.dataset import Dataset
from typer.testing import CliRunner
from workflows import EXPLAINED_NETWORK, Start, run

from fairlung.pipeline.cli.app import app
from fairlung.pipeline.common.names import CLASS_NAMES, SEXES
from fairlung.pipeline.phantoms.cohort import Preset, write_phantom_cohort

pytestmark = pytest.mark.slow  # a training, two inferences and four commands

TEXTS = (
    "PatientName", "PatientID", "OtherPatientIDs", "PatientAddress", "PatientComments", "PatientMotherBirthName",
    "AccessionNumber", "StudyID", "InstitutionName", "InstitutionAddress", "StationName", "ReferringPhysicianName",
    "PerformingPhysicianName", "OperatorsName", "StudyDescription", "SeriesDescription", "ProtocolName",
    "ImageComments", "RequestedProcedureDescription", "DeviceSerialNumber",
)  # fmt: skip
# no two alike, none part of anything else, and short enough for a value of 16 characters
TOKENS = {tag: f"QZX{number:02}PLANTED" for number, tag in enumerate(TEXTS)}
TOKENS |= {"PatientBirthDate": "19370428", "private": "QZXPRIVATE", "sequence": "QZXNESTED", "number": "QZXNUMBER1"}
NAMED = "QZXFOLDER"  # how the folders of the cohort's scans begin
ODD_NUMBER = "9.87654321"  # as long as its token, which takes its place: what cannot be parsed is easily quoted


def plant(path: Path, odd: bool = False) -> None:
    dataset = pydicom.dcmread(path)
    nested = Dataset()
    nested.PatientID = TOKENS["sequence"]
    dataset.OtherPatientIDsSequence = [nested]
    for tag in (*TEXTS, "PatientBirthDate"):
        setattr(dataset, tag, TOKENS[tag])
    dataset.private_block(0x0029, "QZX", create=True).add_new(1, "LO", TOKENS["private"])
    if odd:
        dataset.RescaleSlope, dataset.SliceThickness, dataset.GantryDetectorTilt = [ODD_NUMBER] * 3
    with disable_value_validation():
        dataset.save_as(path)
    path.write_bytes(path.read_bytes().replace(ODD_NUMBER.encode(), TOKENS["number"].encode()))


def contents(content: bytes) -> Iterator[bytes]:
    """The bytes of a file, and of what is packed in it."""
    yield content
    if content[:2] == b"\x1f\x8b":
        yield from contents(gzip.decompress(content))
    elif zipfile.is_zipfile(io.BytesIO(content)):
        with zipfile.ZipFile(io.BytesIO(content)) as packed:
            for name in packed.namelist():
                yield name.encode()
                yield from contents(packed.read(name))


@pytest.fixture(scope="module")
def written(start: Start, tmp_path_factory: pytest.TempPathFactory, bundle_dir: Path) -> dict[str, bytes]:
    """All that the commands leave of a cohort and of new scans, by path, with what is packed; and the log."""
    folder = tmp_path_factory.mktemp("planted")
    cells = {(label, sex): 1 for label in CLASS_NAMES for sex in SEXES}
    preset = Preset({"train": cells, "val": cells}, size=32, slices=(12, 12))
    cohort = write_phantom_cohort(folder / "source", preset, "dicom", workers=1, progress=False)
    for path in cohort.parent.rglob("*.dcm"):
        plant(path)
    table = pd.read_csv(cohort)
    for row, scan in enumerate(map(cohort.parent.joinpath, table["scan"])):
        table.loc[row, "scan"] = str(scan.rename(scan.with_name(f"{NAMED}{row}")).relative_to(cohort.parent))
    table.to_csv(cohort, index=False)
    (folder / "key").write_text("0123456789abcdef0123456789abcdef")
    scan = next(path.parent for path in cohort.parent.rglob("*.dcm"))
    for name in ("odd", "torn", "bare"):
        shutil.copytree(scan, folder / "source" / "new" / name)
    for path in (folder / "source" / "new" / "odd").iterdir():
        plant(path, odd=True)
    for path in (folder / "source" / "new" / "torn").iterdir():
        path.write_bytes(path.read_bytes()[:-900])
    for path in (folder / "source" / "new" / "bare").iterdir():
        dataset = pydicom.dcmread(path)
        del dataset.StudyInstanceUID
        dataset.save_as(path)
    shutil.copytree(scan, folder / "source" / "new" / "fine")
    out = folder / "out"
    log, factory = io.StringIO(), logging.getLogRecordFactory()
    handler = logging.StreamHandler(log)
    logging.getLogger().addHandler(handler)
    try:
        with pytest.MonkeyPatch.context() as patch:
            out.mkdir()
            patch.chdir(out)  # MLflow keeps artifacts in the working directory
            patch.setenv("FAIRLUNG_TRACEBACK", "1")
            log.write(_run_all(start, cohort, folder / "source" / "new", out, bundle_dir))
    finally:
        logging.getLogger().removeHandler(handler)
        logging.setLogRecordFactory(factory)  # pseudonyms take names out of the log
    found = {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    found = {name: b"\n".join(contents(content)) for name, content in found.items()}
    return found | {"names": "\n".join(found).encode(), "log": log.getvalue().encode()}


def _run_all(start: Start, cohort: Path, new: Path, out: Path, bundle: Path) -> str:
    """What the console shows; the tracebacks of what fails too."""
    shown = []
    network = {"network_def": EXPLAINED_NETWORK}
    settings = network | {"cohort": str(cohort), "output_dir": str(out / "run"), "cache_dir": str(out / "cache")}
    settings |= {"tracking_uri": f"sqlite:///{out}/mlflow.db", "model_file": str(out / "model.pt"), "epochs": 1}
    settings["pseudonymize"] = str(out.parent / "key")
    run(start("train", **settings))
    del settings["model_file"]
    run(start("train", "evaluate", **settings))
    logging.getLogger("fairlung.test").info("the cohort is judged")
    for inference in ({"overlay": True, "dicom_out": True}, {"all_series": True}):
        place = {"scans": str(new), "output_dir": str(out / f"answers {len(shown)}"), "min_slices": 5}
        with pytest.raises(SystemExit):
            run(start("inference", **network, **place, checkpoint=str(out / "run" / "models" / "best.pt"), **inference))
        shown.append("")
    table = pd.read_csv(cohort)
    table["scan"] = [str(cohort.parent / scan) for scan in table["scan"]]
    table.loc[0, "scan"] = str(new / "odd")
    table.to_csv(out / "odd.csv", index=False)
    with pytest.raises(Exception) as failed:  # noqa: PT011  (MONAI wraps every kind)
        run(start("train", **settings | {"cohort": str(out / "odd.csv"), "output_dir": str(out / "odd")}))
    shown += traceback.format_exception(failed.value)
    for command in (
        ["check", new, "-o", out / "check", "--workers", "0", "--bundle-root", bundle],
        ["cohort", cohort.parent / "scans", "-o", out / "cohort.csv", "--chart", out / "chart.png"],
        ["report", out / "run"],
        ["results", out / "run"],
    ):
        result = CliRunner().invoke(app, [str(argument) for argument in command])
        assert result.exit_code in (0, 3), result.output
        shown.append(result.output)
    return "\n".join(shown)


def test_the_commands_were_run(written: dict[str, bytes]) -> None:
    names = "\n".join(written)
    parts = ("run/history.csv", "evaluation/report.html", "errors/", "report.dcm", "montage.dcm", "overlay/fine.png")
    for part in (*parts, "mlflow.db", "mlruns/", "cache/", "check/index.html", "cohort.csv", "chart.png"):
        assert part in names, part
    assert b"cannot be read" in written["log"] and b"Traceback" in written["log"]


@pytest.mark.fault(
    "leaked", "what a DICOM header says of a patient", before="in none of 465 files, searched by hand",
    now="in no output, log, cache or MLflow store, searched by a test",
)  # fmt: skip
@pytest.mark.parametrize("tag", TOKENS)
def test_no_token_of_a_header_is_in_anything_written(written: dict[str, bytes], tag: str) -> None:
    forms = [TOKENS[tag].encode(code) for code in ("utf-8", "utf-16-le", "utf-16-be")]
    assert not [name for name, content in written.items() if any(form in content for form in forms)]


@pytest.mark.fault(
    "leaked", "a cohort's scans in folders named by patients", before="their names in tables, reports, MLflow, the log",
    now="keyed digests everywhere with --pseudonymize",
)  # fmt: skip
def test_no_name_of_a_scan_is_in_a_training_or_an_evaluation(written: dict[str, bytes]) -> None:
    parts = ("run/", "cache/", "mlruns/", "mlflow.db", "odd/")
    named = [name for name, content in written.items() if NAMED.encode() in content and name.startswith(parts)]
    assert not named
    assert NAMED.encode() not in written["log"].partition(b"the cohort is judged")[0]
    assert NAMED.encode() in written["cohort.csv"]  # the search finds them
    for name in ("run/val/predictions.csv", "run/val/evaluation/predictions.csv", "run/intake/train.csv"):
        assert b"scan-" in written[name]


def test_the_search_finds_what_is_packed() -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a.gz", gzip.compress(b"QZX" * 100))
    assert any(b"QZXQZX" in content for content in contents(packed.getvalue()))
