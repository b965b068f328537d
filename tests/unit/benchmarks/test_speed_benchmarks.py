"""The speed benchmarks at sizes of nothing: what they count, compare and write; their timings are not looked at."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fairlung.transforms import LoadScan, ScanError, slice_folder
from fairlung.transforms.plausibility import grey_percentiles

sys.path.insert(0, str(Path(__file__).parents[3] / "benchmarks"))
docs, harness, load, loader, loss, published, scans = (
    importlib.import_module(f"speed.{name}")
    for name in ("docs", "harness", "load", "loader", "loss", "published", "scans")
)


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("speed")
    return harness.Options(small=True, repeats=1, results=folder / "results", scratch=folder / "scratch")


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def jpegs(folder: Path, number: int, size: tuple[int, int] = (64, 64)) -> Path:
    folder.mkdir()
    rng = np.random.default_rng(0)
    for k in range(number):
        coarse = rng.integers(0, 256, (8, 8), dtype=np.uint8)
        Image.fromarray(coarse).resize(size).save(folder / f"{k}.jpg", quality=95)
    return folder


# ---------------------------------------------------------------------------------------------------------------------
# what is counted and timed
# ---------------------------------------------------------------------------------------------------------------------
def test_waits_are_what_a_gpus_host_waits_for() -> None:
    x = torch.tensor([1.0, 2.0, 2.0])
    assert loss.waits(lambda: x.sum()) == 0
    assert loss.waits(lambda: x.sum().item()) == 1
    assert loss.waits(lambda: bool(x.sum() > 1)) == 1
    assert loss.waits(lambda: torch.unique(x)) == 1
    assert loss.waits(lambda: x[x > 1]) == 1
    assert loss.waits(lambda: x[torch.tensor([0, 1])]) == 0


@pytest.mark.parametrize("groups, samples", [(2, 2), (1000, 1000)])
@pytest.mark.parametrize("gradient", ["exact", "published"])
def test_the_loss_never_waits(groups: int, samples: int, gradient: str) -> None:
    call = loss.forward_backward(loss.ours(gradient=gradient), loss.batch(samples, groups))
    assert loss.waits(call) == 0


def test_variants_take_turns_and_warming_up_is_not_timed() -> None:
    order: list[str] = []
    times = harness.alternate({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, repeats=2)
    assert order == ["a", "b"] * 3
    assert [len(times[name].seconds) for name in "ab"] == [2, 2]


def test_ratios_are_taken_side_by_side() -> None:
    median, low, high = harness.Timing([1.0, 2.0, 4.0]).ratio_of(harness.Timing([2.0, 8.0, 4.0]))
    assert (median, low, high) == (2.0, 1.0, 4.0)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
# ---------------------------------------------------------------------------------------------------------------------
# the published side
# ---------------------------------------------------------------------------------------------------------------------
def test_a_folder_that_is_no_checkout_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"train\.py"):
        published.PublishedCode(tmp_path)


def test_weights_go_to_their_places() -> None:
    names = ["backbone.stem.0.weight", "backbone.layer4.1.conv2.1.running_var", "backbone.fc.3.bias"]
    assert list(published.translated({name: torch.zeros(1) for name in names})) == [
        "features.0.0.weight", "features.4.1.conv2.1.running_var", "fc.3.bias",
    ]  # fmt: skip


# ---------------------------------------------------------------------------------------------------------------------
# reading
# ---------------------------------------------------------------------------------------------------------------------
def test_threads_change_nothing(tmp_path: Path, threads: None) -> None:
    folder = jpegs(tmp_path / "scan", 12, (80, 60))
    read = LoadScan(size=32)
    found = []
    for number in (1, 3):
        torch.set_num_threads(number)
        found.append(read.read(folder))
    assert torch.equal(found[0][0], found[1][0])
    assert found[0][1] == found[1][1]
    (folder / "7.jpg").write_bytes(b"no picture")
    for number in (1, 3):
        torch.set_num_threads(number)
        with pytest.raises(ScanError, match=r"7\.jpg: cannot be decoded"):
            read(folder)


def test_fast_decoding_is_near_and_only_where_slices_are_large_enough(tmp_path: Path) -> None:
    folder = jpegs(tmp_path / "scan", 10)
    indices = list(range(10))
    for size, same in ((32, False), (48, True)):  # 64 is twice 32, and less than twice 48
        exact = slice_folder.open_slices(folder, size).read(indices).astype(int)
        opened = slice_folder.open_slices(folder, size, fast_decode=True)
        difference = np.abs(opened.read(indices).astype(int) - exact)
        assert opened.shape == (10, 64, 64)
        assert (difference.max() == 0) == same
        assert difference.mean() < 4


def test_percentiles_by_counting_are_numpys() -> None:
    rng = np.random.default_rng(0)
    for size in (1, 2, 3, 50, 4096):
        grey = rng.integers(0, 256, size).astype(np.uint8)
        percents = [0, 1, 33.3, 50, 99, 100]
        counted = grey_percentiles(np.bincount(grey, minlength=256), percents)
        np.testing.assert_allclose(counted, np.percentile(grey, percents), atol=1e-9)


# ---------------------------------------------------------------------------------------------------------------------
# from measurement to page
# ---------------------------------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_a_benchmark_ends_in_a_table_of_the_page(options: Any) -> None:
    result = loader.measure(options)
    path = harness.write(result, options)
    content = json.loads(path.read_text())
    assert content["small"] and content["machine"]["cores"] >= 1 and content["limits"]["copy_gb_per_s"] > 0
    assert {row["slices"] for row in content["rows"]} == {20, 40}
    page = "".join(
        f"{line}\n<!-- result: {name} -->\nstale\n<!-- end -->\n"
        for line, name in (("above", "loader"), ("below", "step"))
    )
    found = docs.filled(page, docs.results(options.results))
    assert "exact, 1 thread" in found and "Not measured yet." in found and "stale" not in found
    assert docs.filled(found, docs.results(options.results)) == found
    assert [line for line in found.splitlines() if line in ("above", "below")] == ["above", "below"]


@pytest.mark.parametrize("leaks", [False, True])
def test_what_a_long_run_holds_is_counted(tmp_path: Path, leaks: bool) -> None:
    samples: list[dict[str, Any]] = []
    note, held = load.sampler(samples, 100), []
    for done in range(1, 101):
        with Path(__file__).open():
            held += [Path(__file__).open()] if leaks else []  # noqa: SIM115
        note(done)
    assert [sample["done"] for sample in samples] == [*range(2, 101, 2)]
    first, last = (part[-1]["files"] for part in load._ends(samples))
    assert (last - first == 60) if leaks else (last == first)
    load.draw({"a run": samples}, tmp_path / "load.png")
    with Image.open(tmp_path / "load.png") as picture:
        assert picture.size[0] > 500
    for open_file in held:
        open_file.close()


def test_what_a_gpu_measured_stands_for_what_a_cpu_could_not() -> None:
    def result(met: bool | None, measured: str, **machine: Any) -> dict[str, Any]:
        target = {"measure": "a step", "target": "2x", "measured": measured, "met": met, "why": ""}
        return {"targets": [target], "machine": {"cores": 2, **machine}}

    cpu, gpu = result(None, "not measured"), result(True, "3x", gpu="a GPU")
    for order in ({"a": cpu, "b": gpu}, {"a": gpu, "b": cpu}):
        assert "| a step | 2x | 3x | met | a GPU |" in docs.targets(order)
    assert "not measured" in docs.targets({"a": cpu})
