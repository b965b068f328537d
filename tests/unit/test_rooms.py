"""The rooms of the house: imports run one way, and tests stand where the code stands."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[2]
# A room may import from those before it, as data flows; docs/architecture.md says what is in each.
ROOMS = (
    "transforms", "common", "phantoms", "data", "networks", "losses", "training", "evaluation", "comparison",
    "postprocessing", "inference", "explain", "shortcuts", "reports", "tracking", "studies", "cli",
)  # fmt: skip


def modules() -> dict[str, Path]:
    """``pipeline.data.cohort`` -> its file; a package is named as such."""
    files = [path for folder in ("pipeline", "transforms") for path in (ROOT / folder).rglob("*.py")]
    names = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in files}
    assert len(names) > 100
    return names


def room(module: str) -> str:
    parts = module.split(".")
    return parts[1] if parts[0] == "pipeline" and len(parts) > 1 else parts[0]


def imported(module: str, path: Path, known: dict[str, Path]) -> Iterator[str]:
    """Our modules that a module imports, at its top or inside a function."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.ImportFrom):
            continue
        if node.level:
            base = ".".join(package.split(".")[: len(package.split(".")) - node.level + 1])
            source = f"{base}.{node.module}" if node.module else base
        elif (node.module or "").startswith("fairlung."):
            source = str(node.module).removeprefix("fairlung.")
        else:
            continue
        for alias in node.names:
            yield f"{source}.{alias.name}" if f"{source}.{alias.name}" in known else source


def arrows() -> dict[str, set[str]]:
    known = modules()
    # what a package re-exports it names as text, imported when it is asked for
    return {name: set(imported(name, path, known)) - {name} for name, path in known.items()}


def test_no_import_runs_back_up() -> None:
    entry = ("pipeline", "__main__")  # the package itself and `python -m fairlung.pipeline`
    backwards = [
        (name, target)
        for name, targets in arrows().items()
        for target in targets
        if room(name) not in entry and room(target) not in entry and ROOMS.index(room(target)) > ROOMS.index(room(name))
    ]
    assert not backwards


def test_no_circle_of_files() -> None:
    graph = {name: targets - {"pipeline"} for name, targets in arrows().items()}  # of which __version__ is imported
    TopologicalSorter(graph).prepare()  # raises CycleError


def test_every_room_has_its_tests() -> None:
    folders = {path.name for path in (ROOT / "tests" / "unit").iterdir() if path.is_dir() and any(path.glob("*.py"))}
    assert folders - {"benchmarks"} <= set(ROOMS)
