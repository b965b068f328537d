"""Pseudonyms: stable under a key, told by nothing else, and in place of every name."""

from __future__ import annotations

import hashlib
import hmac
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path

import pydicom
import pytest
from cohort_files import full_rows, load, write_rows

from fairlung.pipeline.data.archives import scan_roots
from fairlung.pipeline.data.pseudonyms import PseudonymKeyError, Pseudonyms, study_uid
from fairlung.pipeline.inference.about_scans import AboutScans
from fairlung.pipeline.inference.answers import Answer
from fairlung.transforms import find_scans
from fairlung.transforms.scan import ScanSource

pytestmark = pytest.mark.usefixtures("plain_log_entries")


@pytest.fixture
def key(tmp_path: Path) -> Path:
    path = tmp_path / "key"
    path.write_text("0123456789abcdef\n")
    return path


def answer(scan: str, reason: str = "", warnings: Sequence[str] = (), files: Sequence[Path] = ()) -> Answer:
    intake = {"kind": "dicom", "files": [str(file) for file in files], "reason": reason, "warnings": list(warnings)}
    return Answer(scan, "ok", reason, None, {}, None, list(warnings), intake)


def test_the_digest_is_hmac_sha256_under_the_key(key: Path, tmp_path: Path) -> None:
    """An independent computation gives the same, so names are the same with any version."""
    names = Pseudonyms(key, tmp_path / "out")
    (item,) = names.finder(lambda roots: [{"image": "/data/DOE", "scan": "DOE"}])("/data")
    expected = hmac.new(b"0123456789abcdef", b"scan\0DOE", hashlib.sha256).hexdigest()[:16]
    assert item == {"image": "/data/DOE", "scan": f"scan-{expected}"}
    key.write_text("another key of 16 bytes")
    assert Pseudonyms(key, tmp_path / "out").digest("scan", "DOE") != expected


def test_without_a_key_names_stay_and_studies_are_joined_within_a_run(data_dir: Path) -> None:
    files = sorted((data_dir / "chest_ct_dicom").iterdir())
    uid = pydicom.dcmread(files[0]).StudyInstanceUID
    names = Pseudonyms()
    assert names.finder(lambda roots: [{"image": "a", "scan": "DOE"}])("/") == [{"image": "a", "scan": "DOE"}]
    first, second = (answer("DOE", "DOE", files=[file]).under(names) for file in files[:2])
    assert first.study == second.study != "" and uid not in first.study and first.reason == "DOE"
    assert answer("DOE", files=files).under(Pseudonyms()).study != first.study  # a random key
    assert answer("x", files=[data_dir / "chest_ct.nrrd"]).under(names).study == ""
    assert study_uid(str(data_dir / "none")) == ""


# what commands say of scans and of what lies among them, with the root for {}
TEXTS = [
    "{}/DOE JANE/ct: holds no readable DICOM image", "{}/DOE JANE/ct: DOE1.png: cannot be decoded",
    "cannot identify image file '{}/DOE JANE/ct/DOE1.png'", "{}/DOE JANE/DOE unknown: Permission denied",
    "{}/DOE^JOHN.nrrd: is damaged", "DOE JANE/ct: the pictures in it are not taken", "{}/DOE JANE/ct#2: is a localizer",
]  # fmt: skip


@pytest.mark.fault(
    "leaked", "reasons and warnings that hold a scan's path", before="the path, with whatever name is in it",
    now="the scan's pseudonym with --pseudonymize",
)  # fmt: skip
@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize("text", TEXTS)
def test_texts_are_without_names(
    text: str, relative: bool, key: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog
) -> None:
    monkeypatch.chdir(tmp_path)
    root = Path("scans") if relative else tmp_path / "scans"
    (root / "DOE JANE" / "ct").mkdir(parents=True)
    (root / "DOE JANE" / "ct" / "DOE1.png").touch()
    names = Pseudonyms(key, tmp_path / "out", str(root))
    found = [{"image": str(root / scan), "scan": scan} for scan in ("DOE JANE/ct", "DOE^JOHN.nrrd")]
    found.append({"image": ScanSource(str(root / "DOE JANE/ct"), series=2), "scan": "DOE JANE/ct#2"})
    scan = names.finder(lambda roots: found)(root)[0]["scan"]
    given = text.replace("{}", str(root))
    told = answer(scan, given, [f"code: {given}"]).under(names)
    assert "DOE" not in repr(told) and told.reason and told.warnings[0].startswith("code: ")
    logger = logging.getLogger("fairlung.test")
    with caplog.at_level(logging.INFO):
        logger.warning("%s", given)
        logger.warning("%s waits for %s", "DOE JANE", "DOE JANE/ct/DOE1.png")
        logger.warning("%s: %d of %s", OSError(given), 1, "DOE JANE/ct, DOE^JOHN.nrrd")
        logger.warning("%(what)s", {"what": 7})
        logger.warning(f"{given}")
    assert "DOE" not in caplog.text and "waits for" in caplog.text and len(caplog.messages) == 5


def test_archives_and_what_is_said_of_them(key: Path, data_dir: Path, tmp_path: Path, caplog) -> None:
    root = tmp_path / "scans"
    root.mkdir()
    (root / "packed" / "DOE").mkdir(parents=True)
    shutil.copy(data_dir / "chest_ct.nrrd", root / "packed" / "DOE" / "ct.nrrd")
    shutil.make_archive(str(root / "DOE"), "zip", root / "packed")
    shutil.rmtree(root / "packed")
    (root / "DOE_torn.zip").write_bytes((root / "DOE.zip").read_bytes()[:3000])
    names = Pseudonyms(key, tmp_path / "out", str(root))
    with caplog.at_level(logging.INFO):
        items = names.finder(find_scans)(scan_roots(str(root)))
    assert len(items) == 2 and all(item["scan"].startswith("scan-") for item in items)
    (torn,) = (item["image"] for item in items if isinstance(item["image"], ScanSource))
    assert torn.problem and "DOE" not in torn.problem + caplog.text


@pytest.mark.parametrize(
    "where, content, said",
    [
        ("out/deep/key", b"k" * 32, "lies in"),
        ("short", b" " + b"k" * 15 + b"\n", "must have at least 16 bytes"),
        ("none", None, "cannot be read .* openssl rand -hex 32 >"),
        ("folder", b"", "cannot be read"),
    ],
)
def test_a_key_file_that_protects_nothing_is_refused(
    where: str, content: bytes | None, said: str, tmp_path: Path
) -> None:
    path = tmp_path / where
    path.parent.mkdir(parents=True, exist_ok=True)
    if content:
        path.write_bytes(content)
    elif content is not None:
        path.mkdir()
    with pytest.raises(PseudonymKeyError, match=said):
        Pseudonyms(path, tmp_path / "out")
    assert path.exists() == (content is not None)  # a key is never made silently


# ---- patients of a cohort --------------------------------------------------------------------------------------------
def test_a_patient_is_the_same_digest_in_every_run_with_a_key(key: Path, tmp_path: Path) -> None:
    rows = [row | {"patient": "Zoë", "site": "A"} for row in full_rows(groups=("male",))]
    rows[1]["patient"], rows[2]["patient"], rows[3]["patient"] = "Zoe\u0308", "", "roe"
    cohort = load(write_rows(tmp_path, [row | {"split": "train"} for row in rows]), allow_empty_cells=True)
    about = AboutScans(cohort, key, tmp_path / "out")
    assert about.columns == ["patient", "site"]
    (zoe, site), same, nobody, (roe, _) = (about.row(f"s{i}") for i in range(4))
    expected = hmac.new(b"0123456789abcdef", "patient\0Zo\u00eb".encode(), hashlib.sha256).hexdigest()[:16]
    assert (zoe, site) == (expected, "A") and same == [zoe, "A"] and nobody == ["", "A"] and roe != zoe
    assert AboutScans(cohort, key, tmp_path / "out").row("s0") == [zoe, "A"]
    assert AboutScans(cohort, key, tmp_path / "out", named := Pseudonyms(key, tmp_path / "out")).row(
        named.scan("s0")
    ) == [zoe, "A"]
    random = AboutScans(cohort)
    assert random.row("s0") == random.row("s1") != AboutScans(cohort).row("s0")
    with pytest.raises(PseudonymKeyError, match="patient_key: .* lies in "):
        AboutScans(cohort, key, tmp_path)


def test_what_a_cohort_does_not_have_or_groups_by_is_no_column(tmp_path: Path) -> None:
    bare = [{name: row[name] for name in ("scan", "label", "sex", "split")} for row in full_rows()]
    assert AboutScans(load(write_rows(tmp_path / "a", bare))).row("s0") == []
    sites = write_rows(tmp_path / "b", full_rows(groups=("p", "q"), column="site"))
    assert AboutScans(load(sites, group_by="site", group_names=None)).columns == ["patient"]


def test_a_patient_of_two_groups_is_one_of_each(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = full_rows(groups=("p", "q"), splits=("train",), column="site")
    rows = [row | {"patient": row["patient"] if i > 2 else "DOE"} for i, row in enumerate(rows)]
    about = AboutScans(load(write_rows(tmp_path, rows), group_by="site", group_names=None))
    assert about.row("s0") == about.row("s2") != about.row("s1")
    assert [record.getMessage() for record in caplog.records] == [
        "patients of several groups, each of which counts as a patient of each: 1"
    ]
