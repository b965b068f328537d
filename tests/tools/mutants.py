"""How many planted defects the unit tests find: ``python tests/tools/mutants.py [--tree FOLDER] [NAME ...]``.

Each mutant is one small change of the losses, the metrics, the choice of slices, the geometry or the plausibility
checks. It is made in a copy of the tree, the unit tests of its room run there until the first one fails, and a table
says which mutants died. A mutant is found by its tokens, so comments, line breaks and docstrings make no difference;
the same list runs on a tree before the rooms (--tree), where tests lie in one folder.

The libraries are imported once and every mutant runs in a fork of that process, so a mutant costs a second or two and
not MONAI's import.
"""

# ruff: noqa: E501 (a mutant a line reads best)
from __future__ import annotations

import argparse
import io
import multiprocessing
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import tokenize
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 240  # of computing, after which the tests of a mutant count as failed: it does not end
PRELOADED = (
    "torch",
    "monai.bundle",
    "monai.data",
    "monai.transforms",
    "monai.networks.nets",
    "monai.engines",
    "ignite",
)
PRELOADED += ("pandas", "scipy.ndimage", "nibabel", "pydicom", "SimpleITK", "sklearn.metrics")
PRELOADED += ("sqlalchemy", "matplotlib.pyplot", "statsmodels.api", "fairlearn.metrics", "torchvision.models.video")


class Room(NamedTuple):
    """Where sources and tests lie, as patterns: in rooms, and in the flat tree before them."""

    sources: tuple[str, ...]
    tests: tuple[str, ...]


LOSSES = ("tests/unit/losses/test_*.py", "tests/test_losses.py", "tests/test_aggregation.py")
# quick ones first: the first failing test ends it
SLICES = ("tests/unit/transforms/test_slices.py", "tests/test_slices.py")
INTAKE = tuple(
    f"tests/{folder}test_{name}*.py"
    for name in ("plausibility", "load_scan", "intake_defects", "intake_real", "intake_fuzz")
    for folder in ("unit/transforms/", "")
)
ROOMS = {
    "sample_losses": Room(("pipeline/losses/*.py", "pipeline/losses.py"), LOSSES),
    "cvar": Room(("pipeline/losses/*.py", "pipeline/aggregation.py"), LOSSES),
    "aggregation": Room(("pipeline/losses/*.py", "pipeline/aggregation.py"), LOSSES),
    "two_level": Room(("pipeline/losses/*.py", "pipeline/losses.py"), LOSSES),
    "metrics": Room(
        ("pipeline/evaluation/metrics.py", "pipeline/metrics.py"),
        ("tests/unit/evaluation/test_metrics.py", "tests/test_metrics.py"),
    ),
    "slices": Room(("transforms/slices.py",), SLICES),
    "geometry": Room(("transforms/geometry.py",), INTAKE),
    "plausibility": Room(("transforms/plausibility.py",), INTAKE),
}


class Mutant(NamedTuple):
    room: str
    name: str
    found: str | tuple[str, ...]  # the text that is changed; several where a rewrite said the same otherwise
    becomes: str


M = Mutant
MUTANTS = [
    # ---- losses of a sample ----
    M("sample_losses", "prior not a logarithm", "return torch.log(counts / counts.sum())", "return counts / counts.sum()"),
    M("sample_losses", "prior of the largest", "torch.log(counts / counts.sum())", "torch.log(counts / counts.max())"),
    M("sample_losses", "adjustment subtracted", "logits + tau * log_prior", "logits - tau * log_prior"),
    M("sample_losses", "tau squared", "logits + tau * log_prior", "logits + tau * tau * log_prior"),
    M("sample_losses", "weights upside down", "counts.sum() / (len(counts) * counts)", "len(counts) * counts / counts.sum()"),
    M("sample_losses", "margin's root", "(counts.min() / counts) ** 0.25", "(counts.min() / counts) ** 0.5"),
    M("sample_losses", "margin of the commonest", "(counts.min() / counts) ** 0.25", "(counts / counts.max()) ** 0.25"),
    M("sample_losses", "margin added", "logits - margins.to(logits)", "logits + margins.to(logits)"),
    M("sample_losses", "margin not scaled",
      "scale * (logits - margins.to(logits) * _one_hot(label, logits))",
      "scale * logits - margins.to(logits) * _one_hot(label, logits)"),
    # ---- CVaR ----
    M("cvar", "ties in their order", "(tied @ weights) / tied.sum(dim=1).clamp(min=1) * used", "weights * used"),
    M("cvar", "first slot unknown", "torch.tril(same, diagonal=-1).any(dim=1) & (group >= 0)",
      "torch.tril(same, diagonal=-1).any(dim=1) & (group >= -1)"),
    M("cvar", "a group's slot is its last", "first = ~torch.tril(same, diagonal=-1)", "first = ~torch.triu(same, diagonal=1)"),
    M("cvar", "groups summed, not averaged", "same.to(sample_losses) / same.sum(dim=1, keepdim=True).clamp(min=1)",
      "same.to(sample_losses)"),
    M("cvar", "best groups first", "torch.argsort(losses, descending=True)", "torch.argsort(losses)"),
    M("cvar", "cap without alpha", "1 / (alpha * used.sum().clamp(min=1).to(like))", "1 / used.sum().clamp(min=1).to(like)"),
    M("cvar", "cap of all groups", "1 / (alpha * used.sum().clamp(min=1).to(like))", "1 / (alpha * len(used))"),
    M("cvar", "rest not clamped", "torch.minimum((1 - rank * cap).clamp(min=0), cap) * used",
      "torch.minimum(1 - rank * cap, cap) * used"),
    M("cvar", "ties not shared", "return (tied @ weights) / tied.sum(dim=1).clamp(min=1) * used", "return weights"),
    M("cvar", "bisection the other way", "torch.where(rising, low, middle), torch.where(rising, middle, high)",
      "torch.where(rising, middle, high), torch.where(rising, low, middle)"),
    M("cvar", "published: at lambda too", "cap * ((losses > lambda_) & used)", "cap * ((losses >= lambda_) & used)"),
    M("cvar", "published: strict slope", "share.double() / alpha <= 1", "share.double() / alpha < 1"),
    M("cvar", "inner rank of the smaller", "losses[None, :] > losses[:, None]", "losses[None, :] < losses[:, None]"),
    M("cvar", "inner cap of all children", "1 / (alpha * siblings.sum(dim=1).clamp(min=1).to(losses))",
      "1 / (alpha * torch.full_like(losses, len(losses)))"),
    M("cvar", "levels swapped", "_cvar_weights_within(losses, alpha_inner, siblings)",
      "_cvar_weights_within(losses, alpha, siblings)"),
    # ---- aggregation ----
    M("aggregation", "momentum swapped", "self.momentum * average + (1 - self.momentum) * value",
      "(1 - self.momentum) * average + self.momentum * value"),
    M("aggregation", "absent groups remembered too", "met = (counts > 0) & means.isfinite()", "met = means.isfinite()"),
    M("aggregation", "infinite losses remembered", "met = (counts > 0) & means.isfinite()", "met = counts > 0"),
    M("aggregation", "bias of the start kept", "self.loss_sum / torch.where(self.seen, self.loss_mass, 1.0)", "self.loss_sum"),
    M("aggregation", "not divided by the share", "group_weights / torch.where(seen, shares, 1.0)", "group_weights"),
    M("aggregation", "lambda's part lost", "return group_weights, lambda_ * (1 - group_weights.sum())",
      "return group_weights, lambda_ * 0"),
    M("aggregation", "descent on the groups", "self.log_weights + ascent", "self.log_weights - ascent"),
    M("aggregation", "known samples not scaled", "weights * known.mean() + (1 - known) / len(known)",
      "weights + (1 - known) / len(known)"),
    M("aggregation", "unknown samples dropped", "weights * known.mean() + (1 - known) / len(known)", "weights * known.mean()"),
    M("aggregation", "observes when it looks", "torch.is_grad_enabled(): self.observe(*batch)", "True: self.observe(*batch)"),
    # ---- the two levels ----
    M("two_level", "half precision", "torch.autocast(kind, enabled=False)", "nullcontext()"),
    M("two_level", "explained without weights", "return losses, self.aggregation.weights(losses, self.aggregation.groups(target))",
      "return losses, torch.full_like(losses, 1 / len(losses))"),
    # ---- metrics ----
    M("metrics", "unknown in the last group", "torch.where(group == UNKNOWN_GROUP, num_groups, group)",
      "torch.where(group == UNKNOWN_GROUP, num_groups - 1, group)"),
    M("metrics", "rows and columns swapped", "(group * num_classes + label) * num_classes + prediction",
      "(group * num_classes + prediction) * num_classes + label"),
    M("metrics", "precision is recall", "share(hit, predicted)", "share(hit, true)"),
    M("metrics", "F1 without its 2", "share(2 * hit, true + predicted)", "share(hit, true + predicted)"),
    M("metrics", "no zero division", "whole.where(whole > 0, 1)", "whole"),
    M("metrics", "gap turned", "(f1[0] - f1[1]).item()", "(f1[1] - f1[0]).item()"),
    M("metrics", "abs_gap to the mean", "(judged.max() - judged.min()).item()", "(judged.max() - judged.mean()).item()"),
    M("metrics", "empty groups judged", "judged = f1[present] if present.any() else f1", "judged = f1"),
    M("metrics", "pooled with the unknown", "class_scores(confusion[:-1].sum(0))", "class_scores(confusion.sum(0))"),
    M("metrics", "the last batch alone", "self.confusion += counts.to(self._device)", "self.confusion = counts.to(self._device)"),
    # ---- slices ----
    M("slices", "too few to trim, by one", "MIN_SLICES_TO_TRIM = 6", "MIN_SLICES_TO_TRIM = 7"),
    M("slices", "trimmed below only", "int(depth * fraction), int(depth * (1 - fraction))", "int(depth * fraction), depth"),
    M("slices", "middle one too early", "np.array([depth // 2])", "np.array([depth // 2 - 1])"),
    M("slices", "last slice never", "np.linspace(0, depth - 1, num_slices)", "np.linspace(0, depth - 2, num_slices)"),
    M("slices", "other axis", "volume[:, self.indices(volume.shape[1])]", "volume[:, :, self.indices(volume.shape[1])]"),
    # ---- geometry ----
    M("geometry", "right and left swapped", "axcodes2ornt((\"L\", \"P\", \"S\"))", "axcodes2ornt((\"R\", \"P\", \"S\"))"),
    M("geometry", "height and width swapped", "transpose(2, 1, 0)", "transpose(2, 0, 1)"),
    M("geometry", "turned slices off by one", "self.shape[0] - 1 - z", "self.shape[0] - z"),
    M("geometry", "thick steps pass", "or steps.max() > MAX_SPACING_MM", ""),
    # ---- plausibility ----
    M("plausibility", "air not refused", "if air < MIN_AIR:", "if air < 0:"),
    M("plausibility", "tissue of the other end", "(known > TISSUE_HU[0]) & (known < TISSUE_HU[1])", "known > TISSUE_HU[0]"),
    M("plausibility", "padding counts", "known = hu[hu > PADDING_HU]", "known = hu[hu >= PADDING_HU]"),
    M("plausibility", "corners are lungs", "reaches_corner[around[[0, 0, -1, -1], [0, -1, 0, -1]]] = True", ""),
    M("plausibility", "one lung is enough", "if min(lung_shares(air)) >= LUNG_SHARE:", "if max(lung_shares(air)) >= LUNG_SHARE:"),
]  # fmt: skip


# ---- planting --------------------------------------------------------------------------------------------------------
SILENT = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}


def tokens(text: str) -> list[tokenize.TokenInfo]:
    """The tokens that mean something. A closing bracket's comma does not: line breaks add it."""
    found = [token for token in tokenize.generate_tokens(io.StringIO(text).readline) if token.type not in SILENT]
    after = [*(token.string for token in found[1:]), ""]
    return [token for token, next_ in zip(found, after, strict=True) if token.string != "," or next_ not in ")]}"]


def occurrences(text: str, found: str) -> Iterator[tuple[int, int]]:
    """(start, end) of each place in the text where the tokens are."""
    begins = [0]
    for line in text.splitlines(keepends=True):
        begins.append(begins[-1] + len(line))
    place, wanted = tokens(text), [token.string for token in tokens(found)]
    strings = [token.string for token in place]
    for k in range(len(strings) - len(wanted) + 1):
        if strings[k : k + len(wanted)] == wanted:
            (row, column), (last_row, last_column) = place[k].start, place[k + len(wanted) - 1].end
            yield begins[row - 1] + column, begins[last_row - 1] + last_column


def plant(tree: Path, mutant: Mutant) -> tuple[Path, str]:
    """The file that the mutant changes, and its new content."""
    files = sorted({path for pattern in ROOMS[mutant.room].sources for path in tree.glob(pattern)})
    texts = [mutant.found] if isinstance(mutant.found, str) else mutant.found
    for found in texts:
        places = [(path, *place) for path in files for place in occurrences(path.read_text(), found)]
        if len(places) > 1:
            raise LookupError(f"{mutant.room}, {mutant.name}: {found!r} stands {len(places)} times")
        for path, start, end in places:
            text = path.read_text()
            line = text[text.rfind("\n", 0, start) + 1 : start]
            nothing = "pass" if not line.strip() else ""  # what stands for a whole statement
            return path, text[:start] + (mutant.becomes or nothing) + text[end:]
    raise LookupError(f"{mutant.room}, {mutant.name}: no {texts[0]!r} in {', '.join(map(str, files)) or 'any file'}")


# ---- running ---------------------------------------------------------------------------------------------------------
def test_files(tree: Path, room: str) -> list[str]:
    found = [str(path.relative_to(tree)) for pattern in ROOMS[room].tests for path in sorted(tree.glob(pattern))]
    return list(dict.fromkeys(found))


def run_tests(tree: str, files: list[str], log: str) -> None:
    """In a fork: the tests of a tree, until the first one fails; its exit code is pytest's."""
    os.setsid()
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    with open(log, "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.chdir(tree)
    sys.path.insert(0, str(Path(tree, ".lint")))
    sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in repr(finder)]
    import pytest

    options = ["-x", "-q", "-p", "no:cacheprovider", "--no-header", "--tb=line"]
    options += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]  # of what was imported before the fork
    os._exit(pytest.main([*options, f"--basetemp={tree}/tmp", "-m", "not slow", *files]))


def copied(tree: Path, folder: Path) -> Path:
    """What the tests need of a tree."""
    names = "pipeline transforms tests bundles benchmarks docs pyproject.toml setup.cfg README.md requirements.lock"
    for name in names.split():
        if (tree / name).is_dir():
            shutil.copytree(tree / name, folder / name, ignore=shutil.ignore_patterns("data", "__pycache__"))
        else:
            shutil.copy(tree / name, folder / name)
    if not (folder / "pipeline" / "data").exists() and (tree / "pipeline" / "data").exists():
        shutil.copytree(tree / "pipeline" / "data", folder / "pipeline" / "data")
    (folder / "tests" / "data").symlink_to(tree / "tests" / "data")
    (folder / ".lint" / "fairlung").mkdir(parents=True)
    for name in ("pipeline", "transforms"):
        (folder / ".lint" / "fairlung" / name).symlink_to(folder / name)
    return folder


def judged(tree: Path, mutant: Mutant | None, room: str, folder: Path) -> tuple[str, str, float]:
    """What became of a mutant (or of the tree without one), the test that found it, and seconds."""
    began = time.monotonic()
    place = copied(tree, folder)
    if mutant is not None:
        path, text = plant(place, mutant)
        compile(text, str(path), "exec")
        path.write_text(text)
    log = folder / "log.txt"
    process = multiprocessing.get_context("fork").Process(
        target=run_tests, args=(str(place), test_files(place, room), str(log))
    )
    process.start()
    process.join()
    seconds = time.monotonic() - began
    shutil.rmtree(place / "tmp", ignore_errors=True)
    said = log.read_text().strip().splitlines() or [""]
    first = next((line for line in said if line.startswith(("FAILED", "ERROR"))), said[-1])
    code = process.exitcode
    known = {0: "survived", 1: "died", -signal.SIGXCPU: "died", -signal.SIGKILL: "died"}
    outcome = known.get(code, f"error {code}")  # type: ignore[arg-type]
    return outcome, first.split(" - ")[0].removeprefix("FAILED ") if code else "", seconds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("names", nargs="*", help="rooms or names of mutants; all without")
    parser.add_argument("--tree", type=Path, default=ROOT)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    tree = arguments.tree.resolve()
    chosen = [m for m in MUTANTS if not arguments.names or m.room in arguments.names or m.name in arguments.names]
    lost = []
    for mutant in chosen:
        try:
            path, text = plant(tree, mutant)
            compile(text, str(path), "exec")
        except (LookupError, SyntaxError) as error:
            lost.append(str(error))
    if lost:
        print("\n".join(lost), file=sys.stderr)
        return 2
    import importlib

    import torch

    torch.set_num_threads(1)
    for name in PRELOADED:
        importlib.import_module(name)
    rooms = list({tuple(test_files(tree, mutant.room)): mutant.room for mutant in chosen}.values())
    with tempfile.TemporaryDirectory(prefix="mutants-") as scratch, ThreadPoolExecutor(arguments.workers) as pool:
        jobs: list[tuple[Mutant | None, str]] = [(None, room) for room in rooms]  # without a mutant they must pass
        jobs += [(mutant, mutant.room) for mutant in chosen]
        folders = [Path(scratch, str(k)) for k in range(len(jobs))]
        for folder in folders:
            folder.mkdir()
        results = pool.map(lambda job, folder: judged(tree, *job, folder), jobs, folders)
        found: dict[str, list[str]] = {}
        for (mutant, room), (outcome, test, seconds) in zip(jobs, results, strict=True):
            name = mutant.name if mutant else "(none)"
            print(f"{room:14} {name:32} {outcome:9} {seconds:6.1f} s  {test}", flush=True)
            if mutant is None and outcome != "survived":
                print(f"the tests of {room} do not pass without a mutant", file=sys.stderr)
                return 2
            if mutant is not None:
                found.setdefault(room, []).append(outcome)
    print()
    for room, outcomes in found.items():
        print(f"{room:14} {outcomes.count('died'):3} of {len(outcomes)} died")
    died = sum(outcomes.count("died") for outcomes in found.values())
    print(f"{'all':14} {died:3} of {len(chosen)} died")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
