"""Scans at remote addresses are found and read as the same files are from a folder, or are refused in a line."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import fsspec
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from fsspec.implementations.memory import MemoryFileSystem
from remote_stores import PASSWORD, SECRETS, SIGNATURE, USER, Web, left, web
from small_scans import save_grey

from fairlung.pipeline.common.text import without_login
from fairlung.pipeline.data.dataset import scan_fingerprint
from fairlung.transforms import LoadScan, ScanError, ScanSource, find_scans, remote
from fairlung.transforms.addresses import located, shown


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    yield
    assert left() == []


@pytest.fixture(scope="module")
def tree(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What hospitals and challenges put side by side."""
    root = tmp_path_factory.mktemp("stores") / "tree"
    for part in ("S1", "S2"):
        (root / "study one" / part).mkdir(parents=True)
    slices = [
        shutil.copy(path, root / "study one" / "S1") for path in sorted((data_dir / "chest_ct_dicom").iterdir())[::4]
    ]
    for path in slices[10:]:  # a series that goes on in another folder, its files without a suffix
        Path(path).rename(root / "study one" / "S2" / Path(path).stem)
    (root / "study one" / "S2" / "README").write_text("no DICOM")
    shutil.copytree(root / "study one" / "S1", root / "study one" / "again")
    for path in (root / "study one" / "again").iterdir():  # another series of the study
        dataset = pydicom.dcmread(path)
        dataset.SeriesInstanceUID, dataset.SeriesNumber = "1.2.3", 7
        dataset.SOPInstanceUID = f"1.2.3.{dataset.InstanceNumber}"
        dataset.save_as(path)
    scan = sitk.ReadImage(str(data_dir / "chest_ct.nrrd"))
    (root / "volumes").mkdir()
    for name in ("ct.nii.gz", "header.mhd", "ct 2.mha"):
        sitk.WriteImage(scan, str(root / "volumes" / name))
    (root / "volumes" / "preview.jpg").write_bytes(b"no scan")
    save_grey(root / "slices" / "10", [f"{n}.png" for n in range(12)])
    save_grey(root / "logo", ["logo.png"])
    (root / ".hidden").mkdir()
    shutil.copy(data_dir / "chest_ct.nrrd", root / ".hidden" / "ct.nrrd")
    (root / "notes.txt").write_text("no scan")
    (root / "LICENSE").write_text("no scan")
    return root


@pytest.fixture(scope="module")
def server(tree: Path) -> Iterator[Web]:
    with web(tree.parent) as running:
        yield running


@pytest.fixture
def place(request: pytest.FixtureRequest, tree: Path, server: Web) -> Iterator[str]:
    """The address of the tree."""
    server.faults, server.asks_for_login, server.asks_for_signature = {}, False, False
    if request.param == "http":
        yield f"{server.address}/tree"
        return
    memory = fsspec.filesystem("memory")
    memory.put(str(tree), "/bucket/tree", recursive=True)
    yield "memory://bucket/tree"
    memory.rm("/bucket", recursive=True)


both = pytest.mark.parametrize("place", ["memory", "http"], indirect=True)
memory = pytest.mark.parametrize("place", ["memory"], indirect=True)
http = pytest.mark.parametrize("place", ["http"], indirect=True)


@both
@pytest.mark.parametrize("settings", [{}, {"all_series": True}, {"one_per_study": True}], ids=str)
def test_the_scans_of_an_address_are_those_of_the_folder(place: str, tree: Path, settings: dict[str, bool]) -> None:
    here, there = find_scans(tree, **settings), find_scans(place, **settings)
    assert [item["scan"] for item in there] == [item["scan"] for item in here]
    assert len(here) == 7 - settings.get("one_per_study", False)
    for near, far in zip(here, there, strict=True):
        expected, found = (_read(item["image"]) for item in (near, far))
        files = [unquote(file).replace(place, str(tree)) for file in found["record"].pop("files")]
        assert files == expected["record"].pop("files")
        assert found["record"] == expected["record"]
        np.testing.assert_array_equal(found["volume"], expected["volume"])


def _read(source: str | ScanSource) -> dict[str, Any]:
    try:
        volume, record = LoadScan(min_slices=5, size=32).read(source)
    except ScanError as error:
        return {"volume": None, "record": error.record}
    return {"volume": volume.numpy(), "record": record}


@both
def test_one_file_and_a_list_at_an_address(place: str, tree: Path, tmp_path: Path) -> None:
    (item,) = find_scans(f"{place}/volumes/ct.nii.gz")
    assert item["scan"] == "ct.nii.gz" and _read(item["image"])["volume"] is not None
    listing = "scan\nvolumes/header.mhd\n{0}/slices/10\nvolumes/none.nii.gz\nlogo/../volumes/ct%202.mha\nslices/none\n"
    listing = listing.format(place) if "http" in place else listing.format(place).replace("%20", " ")
    (tree / "list.csv").write_text(listing)
    if "memory" in place:
        fsspec.filesystem("memory").put(str(tree / "list.csv"), "/bucket/tree/list.csv")
    found = find_scans(f"{place}/list.csv")
    (tree / "list.csv").unlink()
    volumes = [_read(item["image"]) for item in found]
    assert [one["volume"] is not None for one in volumes] == [True, True, False, True, False]
    assert found[1]["scan"] == f"{place}/slices/10"
    assert all(found[n]["image"].problem == "does not exist" for n in (2, 4))
    (tmp_path / "own.csv").write_text(f"scan\n{place}/slices/10\nnear.nii.gz\n")
    shutil.copy(tree / "volumes" / "ct.nii.gz", tmp_path / "near.nii.gz")
    assert all(_read(item["image"])["volume"] is not None for item in find_scans(tmp_path / "own.csv"))


@memory
def test_a_slice_that_goes_or_changes_after_the_listing_is_not_passed_over(place: str) -> None:
    store = fsspec.filesystem("memory")
    (item,) = [item for item in find_scans(place) if item["scan"] == "slices/10"]
    store.rm("/bucket/tree/slices/10/4.png")
    assert "not those that were listed" in _read(item["image"])["record"]["reason"]
    (item,) = [item for item in find_scans(place) if item["scan"] == "slices/10"]
    assert _read(item["image"])["record"]["slices_found"] == 11
    store.pipe("/bucket/tree/slices/10/5.png", b"other")
    assert "not those that were listed" in _read(item["image"])["record"]["reason"]
    store.rm("/bucket/tree/slices", recursive=True)
    assert _read(item["image"])["record"]["reason"] == "does not exist"


@http
@pytest.mark.parametrize(
    ("fault", "said"), [("gone", "does not exist"), ("denied", "access is denied"), ("torn", "broke off")]
)
def test_a_file_that_cannot_be_fetched_refuses_its_scan_alone(place: str, server: Web, fault: str, said: str) -> None:
    scans = {item["scan"]: item["image"] for item in find_scans(place)}
    server.faults = {"/tree/slices/10/7.png": fault, "/tree/volumes/ct.nii.gz": fault}
    for name in ("slices/10", "volumes/ct.nii.gz"):
        record = _read(scans[name])["record"]
        assert record["status"] == "refused" and said in record["reason"] and "\n" not in record["reason"]
    assert _read(scans["slices/10"])["record"]["reason"].startswith("7.png: ")
    assert _read(scans["volumes/header.mhd"])["volume"] is not None


@http
def test_a_folder_that_cannot_be_listed_becomes_a_scan_that_says_so(place: str, server: Web) -> None:
    server.faults = {"/tree/slices/": "denied"}
    found = {item["scan"]: item["image"] for item in find_scans(place)}
    assert "access is denied" in found["slices"].problem
    assert len(found) == 7


@http
def test_what_is_too_large_is_refused_before_or_while_it_comes(
    place: str, server: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    (item,) = [item for item in find_scans(place) if item["scan"] == "volumes/ct.nii.gz"]
    monkeypatch.setattr(remote, "MAX_REMOTE_BYTES", 10_000)
    assert "the limit" in _read(item["image"])["record"]["reason"]
    monkeypatch.setattr(remote, "MAX_REMOTE_BYTES", 8 << 20)
    server.faults = {"/tree/volumes/ct.nii.gz": "endless"}
    assert "the limit" in _read(item["image"])["record"]["reason"]


@memory
def test_a_full_disk_is_said(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (item,) = [item for item in find_scans(place) if item["scan"] == "volumes/ct.nii.gz"]
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(100, 99, 1))  # type: ignore[attr-defined]
        assert "where 1e-09 GB are free" in _read(item["image"])["record"]["reason"]

    def fails(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(MemoryFileSystem, "get_file", fails)
    assert _read(item["image"])["record"]["reason"] == "the disk is full"


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("memory://none/at/all", "does not exist"),
        ("nope://bucket/x", "no protocol that fsspec knows"),
        ("abfs://bucket/x", "needs a package that is not installed: "),
        (f"http://{USER}:QZXPASS@127.0.0.1:9/scans", "does not answer"),
        (f"http://{USER}:QZXPASS@127.0.0.1:9/ct.nii.gz?token=QZXTOKEN", "does not answer"),
        ("http://127.0.0.1:9/scans?token=QZXTOKEN", "a query is one file's"),
    ],
)
def test_a_root_that_cannot_be_listed_is_one_line(address: str, said: str) -> None:
    if address.startswith("abfs") and "abfs" in fsspec.registry:
        pytest.skip("its package is installed")
    with pytest.raises(ValueError, match="--scans: ") as caught:
        find_scans(address)
    text = str(caught.value)
    assert said in text
    assert "\n" not in text and not any(secret in text for secret in SECRETS)


@http
def test_logins_open_what_they_should_and_are_shown_nowhere(place: str, server: Web, tmp_path: Path) -> None:
    host = server.address.partition("://")[2]
    server.asks_for_login = True
    with pytest.raises(ValueError, match="access is denied"):
        find_scans(place)
    named = f"http://{USER}:{quote(PASSWORD, safe='')}@{host}/tree"
    found = find_scans(named)
    assert [item["scan"] for item in found][-1] == "volumes/header.mhd"
    read = [_read(item["image"]) for item in found]
    assert sum(one["volume"] is not None for one in read) == 6
    server.asks_for_login, server.asks_for_signature = False, True
    signed = f"{place}/volumes/ct.nii.gz?X-Amz-Signature="
    (item,) = find_scans(f"{signed}{SIGNATURE}")
    assert item["scan"] == "ct.nii.gz" and _read(item["image"])["volume"] is not None
    (tmp_path / "list.csv").write_text(f"scan\n{signed}{SIGNATURE}\n{signed}QZXOTHER\n")
    good, bad = find_scans(tmp_path / "list.csv")
    assert (good["scan"], bad["scan"]) == (f"{place}/volumes/ct.nii.gz", f"{place}/volumes/ct.nii.gz (line 3)")
    with pytest.raises(ScanError) as refused:
        LoadScan()(bad["image"])
    assert "access is denied" in str(refused.value)
    told = [*(item["scan"] for item in found), *(item["image"] for item in (*found, good, bad)), refused.value]
    assert not [secret for secret in SECRETS for text in told if secret in str(text)]


@both
def test_a_fingerprint_follows_the_files(place: str, tree: Path) -> None:
    scans = {item["scan"]: item["image"].path for item in find_scans(place)}
    before = {name: scan_fingerprint(path) for name, path in scans.items()}
    assert len(set(before.values())) == len(before)
    assert {name: scan_fingerprint(path) for name, path in scans.items()} == before
    changed = {"slices/10": "slices/10/3.png", "volumes/header.mhd": "volumes/header.raw"}
    kept = {path: (tree / path).read_bytes() for path in changed.values()}
    try:
        for path, content in kept.items():
            (tree / path).write_bytes(content + b"more")
            if "memory" in place:
                fsspec.filesystem("memory").pipe(f"/bucket/tree/{path}", content + b"more")
        after = {name: scan_fingerprint(path) for name, path in scans.items()}
    finally:
        for path, content in kept.items():
            (tree / path).write_bytes(content)
    assert {name for name in before if before[name] != after[name]} == set(changed)
    with pytest.raises(ScanError, match="does not exist"):
        scan_fingerprint(f"{place}/volumes/none.nii.gz")


def test_a_header_that_names_voxels_elsewhere_is_refused(tmp_path: Path) -> None:
    store = fsspec.filesystem("memory")
    store.pipe("/elsewhere/ct.mhd", b"ObjectType = Image\nElementDataFile = /etc/passwd\n")
    assert "do not lie beside it" in _read("memory://elsewhere/ct.mhd")["record"]["reason"]
    store.rm("/elsewhere", recursive=True)


@pytest.mark.parametrize(
    ("address", "text"),
    [
        ("s3://bucket/a@b/c:d@e.nii", "s3://bucket/a@b/c:d@e.nii"),
        ("s3://key:se/cr@et@bucket/x", "s3://bucket/x"),
        ("s3://bucket/what?.nii", "s3://bucket/what?.nii"),
        ("http://host:8080/a@b.nii#x", "http://host:8080/a@b.nii"),
        ("sftp://ann@host/x", "sftp://host/x"),
        ("/data/a@b?c", "/data/a@b?c"),
    ],
)
def test_shown(address: str, text: str) -> None:
    assert shown(address) == text


def test_located() -> None:
    assert located("/data", "a/./b") == "/data/a/b" and located("/data", "/else/b") == "/else/b"
    assert located("/data", "s3://bucket/b") == "s3://bucket/b"
    assert located("s3://bucket/x", "../y/b") == "s3://bucket/y/b" and located("s3://bucket/x", "/local") == "/local"


@pytest.mark.parametrize("name", ["X-Amz-Signature", "X-Amz-Credential", "X-Goog-Signature", "AWSAccessKeyId", "sig"])
def test_the_log_has_no_signatures(name: str) -> None:
    text = f"> scans: https://host/ct.nii.gz?part=2&{name}=QZX%2FSECRET&expires=60"
    assert without_login(text) == f"> scans: https://host/ct.nii.gz?part=2&{name}=&expires=60"
