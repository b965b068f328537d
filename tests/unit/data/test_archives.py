"""Archives: what comes out is what went in, or nothing does, and nothing lands outside the target."""

from __future__ import annotations

import io
import multiprocessing
import random
import shutil
import stat
import struct
import tarfile
import time
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from rarfile import RAR5_ID
from typer.testing import CliRunner

from fairlung.pipeline.cli.app import app
from fairlung.pipeline.common.names import CLASS_NAMES, SEXES
from fairlung.pipeline.data import archives, rar, unpack_limits
from fairlung.pipeline.data.archives import archive_stem, archives_in, build_with_archives, unpack
from fairlung.pipeline.data.cohort import load_cohort
from fairlung.pipeline.data.rar import RAR_PROGRAMS, read_rar
from fairlung.pipeline.data.unpack_limits import ArchiveError, Limits

FILES = {"A/male/ct 1/0.jpg": b"first", "A/male/ct 1/1.jpg": b"second" * 99, "G/female/ct_2/0.jpg": "ü".encode()}
KINDS = ("zip", "tar", "tar.gz", "tar.bz2", "tar.xz", "rar")
needs_program = pytest.mark.skipif(not any(map(shutil.which, RAR_PROGRAMS)), reason="no program for RAR is installed")


def pack(path: Path, files: dict[str, bytes] = FILES) -> Path:
    """An archive of these files; its kind is that of its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
            for name, data in files.items():
                file.writestr(name, data)
    elif path.suffix == ".rar":
        path.write_bytes(rar_archive([rar_file(name, data) for name, data in files.items()]))
    else:
        kind = path.suffix[1:] if path.suffix != ".tar" else ""
        with tarfile.open(path, f"w:{kind}") as file:
            for name, data in files.items():
                member = tarfile.TarInfo(name)
                member.size = len(data)
                file.addfile(member, io.BytesIO(data))
    return path


def number(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def rar_block(kind: int, fields: bytes, extra: bytes = b"", data: bytes | None = None, flags: int = 0) -> bytes:
    flags |= (1 if extra else 0) | (2 if data is not None else 0)
    header = number(kind) + number(flags)
    header += (number(len(extra)) if extra else b"") + (number(len(data)) if data is not None else b"")
    header += fields + extra
    header = number(len(header)) + header
    return struct.pack("<I", zlib.crc32(header)) + header + (data or b"")


def rar_file(
    name: str,
    data: bytes,
    size: int | None = None,
    link: str = "",
    flags: int = 0,
    whole: bytes | None = None,
    encrypted: bool = False,
) -> bytes:
    """A stored file, or a symbolic link; ``flags`` 8 and 16 say that it began before and goes on after."""
    whole = data if whole is None else whole
    mode = stat.S_IFLNK | 0o777 if link else stat.S_IFREG | 0o644
    fields = number(4) + number(len(whole) if size is None else size) + number(mode)
    fields += struct.pack("<I", zlib.crc32(data if flags & 16 else whole)) + number(0) + number(1)
    fields += number(len(name.encode())) + name.encode()
    record = number(5) + number(1) + number(0) + number(len(link.encode())) + link.encode() if link else b""
    record = number(1) + bytes(40) if encrypted else record
    return rar_block(2, fields, number(len(record)) + record if record else b"", data, flags)


def rar_archive(blocks: list[bytes], volume: int | None = None, more: bool = False) -> bytes:
    """RAR 5 of stored files: the part of the format that is easily written."""
    main = number(0) if volume is None else number(3 if volume else 1) + (number(volume) if volume else b"")
    return RAR5_ID + rar_block(1, main) + b"".join(blocks) + rar_block(5, number(int(more)))


def tree(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != archives.MARKER
    }


def refusal(archive: Path, **limits: float) -> str:
    """Why an archive is not unpacked; and that nothing is left of the attempt."""
    before = set(archive.parent.rglob("*"))
    with pytest.raises(ArchiveError) as caught:
        unpack(archive, archive.parent / "target", Limits(**limits))  # type: ignore[arg-type]
    assert set(archive.parent.rglob("*")) == before
    return str(caught.value)


@pytest.fixture
def programs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., None]:
    """Only these programs are installed: real shell scripts by the name of one, or links to real ones."""

    def install(*names: str, **scripts: str) -> None:
        folder = tmp_path / "bin"
        folder.mkdir(exist_ok=True)
        for name in names:
            (folder / name).symlink_to(shutil.which(name))  # type: ignore[arg-type]
        for name, script in scripts.items():
            (folder / name).write_text(f"#!/bin/sh\nPATH=/usr/bin:/bin\n{script}\n")
            (folder / name).chmod(0o755)
        monkeypatch.setenv("PATH", str(folder))

    return install


@pytest.mark.parametrize("kind", [pytest.param(k, marks=needs_program) if k == "rar" else k for k in KINDS])
def test_what_comes_out_is_what_went_in(kind: str, tmp_path: Path) -> None:
    archive = pack(tmp_path / f"train1.{kind}")
    done = unpack(archive, tmp_path / "out" / "train1")
    assert tree(tmp_path / "out" / "train1") == FILES
    assert (done.files, done.bytes, done.reused) == (3, sum(map(len, FILES.values())), False)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["train1"]
    again = unpack(archive, tmp_path / "out" / "train1")
    assert again == done._replace(reused=True)


@settings(max_examples=30)
@given(
    files=st.dictionaries(
        st.from_regex(r"[a-z]{1,3}/[a-zé ]{0,5}[a-z]\.jpg", fullmatch=True), st.binary(max_size=99), min_size=1
    )
)
def test_every_kind_gives_the_same(files: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("kinds")
    for kind in ("zip", "tar.gz"):
        unpack(pack(folder / f"packed.{kind}", files), folder / kind)
        assert tree(folder / kind) == files
    members, volumes = read_rar(pack(folder / "packed.rar", files))
    assert {member.name: member.size for member in members} == {name: len(data) for name, data in files.items()}
    assert volumes == [folder / "packed.rar"]


@pytest.mark.parametrize("kind", KINDS)
def test_truncated_anywhere_is_an_error(kind: str, tmp_path: Path) -> None:
    data = pack(tmp_path / f"whole.{kind}").read_bytes()
    end = len(data) if kind != "tar" else data.rindex("ü".encode()) + 512  # the rest is padding
    # everywhere in the short ones; at every header and in between in tar
    for length in range(0, end, max(1, end // 97) if kind != "tar" else 256):
        (tmp_path / f"cut.{kind}").write_bytes(data[:length])
        assert "cut" in refusal(tmp_path / f"cut.{kind}")
        (tmp_path / f"cut.{kind}").unlink()


@pytest.mark.parametrize("kind", ["zip", "tar.gz", "tar.xz", pytest.param("rar", marks=needs_program)])
def test_no_flipped_bit_gives_other_files(kind: str, tmp_path: Path) -> None:
    data = bytearray(pack(tmp_path / f"whole.{kind}").read_bytes())
    rng = random.Random(0)
    refused = 0
    for i, at in enumerate(rng.sample(range(len(data)), 12)):
        flipped = bytearray(data)
        flipped[at] ^= 1 << rng.randrange(8)
        (tmp_path / f"flipped.{kind}").write_bytes(flipped)
        try:
            unpack(tmp_path / f"flipped.{kind}", tmp_path / f"out{i}")
        except ArchiveError:
            refused += 1
        else:  # a time, a mode, or a name: zip and gz have no checksum of their headers
            assert sorted(tree(tmp_path / f"out{i}").values()) == sorted(FILES.values())
    assert refused > 2


@pytest.mark.parametrize("kind", ["zip", "tar", "rar"])
@pytest.mark.parametrize("name", ["../evil", "a/../../evil", "/tmp/evil", "C:/evil", "a\\..\\evil", "a\nb", "/"])
def test_no_path_leaves_the_target(kind: str, name: str, tmp_path: Path) -> None:
    text = refusal(pack(tmp_path / f"a.{kind}", {"good.jpg": b"1", name: b"2"}))
    assert repr(name) in text or repr(name.rstrip("/")) in text


def test_links_and_devices_are_refused(tmp_path: Path) -> None:
    for kind, link in (
        (tarfile.SYMTYPE, "/etc"),
        (tarfile.LNKTYPE, "../../x"),
        (tarfile.CHRTYPE, ""),
        (tarfile.FIFOTYPE, ""),
    ):
        with tarfile.open(tmp_path / "a.tar", "w") as file:
            member = tarfile.TarInfo("member")
            member.type, member.linkname = kind, link
            file.addfile(member)
        assert "member" in refusal(tmp_path / "a.tar")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        info = zipfile.ZipInfo("member")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        file.writestr(info, "/etc")
    assert "symbolic link" in refusal(tmp_path / "a.zip")
    (tmp_path / "a.rar").write_bytes(rar_archive([rar_file("up", b"", link=".."), rar_file("up/evil", b"1")]))
    assert "'up' is a link" in refusal(tmp_path / "a.rar")


def test_a_hard_link_inside_a_tar_is_the_file_again(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as file:
        member = tarfile.TarInfo("x/1.jpg")
        member.size = 3
        file.addfile(member, io.BytesIO(b"abc"))
        again = tarfile.TarInfo("x/2.jpg")
        again.type, again.linkname = tarfile.LNKTYPE, "x/1.jpg"
        file.addfile(again)
    unpack(tmp_path / "a.tar", tmp_path / "out")
    assert tree(tmp_path / "out") == {"x/1.jpg": b"abc", "x/2.jpg": b"abc"}


def test_a_file_again_in_a_tar_leaves_the_hard_link_to_the_first_as_it_was(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as file:
        for name, link, data in (("1.jpg", "", b"one"), ("2.jpg", "1.jpg", b""), ("1.jpg", "", b"two")):
            member = tarfile.TarInfo(name)
            member.size, member.linkname = len(data), link
            member.type = tarfile.LNKTYPE if link else tarfile.REGTYPE
            file.addfile(member, io.BytesIO(data))
    unpack(tmp_path / "a.tar", tmp_path / "out")
    assert tree(tmp_path / "out") == {"1.jpg": b"two", "2.jpg": b"one"}


def tar_header(kind: bytes, size: bytes) -> bytes:
    """A header of a kind of extension, with any bytes for its size."""
    header = bytearray(tarfile.TarInfo("x").tobuf(tarfile.GNU_FORMAT))
    header[124:136], header[156:157], header[148:156] = size.ljust(12, b"\0"), kind, b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


@pytest.mark.parametrize("kind", [b"x", b"g", b"L", b"K", b"S", b"0"])
@pytest.mark.parametrize("size", [(-512).to_bytes(12, "big", signed=True), b"77777777777"])
def test_a_tar_that_leads_back_or_fills_the_memory_is_refused(kind: bytes, size: bytes, tmp_path: Path) -> None:
    first = pack(tmp_path / "first.tar", {"x.jpg": b"1"}).read_bytes()[:1024]
    (tmp_path / "a.tar").write_bytes(first + tar_header(kind, size) + bytes(1024))
    assert kind in b"0S" or "a size of" in refusal(tmp_path / "a.tar")
    refusal(tmp_path / "a.tar")


@pytest.mark.parametrize(
    "told", ["mtime=nan", "mtime=inf", "GNU.sparse.size=x", "GNU.sparse.map=1,x", "size=-512", "path=../x"]
)
def test_a_tar_that_tells_nonsense_is_refused(told: str, tmp_path: Path) -> None:
    name, value = told.split("=")
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.PAX_FORMAT) as file:
        member = tarfile.TarInfo("x.jpg")
        member.pax_headers = {name: value}
        file.addfile(member)
    refusal(tmp_path / "a.tar")


def test_a_chain_of_tar_headers_is_refused(tmp_path: Path) -> None:
    chain = tar_header(b"x", b"0") * 3000
    (tmp_path / "a.tar").write_bytes(chain + pack(tmp_path / "b.tar").read_bytes())
    assert "recursion" in refusal(tmp_path / "a.tar")


@pytest.mark.parametrize("kind", ["zip", "tar", "rar"])
def test_folders_count_and_their_depth_is_limited(kind: str, tmp_path: Path) -> None:
    """A folder that only the names of files tell of is one all the same."""
    branches = {f"{i}/" + "/".join("abcdefghi") + "/x.jpg": b"1" for i in range(5)}  # 5 files, 50 folders
    archive = pack(tmp_path / f"a.{kind}", branches)
    assert "more than 54 files and folders" in refusal(archive, entries=54)
    if kind != "rar":
        assert unpack(archive, tmp_path / "out", Limits(entries=55)).files == 5
    deep = pack(tmp_path / f"deep.{kind}", {"a/" * 1500 + "x.jpg": b"1"})
    assert "folders deep" in refusal(deep)


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_a_named_folder_is_counted_once(kind: str, tmp_path: Path) -> None:
    (tmp_path / "tree" / "a" / "b").mkdir(parents=True)
    (tmp_path / "tree" / "a" / "b" / "x.jpg").write_bytes(b"1")
    archive = Path(shutil.make_archive(str(tmp_path / "packed"), kind, tmp_path / "tree", "a"))
    assert unpack(archive, tmp_path / "out", Limits(entries=3)).files == 1


def test_spaces_of_any_width_in_names(tmp_path: Path) -> None:
    files = {"\u5f20\u3000\u4e09/Screenshot 3.00\u202fPM.png": b"1"}
    for kind in ("zip", "tar"):
        unpack(pack(tmp_path / f"a.{kind}", files), tmp_path / kind)
        assert tree(tmp_path / kind) == files


@pytest.mark.parametrize("kind", ["zip", "tar.xz", "rar"])
def test_limits(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = pack(tmp_path / f"a.{kind}", {f"{i}.jpg": bytes(2000) for i in range(10)})
    assert "more than 9 files" in refusal(archive, entries=9)
    assert "unpacks to more than 20.0 kB, the limit" in refusal(archive, bytes=19_999)
    monkeypatch.setattr(unpack_limits, "HARMLESS_BYTES", 0)
    ratio = 20_000 / archive.stat().st_size
    assert "times as much" in refusal(archive, ratio=ratio * 0.99)
    if kind != "rar":
        assert unpack(archive, tmp_path / "out", Limits(10, 20_000, ratio * 1.01)).files == 10
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, 100))  # type: ignore[attr-defined]
    if kind != "tar.xz":
        assert "only 100 bytes are free" in refusal(archive)
    with pytest.raises(ValueError, match="ratio must be above 0, got -1"):
        Limits(ratio=-1)


def test_a_zip_that_lies_about_a_size_is_refused(tmp_path: Path) -> None:
    archive = pack(tmp_path / "a.zip", {"bomb.jpg": bytes(100_000)})
    archive.write_bytes(archive.read_bytes().replace(struct.pack("<I", 100_000), struct.pack("<I", 10)))
    refusal(archive)


def test_encrypted_is_said(tmp_path: Path, data_dir: Path) -> None:
    archive = pack(tmp_path / "a.zip")
    data = bytearray(archive.read_bytes())
    at = data.index(b"PK\x01\x02")
    data[at + 8] |= 1
    archive.write_bytes(data)
    assert "encrypted" in refusal(archive)
    for name in ("rar5-psw", "rar5-hpsw", "rar3-comment-psw", "rar3-comment-hpsw"):
        shutil.copy(data_dir / "rar" / f"{name}.rar", tmp_path)
        assert "encrypted" in refusal(tmp_path / f"{name}.rar"), name


def test_what_is_no_archive(tmp_path: Path) -> None:
    for kind in KINDS:
        (tmp_path / f"page.{kind}").write_text("<html>Please log in</html>" * 99)
        assert f"page.{kind}" in refusal(tmp_path / f"page.{kind}")
    (tmp_path / "notes.txt").write_text("")
    assert "neither a folder nor an archive" in refusal(tmp_path / "notes.txt")
    assert "no such file" in refusal(tmp_path / "missing.zip")
    assert "holds no file" in refusal(pack(tmp_path / "empty.zip", {}))


def test_only_an_unchanged_archive_and_folder_are_reused(tmp_path: Path) -> None:
    archive, out = pack(tmp_path / "a.zip"), tmp_path / "out"
    unpack(archive, out)
    (out / "A/male/ct 1/0.jpg").unlink()
    with pytest.raises(ArchiveError, match="part of what a.zip held is gone"):
        unpack(archive, out)
    shutil.rmtree(out)
    unpack(archive, out)
    pack(archive, FILES | {"new.jpg": b"1"})
    with pytest.raises(ArchiveError, match="another state of a.zip"):
        unpack(archive, out)
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "thesis.txt").write_text("mine")
    with pytest.raises(ArchiveError, match="not unpacked from a.zip"):
        unpack(archive, tmp_path / "own")
    assert tree(tmp_path / "own") == {"thesis.txt": b"mine"}


def test_a_folder_that_was_unpacked_and_packed_again_can_be_reused(tmp_path: Path) -> None:
    archive = pack(tmp_path / "a.zip", {"x.jpg": b"1", archives.MARKER: b"{}"})
    assert unpack(archive, tmp_path / "out").files == 1
    assert unpack(archive, tmp_path / "out").reused


def test_an_archive_that_changes_while_it_is_unpacked_is_refused(tmp_path: Path, monkeypatch) -> None:
    archive = pack(tmp_path / "a.zip")
    real = zipfile.ZipFile.extract

    def extract(self, member, *rest, **options):
        pack(archive, FILES | {"new.jpg": b"1"})
        return real(self, member, *rest, **options)

    monkeypatch.setattr(zipfile.ZipFile, "extract", extract)
    refusal(archive)


def test_a_killed_unpacking_is_not_taken_for_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = pack(tmp_path / "a.tar")
    real = tarfile.TarFile.extract

    def killed(self, member, *rest, **options):
        if member.name.startswith("G"):
            raise KeyboardInterrupt
        real(self, member, *rest, **options)

    monkeypatch.setattr(tarfile.TarFile, "extract", killed)
    with pytest.raises(KeyboardInterrupt):
        unpack(archive, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    monkeypatch.undo()
    unpack(archive, tmp_path / "out")
    assert tree(tmp_path / "out") == FILES


@pytest.mark.fault(
    "leaked", "an unpacking that is killed", before="leaves its scans beside the target for ever",
    now="the next unpacking there removes them",
)  # fmt: skip
def test_what_a_killed_unpacking_left_is_removed(tmp_path: Path) -> None:
    archive = pack(tmp_path / "a.tar")

    def begin(ready: Any) -> None:
        def stay(self: tarfile.TarFile, member: tarfile.TarInfo, *rest: Any, **options: Any) -> None:
            real(self, member, *rest, **options)
            ready.set()
            time.sleep(600)

        real, tarfile.TarFile.extract = tarfile.TarFile.extract, stay  # type: ignore[method-assign]
        unpack(archive, tmp_path / "out" / "[a]")

    fork = multiprocessing.get_context("fork")
    process = fork.Process(target=begin, args=[ready := fork.Event()])
    process.start()
    assert ready.wait(60)
    process.kill()
    process.join()
    assert len(list((tmp_path / "out").glob(".*/content/A/male/ct 1/0.jpg"))) == 1
    unpack(archive, tmp_path / "out" / "[a]")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["[a]"]
    assert tree(tmp_path / "out" / "[a]") == FILES


def test_archives_in_archives(tmp_path: Path) -> None:
    inner = {name: pack(tmp_path / "inner" / name).read_bytes() for name in ("train1.zip", "val.tar.gz")}
    deepest = pack(tmp_path / "inner" / "x.zip", {"y.zip": pack(tmp_path / "inner" / "y.zip").read_bytes()})
    outer = pack(
        tmp_path / "all.zip",
        {f"all/data/{name}": data for name, data in inner.items()} | {"all/x.zip": deepest.read_bytes()},
    )
    done = unpack(outer, tmp_path / "out")
    found = tree(tmp_path / "out")
    assert {name.removeprefix("data/train1/") for name in found if "train1" in name} == set(FILES)
    assert {name.removeprefix("data/val/") for name in found if "val" in name} == set(FILES)
    assert done.left_packed == ("x/y.zip",)
    assert "x/y.zip" in found
    total = 2 * len(FILES)
    assert "the limit" in refusal(outer, entries=total)
    bad = pack(tmp_path / "bad.zip", {"data/train1.zip": inner["train1.zip"][:50]})
    assert str(bad) + ": data/train1.zip" in refusal(bad)
    both = pack(tmp_path / "both.zip", {"a/x.jpg": b"1", "a.zip": inner["train1.zip"]})
    assert "a folder of its name" in refusal(both)


def test_names(tmp_path: Path) -> None:
    names = ("train1.RAR", "val.tar.gz", "a.part01.rar", "a.part02.rar", "._b.zip", "ct.nii.gz", "c.TGZ")
    for name in names:
        (tmp_path / name).touch()
    assert [path.name for path in archives_in(tmp_path)] == ["a.part01.rar", "c.TGZ", "train1.RAR", "val.tar.gz"]
    assert [archive_stem(path) for path in archives_in(tmp_path)] == ["a", "c", "train1", "val"]
    (tmp_path / "b.part2.rar").touch()
    with pytest.raises(ArchiveError, match="b.part2.rar: a volume of an archive, but part 1 is not beside it"):
        archives_in(tmp_path)
    with pytest.raises(ArchiveError, match="give part 1"):
        unpack(tmp_path / "a.part02.rar", tmp_path / "out")


# --- cohorts from archives ------------------------------------------------------------------------------------------


def cells_of(layout: str) -> dict[str, list[str]]:
    """Archive name: the folders of a scan's slices in it."""
    classes = ("A", "G", "covid", "normal") if layout == "challenge" else CLASS_NAMES
    if layout == "paper":
        return {split: [f"{split}/{c}/{sex}" for c in classes for sex in SEXES] for split in ("Train", "Val")}
    return {
        "train1": [f"train1/{c}/{sex}" for c in classes[:2] for sex in SEXES],
        "train2": [f"{c}/{sex}" for c in classes[2:] for sex in SEXES],
        "val": [f"some/val/{c}/{sex}" for c in classes for sex in SEXES],
    }


@pytest.fixture(scope="module")
def slices() -> dict[str, bytes]:
    buffer = io.BytesIO()
    Image.new("L", (8, 8), 90).save(buffer, "JPEG")
    return {f"{i}.jpg": buffer.getvalue() for i in range(2)}


@pytest.mark.parametrize("layout", ["paper", "challenge"])
@pytest.mark.parametrize("kind", ["zip", "tar.xz", pytest.param("rar", marks=needs_program)])
def test_both_layouts_from_archives(layout: str, kind: str, tmp_path: Path, slices: dict[str, bytes]) -> None:
    for name, folders in cells_of(layout).items():
        files = {
            f"{folder}/ct_{i}/{slice_}": data for i, folder in enumerate(folders) for slice_, data in slices.items()
        }
        pack(tmp_path / "data" / f"{name}.{kind}", files)
    command = ["cohort", str(tmp_path / "data"), "-o", str(tmp_path / "cohort.csv"), "--layout", layout]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert all(f"unpacked: {name}.{kind}" in done.output for name in cells_of(layout))
    cohort = load_cohort(tmp_path / "cohort.csv", class_names=CLASS_NAMES, group_names=SEXES)
    assert (cohort.cells()["n"] == 1).all() and len(cohort.cells()) == 16
    assert all(len(list(Path(item["image"]).glob("*.jpg"))) == 2 for item in cohort.items("val"))
    first = (tmp_path / "cohort.csv").read_bytes()
    again = CliRunner().invoke(app, command)
    assert "unpacked before: " in again.output
    assert (tmp_path / "cohort.csv").read_bytes() == first
    # and all of them in one archive
    everything = {path.name: path.read_bytes() for path in sorted((tmp_path / "data").iterdir())}
    outer = pack(tmp_path / "all.tar", everything)
    one = build_with_archives(outer, tmp_path / "one", layout=layout)
    assert sorted(one.built.table["label"]) == sorted(cohort.table["label"])
    assert sorted(one.built.table["split"]) == sorted(cohort.table["split"])


def test_a_single_split_in_one_archive(tmp_path: Path, slices: dict[str, bytes]) -> None:
    archive = pack(tmp_path / "val.zip", {f"A/male/ct_0/{name}": data for name, data in slices.items()})
    intake = build_with_archives(archive)
    assert intake.built.table.to_numpy().tolist() == [["val/A/male/ct_0", "adenocarcinoma", "male", "val"]]
    assert intake.root == tmp_path / "val_unpacked"


def test_archives_beside_scans_are_left_unless_asked_for(tmp_path: Path, slices: dict[str, bytes]) -> None:
    data = tmp_path / "data"
    for name, content in slices.items():
        (data / "train" / "A" / "male" / "ct_0").mkdir(parents=True, exist_ok=True)
        (data / "train" / "A" / "male" / "ct_0" / name).write_bytes(content)
    pack(data / "val.zip", {f"A/female/ct_1/{name}": content for name, content in slices.items()})
    command = ["cohort", str(data), "-o", str(tmp_path / "cohort.csv")]
    left = CliRunner().invoke(app, command)
    assert "left packed val.zip" in left.output
    assert pd.read_csv(tmp_path / "cohort.csv")["scan"].tolist() == ["data/train/A/male/ct_0"]
    expected = {"male": "train", "female": "val"}
    for place in (tmp_path / "away", data / "inside"):
        both = CliRunner().invoke(app, [*command, "--unpack-to", str(place)])
        assert both.exit_code == 0, both.output
        table = pd.read_csv(tmp_path / "cohort.csv")
        assert dict(zip(table["sex"], table["split"], strict=True)) == expected
        again = CliRunner().invoke(app, [*command, "--unpack-to", str(place)])
        assert again.exit_code == 0, again.output
        assert pd.read_csv(tmp_path / "cohort.csv").equals(table)


def test_what_cannot_be_a_cohort(tmp_path: Path, slices: dict[str, bytes]) -> None:
    files = {f"A/male/ct_0/{name}": data for name, data in slices.items()}
    pack(tmp_path / "d" / "val.zip", files)
    pack(tmp_path / "d" / "val.tar", files)
    with pytest.raises(ArchiveError, match="would both become"):
        build_with_archives(tmp_path / "d")
    (tmp_path / "d" / "val.tar").unlink()
    (tmp_path / "own" / "thesis").mkdir(parents=True)
    with pytest.raises(ArchiveError, match="holds thesis already; choose another folder"):
        build_with_archives(tmp_path / "d", tmp_path / "own")
    done = CliRunner().invoke(app, ["cohort", str(tmp_path / "none.rar"), "-o", str(tmp_path / "c.csv")])
    assert done.exit_code == 1
    assert "not a folder" in done.output


# --- RAR ------------------------------------------------------------------------------------------------------------

REAL = {  # files and bytes, by the tests of the package that they come from
    "rar5-subdirs": (4, 25),
    "rar3-subdirs": (4, 25),
    "rar5-solid": (2, 4096),
    "rar3-solid": (2, 4096),
    "unicode": (2, 4),
}


@needs_program
@pytest.mark.parametrize("name", REAL)
def test_real_rar(name: str, tmp_path: Path, data_dir: Path) -> None:
    if ("solid" in name or name == "unicode") and not any(map(shutil.which, ("unar", "unrar"))):
        pytest.skip("neither unar nor unrar is installed; the others may lack compressed RAR")
    done = unpack(data_dir / "rar" / f"{name}.rar", tmp_path / "out")
    assert (done.files, done.bytes) == REAL[name]
    if "subdirs" in name:
        assert tree(tmp_path / "out")["sub/dir1/file1.txt"] == b"file1\n"


@pytest.mark.parametrize("program", [*filter(shutil.which, RAR_PROGRAMS)])
def test_each_program(program: str, tmp_path: Path, programs) -> None:
    programs(program)
    # two archives whose names differ by a digit: unar takes them for volumes of one; and one named as an option
    for name in ("train1.rar", "train2.rar", "-x.rar"):
        pack(tmp_path / name, FILES | {"name": name.encode()})
    for name in ("train1.rar", "train2.rar", "-x.rar"):
        unpack(tmp_path / name, tmp_path / f"out{name}")
        assert tree(tmp_path / f"out{name}") == FILES | {"name": name.encode()}
    data = (tmp_path / "train1.rar").read_bytes()
    (tmp_path / "wrong.rar").write_bytes(data.replace(b"second", b"sEcond"))
    assert program in refusal(tmp_path / "wrong.rar")


def write_volumes(folder: Path, name: str) -> bytes:
    data = random.Random(1).randbytes(300)
    parts = [data[:100], data[100:200], data[200:]]
    for i, part in enumerate(parts):
        flags = (8 if i else 0) | (16 if i < 2 else 0)
        blocks = [rar_file("ct/big.jpg", part, flags=flags, whole=data)] + ([rar_file("b.jpg", b"b")] if i == 2 else [])
        (folder / name.format(i + 1)).write_bytes(rar_archive(blocks, volume=i, more=i < 2))
    return data


@pytest.mark.skipif(not any(map(shutil.which, ("unrar", "unar", "7z"))), reason="bsdtar does not know volumes")
def test_volumes(tmp_path: Path) -> None:
    data = write_volumes(tmp_path, "train1.part{}.rar")
    unpack(tmp_path / "train1.part1.rar", tmp_path / "out")
    assert tree(tmp_path / "out") == {"ct/big.jpg": data, "b.jpg": b"b"}
    assert unpack(tmp_path / "train1.part1.rar", tmp_path / "out").reused
    (tmp_path / "train1.part3.rar").unlink()
    with pytest.raises(ArchiveError, match="another state"):
        unpack(tmp_path / "train1.part1.rar", tmp_path / "out")
    shutil.rmtree(tmp_path / "out")
    assert "part2.rar: the volume after this one is missing" in refusal(tmp_path / "train1.part1.rar")
    (tmp_path / "train1.part2.rar").rename(tmp_path / "b.rar")
    assert "not the first volume" in refusal(tmp_path / "b.rar")


def test_links_in_real_rar_are_refused(tmp_path: Path, data_dir: Path) -> None:
    for name in ("rar5-evil-symlink-traversal", "rar3-symlink-unix", "rar5-hlink"):
        shutil.copy(data_dir / "rar" / f"{name}.rar", tmp_path)
        assert "is a link" in refusal(tmp_path / f"{name}.rar"), name


def test_many_small_records_in_a_rar_header_take_no_time(tmp_path: Path) -> None:
    """Each once cost a copy of those after it."""
    name, records = b"x.jpg", number(2) + number(9) + number(0)
    fields = number(4) + number(1) + number(0o100644) + bytes(4) + number(0) + number(1) + number(len(name)) + name
    (tmp_path / "a.rar").write_bytes(rar_archive([rar_block(2, fields, records * 600_000, b"1")]))
    began = time.process_time()
    (member,), _ = read_rar(tmp_path / "a.rar")
    assert member.name == "x.jpg" and time.process_time() - began < 5


def test_without_a_program(tmp_path: Path, programs) -> None:
    archive = pack(tmp_path / "a.rar")
    programs()
    text = refusal(archive)
    assert all(name in text for name in RAR_PROGRAMS)
    assert "apt install unar" in text


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ('echo "CRC failed" >&2; exit 3', "exit code 3: CRC failed"),
        ("exit 0", "unpacked 0 files, but the archive lists 1"),
        ('mkdir -p "$8"; printf 12345 > "$8/x.jpg"', "checksum"),
        ('printf abcde > "$8/x.jpg"; ln -s /etc "$8/way"', "a symbolic link"),
        ('printf abcde > "$8/x.jpg"; mkfifo "$8/pipe"', "neither a file nor a folder"),
        ('printf abcde > "$8/x.jpg"; printf more > "$8/more.jpg"', "unpacked 2 files"),
    ],
)
def test_what_a_program_leaves_on_the_disk_is_checked(script: str, said: str, tmp_path: Path, programs) -> None:
    archive = pack(tmp_path / "a.rar", {"x.jpg": b"abcde"})
    programs(unar=script)  # unar -q -f -D -nr -k skip -o TO ARCHIVE
    assert said in refusal(archive)


def test_a_program_that_writes_too_much_is_stopped(tmp_path: Path, programs, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = pack(tmp_path / "a.rar", {"x.jpg": b"abcde"})
    monkeypatch.setattr(rar, "WATCH_SECONDS", 0.02)
    programs(unar='i=0; while true; do i=$((i+1)); echo 1 > "$8/$i"; done')
    assert "more than 50 files" in refusal(archive, entries=50)


def test_the_next_program_is_tried(tmp_path: Path, programs) -> None:
    archive = pack(tmp_path / "a.rar", {"x.jpg": b"abcde"})
    programs(unrar="exit 7", unar='printf abcde > "$8/x.jpg"')
    unpack(archive, tmp_path / "out")
    assert tree(tmp_path / "out") == {"x.jpg": b"abcde"}
