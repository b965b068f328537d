"""The cache on disk: whole files only, any number of processes at once, bounded, and never fatal."""

from __future__ import annotations

import logging
import multiprocessing
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.transforms import Transform

from fairlung.pipeline.data.dataset import ScanDataset, scan_fingerprint, transform_digest
from fairlung.pipeline.data.volume_cache import GIGABYTE, VolumeCache, evict

SHAPE = (1, 4, 16, 16)
VOLUME = 4 * 16 * 16


class ReadBytes(Transform):
    """A volume of the numbers that follow the one in the file, with an intake record; notes what it reads."""

    def __init__(self, log: Path) -> None:
        self.log = log

    def __call__(self, item: Mapping[str, Any]) -> dict[str, Any]:
        with self.log.open("a") as log:
            log.write(f"{Path(item['image']).name}\n")
        first = int(Path(item["image"]).read_text())
        volume = (np.arange(VOLUME) + first).astype(np.uint8).reshape(SHAPE)
        record = {"warnings": [], "files": [item["image"]], "slices_used": first}
        return {**item, "image": torch.from_numpy(volume), "intake": record}


class Cohort:
    """Scans that are files with a number, and datasets of them that share a cache."""

    def __init__(self, folder: Path, scans: int) -> None:
        self.cache = folder / "cache"
        self.log = folder / "log"
        self.log.touch()
        self.paths = [folder / f"{n}.nii" for n in range(scans)]
        for n, path in enumerate(self.paths):
            path.write_text(str(n))

    def dataset(self, limit: float | None = None) -> ScanDataset:
        data = [{"image": str(path), "scan": path.name} for path in self.paths]
        return ScanDataset(data, [ReadBytes(self.log)], (), self.cache, cache_limit=limit)

    def read(self) -> list[str]:
        """Names of the scans that were read so far, in order."""
        return self.log.read_text().split()

    def files(self) -> list[Path]:
        return sorted(self.cache.glob("*.pt"))


@pytest.fixture
def cohort(tmp_path: Path) -> Cohort:
    return Cohort(tmp_path, 6)


def check(dataset: ScanDataset, order: Any = None) -> None:
    for n in range(len(dataset)) if order is None else order:
        expected = (torch.arange(VOLUME) + n).to(torch.uint8).reshape(SHAPE)
        assert torch.equal(dataset[int(n)]["image"], expected)


# --- several processes -----------------------------------------------------------------------------------------------


def fill(cohort: Cohort, limit: float | None, seed: int, start: Any, failures: Any) -> None:
    try:
        dataset = cohort.dataset(limit)
        start.wait(timeout=300)
        for epoch in range(3):
            check(dataset, np.random.default_rng([seed, epoch]).permutation(len(dataset)))
    except BaseException as error:
        failures.put(repr(error))
        raise


@pytest.mark.parametrize("limited", [False, True])
def test_processes_fill_one_cache_at_once(limited: bool, tmp_path: Path) -> None:
    cohort = Cohort(tmp_path, 60)
    (tmp_path / "one").mkdir()
    size = file_size(Cohort(tmp_path / "one", 1))
    limit = 20 * size / GIGABYTE if limited else None
    context = multiprocessing.get_context("fork")
    start, failures = context.Barrier(2), context.Queue()
    jobs = [context.Process(target=fill, args=(cohort, limit, seed, start, failures)) for seed in range(2)]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join(timeout=600)
    assert [job.exitcode for job in jobs] == [0, 0], failures.get_nowait()
    assert not [path for path in cohort.cache.iterdir() if path.suffix != ".pt"]  # nothing half done is left
    for path in cohort.files():
        torch.load(path, weights_only=True)
    if limited:
        assert 15 <= len(cohort.files()) <= 20
    else:
        assert len(cohort.files()) == 60
        assert set(cohort.read()) == {path.name for path in cohort.paths} and len(cohort.read()) <= 2 * 60
        before = len(cohort.read())
        check(cohort.dataset())
        assert len(cohort.read()) == before


def file_size(cohort: Cohort) -> int:
    cohort.dataset()[0]
    return cohort.files()[0].stat().st_size


def test_a_reader_sees_the_whole_volume_or_none(cohort: Cohort, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the moment of the rename the content is complete, in the same folder and so on the same file system."""
    replace, seen = os.replace, []

    def watched(source: Path, target: Path) -> None:
        if Path(target).suffix == ".pt":
            assert Path(source).parent == Path(target).parent == cohort.cache
            seen.append(torch.load(source, weights_only=True)["image"])
            assert not Path(target).exists()
        replace(source, target)

    monkeypatch.setattr(os, "replace", watched)
    check(cohort.dataset())
    assert len(seen) == 6


# --- what is broken --------------------------------------------------------------------------------------------------


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize("damage", [cut, lambda p: p.write_bytes(b""), lambda p: p.write_text("no")])
@pytest.mark.parametrize("prepared", [False, True])
def test_a_corrupt_file_is_made_anew(
    damage: Any, prepared: bool, cohort: Cohort, caplog: pytest.LogCaptureFixture
) -> None:
    check(cohort.dataset())
    dataset = cohort.dataset()
    path = dataset.cached.path(0)
    assert path is not None
    damage(path)
    if prepared:
        dataset.prepare()
    check(dataset)
    assert cohort.read()[6:] == ["0.nii"]
    assert [r.getMessage() for r in caplog.records if "is made anew" in r.getMessage()]
    assert not any(str(cohort.paths[0]) in r.getMessage() for r in caplog.records)
    check(cohort.dataset())
    assert len(cohort.read()) == 7


def test_a_cache_that_cannot_be_written_is_a_warning(
    cohort: Cohort, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    dataset = cohort.dataset()
    dataset.prepare()
    check(dataset)
    (warning,) = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert "No space left" in warning
    assert list(cohort.cache.iterdir()) == []


def test_the_cache_names_no_files(cohort: Cohort) -> None:
    """Paths may name patients."""
    item = cohort.dataset().volumes[3]
    assert item["intake"] == {"warnings": [], "files": [], "slices_used": 3}
    for path in cohort.files():
        assert str(cohort.paths[3]).encode() not in path.read_bytes()


# --- what is looked at -----------------------------------------------------------------------------------------------


def test_scans_are_looked_at_once_and_by_no_epoch(cohort: Cohort, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[str] = []
    listed: list[Any] = []

    def counted(path: str | Path) -> str:
        looked.append(Path(path).name)
        return scan_fingerprint(path)

    monkeypatch.setattr("fairlung.pipeline.data.dataset.scan_fingerprint", counted)
    dataset = cohort.dataset()
    assert looked == []
    dataset.prepare()
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda *args: listed.append(args) or scandir(*args))
    for _ in range(3):
        check(dataset)
    assert sorted(looked) == sorted(cohort.read()) == sorted(path.name for path in cohort.paths)
    assert listed == []


def test_loader_processes_hand_over_what_they_saw(cohort: Cohort) -> None:
    dataset = cohort.dataset()
    dataset.prepare(num_workers=2)
    assert dataset.cached.fingerprints == [scan_fingerprint(path) for path in cohort.paths]
    cohort.paths[0].unlink()  # nobody needs it any more
    check(dataset)
    assert len(cohort.read()) == 6


def test_prepare_reads_no_voxels_of_a_cached_scan(cohort: Cohort, monkeypatch: pytest.MonkeyPatch) -> None:
    cohort.dataset().prepare()
    loads: list[bool] = []
    load = torch.load

    def watched(*args: Any, mmap: bool = False, **kwargs: Any) -> Any:
        loads.append(mmap)
        return load(*args, mmap=mmap, **kwargs)

    monkeypatch.setattr(torch, "load", watched)
    dataset = cohort.dataset()
    dataset.prepare()
    assert loads == [True] * 6 and len(cohort.read()) == 6
    assert dataset.cached.record(2)["intake"]["slices_used"] == 2


def test_a_changed_scan_is_read_again(cohort: Cohort) -> None:
    check(cohort.dataset())
    cohort.paths[4].write_text("200")
    assert cohort.dataset()[4]["image"].flatten()[0] == 200
    assert cohort.read()[6:] == ["4.nii"]


# --- the limit -------------------------------------------------------------------------------------------------------


def test_the_least_recently_used_go(cohort: Cohort) -> None:
    size = file_size(cohort)
    dataset = cohort.dataset(5.5 * size / GIGABYTE)
    for n in (1, 2, 3, 4, 0):  # 0 was there and is used last
        dataset[n]
        time.sleep(0.01)  # some file systems count in ticks
    dataset[5]
    kept = {n for n in range(6) if (path := dataset.cached.path(n)) is not None and path.exists()}
    assert kept == {3, 4, 0, 5}  # 90 % of 5.5 are four
    check(dataset)
    assert sum(path.stat().st_size for path in cohort.files()) <= 5.5 * size


def test_a_limit_below_one_volume_keeps_the_one_just_written(cohort: Cohort) -> None:
    dataset = cohort.dataset(1e-9)
    check(dataset)
    assert cohort.files() == [dataset.cached.path(5)]


def test_a_volume_that_is_used_while_others_go_stays(cohort: Cohort, monkeypatch: pytest.MonkeyPatch) -> None:
    size = file_size(cohort)
    check(cohort.dataset())
    oldest, *others = sorted(cohort.files(), key=lambda path: path.stat().st_mtime_ns)
    stat = os.stat

    def used_now(path: Any, *args: Any, **kwargs: Any) -> os.stat_result:
        if str(path) == str(oldest):
            os.utime(path)
        return stat(path, *args, **kwargs)

    monkeypatch.setattr(os, "stat", used_now)
    left = evict(cohort.cache, 3 * size)
    monkeypatch.undo()
    assert oldest.exists() and left == len(cohort.files()) * size <= 2.7 * size
    assert sum(path.exists() for path in others) == 1


def test_one_that_goes_while_it_is_read_is_read_to_its_end(cohort: Cohort) -> None:
    check(cohort.dataset())
    with cohort.files()[0].open("rb") as file:
        assert evict(cohort.cache, 1) == 0 and cohort.files() == []
        assert torch.load(file, weights_only=True)["image"].shape == SHAPE
    check(cohort.dataset())


def test_what_a_killed_writer_left_goes_in_time(cohort: Cohort) -> None:
    check(cohort.dataset())
    old, young, other = (cohort.cache / name for name in (".old.part", ".young.part", "README"))
    for path in (old, young, other):
        path.write_text("x")
    for path in (old, other):
        os.utime(path, (0, 0))
    evict(cohort.cache, 1)
    assert (old.exists(), young.exists(), other.exists()) == (False, True, True)


def test_a_cohort_that_does_not_fit_is_told(cohort: Cohort, caplog: pytest.LogCaptureFixture) -> None:
    size = file_size(cohort)
    with caplog.at_level(logging.WARNING):
        cohort.dataset(10 * size / GIGABYTE).prepare()
        assert not caplog.records
        cohort.dataset(5.5 * size / GIGABYTE).prepare()
    assert "the 6 volumes need" in caplog.text and "made anew in every epoch" in caplog.text


@pytest.mark.parametrize("limit", [0, -1, float("nan"), float("inf")])
def test_a_limit_is_positive(limit: float, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cache_limit must be positive, in GB, or null for none, got"):
        VolumeCache([], lambda item: item, tmp_path, scan_fingerprint, transform_digest, limit)
