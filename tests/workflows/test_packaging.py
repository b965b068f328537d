"""One lock of exact versions: what make installs is what environment.yml installs and what setup.cfg allows."""

from __future__ import annotations

import ast
import configparser
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).parents[2]
# import name -> distribution, where they differ
DISTRIBUTIONS = {
    "PIL": "pillow",
    "markdown_it": "markdown-it-py",
    "ignite": "pytorch-ignite",
    "sklearn": "scikit-learn",
    "yaml": "pyyaml",
}
# imported by packages that a requirement brings along and re-exports
PART_OF = {"alembic": "mlflow", "fire": "monai", "markupsafe": "jinja2", "packaging": "pytest"}
# imported by a requirement that does not bring it along, when it is asked for
ASKED_FOR = {"pyjpegls", "nvidia-ml-py"}  # pydicom, to decode JPEG-LS; MLflow, to read the load of GPUs


# folders that hold no modules: the bundle and the studies
DATA = ("bundles", "studies")


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.fixture(scope="module")
def lock() -> list[Requirement]:
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


@pytest.fixture(scope="module")
def setup() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


def listed(text: str) -> list[Requirement]:
    return [Requirement(line) for line in text.splitlines() if line.strip() and not line.startswith("#")]


def declared(setup: configparser.ConfigParser) -> dict[str, list[Requirement]]:
    extras = {name: listed(text) for name, text in setup["options.extras_require"].items()}
    return {"": listed(setup["options"]["install_requires"]), **extras}


def test_the_lock_is_exact(lock: list[Requirement]) -> None:
    for requirement in lock:
        (specifier,) = requirement.specifier
        assert specifier.operator == "==", str(requirement)
        assert "*" not in specifier.version, str(requirement)


def test_the_lock_satisfies_every_declared_range(lock: list[Requirement], setup: configparser.ConfigParser) -> None:
    versions: dict[str, list[str]] = {}
    for requirement in lock:
        versions.setdefault(canonical(requirement.name), []).append(next(iter(requirement.specifier)).version)
    for requirements in declared(setup).values():
        for requirement in requirements:
            assert versions[canonical(requirement.name)], requirement.name
            for version in versions[canonical(requirement.name)]:
                assert requirement.specifier.contains(version), f"{requirement} against {version}"


def test_this_environment_is_the_locked_one(lock: list[Requirement]) -> None:
    wrong = {}
    for requirement in lock:
        if requirement.marker is None or requirement.marker.evaluate():
            installed = importlib.metadata.version(requirement.name)
            if not requirement.specifier.contains(installed):
                wrong[str(requirement)] = installed
    assert not wrong


def test_hashes_are_those_of_the_lock() -> None:
    pinned, hashes = [], {}
    for line in (ROOT / "requirements.hashes").read_text().splitlines():
        if line.startswith("    --hash=sha256:"):
            hashes.setdefault(pinned[-1], []).append(line)
        else:
            pinned.append(line.removesuffix(" \\"))
    assert pinned == (ROOT / "requirements.lock").read_text().splitlines()
    assert set(hashes) == set(pinned)


def test_conda_installs_what_the_lock_says(lock: list[Requirement], setup: configparser.ConfigParser) -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    conda = [entry for entry in environment["dependencies"] if isinstance(entry, str)]
    (pip,) = [entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict)]
    # conda brings Python and pip alone, so nothing that the lock pins comes from another place
    assert [re.split(r"[ <>=]", entry)[0] for entry in conda] == ["python", "pip"]
    assert SpecifierSet(conda[0].removeprefix("python").strip()) == SpecifierSet(setup["options"]["python_requires"])
    assert pip[0] == "--requirement requirements.lock"
    assert pip[-1] == "--editable ."
    named = [Requirement(entry) for entry in pip[1:-1]]
    locked = {canonical(requirement.name) for requirement in lock}
    for requirement in named:
        assert not requirement.specifier, "versions stand in the lock alone"
        assert canonical(requirement.name) in locked
    card = {"monai", "torch", "torchvision", "nibabel", "simpleitk", "pydicom", "itk", "mlflow"}
    assert {canonical(requirement.name) for requirement in named} == card


def test_packages_and_folders_agree(setup: configparser.ConfigParser) -> None:
    packages = setup["options"]["packages"].split()
    folders = dict(line.split(" = ") for line in setup["options"]["package_dir"].strip().splitlines())
    assert sorted(packages) == sorted(folders)
    found = {path.parent for name in ("pipeline", "transforms") for path in (ROOT / name).rglob("__init__.py")}
    assert {ROOT / folder for folder in folders.values()} == found | {ROOT / name for name in DATA}


def shipped() -> set[str]:
    """What a wheel must hold: modules, templates and the rest of the two packages, the bundle and the studies."""
    files = (path for name in ("pipeline", "transforms", *DATA) for path in (ROOT / name).rglob("*"))
    files = (path for path in files if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".pt")
    return {path.relative_to(ROOT).as_posix() for path in files}


@pytest.mark.filterwarnings("ignore")  # setuptools' own
def test_the_wheel_is_told_of_every_file(monkeypatch: pytest.MonkeyPatch) -> None:
    from setuptools import Distribution

    monkeypatch.chdir(ROOT)
    distribution = Distribution({"script_name": "setup.py"})
    distribution.parse_config_files(["setup.cfg"])
    build = distribution.get_command_obj("build_py")
    build.ensure_finalized()
    held = {Path(path).as_posix() for path in build.get_source_files()}
    held |= {Path(folder, name).as_posix() for _, folder, _, names in build.data_files for name in names}
    assert held == shipped()


@pytest.mark.slow
def test_the_wheel_holds_every_file_and_runs(tmp_path: Path) -> None:
    for name in ("pipeline", "transforms", *DATA):
        shutil.copytree(ROOT / name, tmp_path / "source" / name, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "source" / "bundles" / "fair_lung_ct" / "models" / "model.pt").write_bytes(b"a training's")
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path / "source")
    build = [Path(sys.executable).with_name("uv"), "build", "--quiet", "--wheel", "--offline", "--no-build-isolation"]
    build += ["--python", sys.executable, "--out-dir", tmp_path, tmp_path / "source"]
    subprocess.run(build, check=True)
    (wheel,) = tmp_path.glob("fairlung-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        held = {name.removeprefix("fairlung/") for name in archive.namelist() if ".dist-info/" not in name}
        archive.extractall(tmp_path / "installed")
    assert held == shipped()
    code = "from fairlung.pipeline.common.bundle import bundle_folder as folder; print(folder())"
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "installed")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.stdout.strip() == str(tmp_path / "installed" / "fairlung/bundles/fair_lung_ct"), done.stderr


def imports(folder: str) -> set[str]:
    """Distributions that the modules of a folder import."""
    names = set()
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                names.add(node.module)
    ours = {"fairlung", *(path.stem for path in (ROOT / "tests" / "helpers").glob("*.py"))}
    tops = {name.split(".")[0] for name in names} - set(sys.stdlib_module_names) - ours
    return {canonical(PART_OF.get(top, DISTRIBUTIONS.get(top, top))) for top in tops}


def test_every_import_is_declared_and_every_requirement_is_used(setup: configparser.ConfigParser) -> None:
    requirements = {extra: {canonical(r.name) for r in listed} for extra, listed in declared(setup).items()}
    packages = imports("pipeline") | imports("transforms")
    extras = ("ray", "openvino", "slurm", "remote")
    optional = set().union(*(requirements[extra] for extra in extras)) - {"s3fs"}  # which fsspec imports
    assert packages - requirements[""] == optional, "imported but not declared"
    assert requirements[""] - packages == ASKED_FOR, "declared but not imported"
    tests = imports("tests")
    assert tests - requirements[""] - requirements["dev"] - requirements["export"] == set()


def test_the_bundle_says_everything_that_it_needs(setup: configparser.ConfigParser) -> None:
    metadata = json.loads((ROOT / "bundles" / "fair_lung_ct" / "configs" / "metadata.json").read_text())
    needed = {canonical(name) for name in metadata["required_packages_version"]} | {"monai", "torch", "numpy"}
    assert needed == {"fairlung"} | {canonical(requirement.name) for requirement in declared(setup)[""]}


def test_the_top_level_is_the_design_card() -> None:
    tracked = subprocess.run(["git", "-C", str(ROOT), "ls-files"], capture_output=True, text=True, check=False)
    if tracked.returncode:
        pytest.skip("not a git checkout")
    top = {line.split("/")[0] for line in tracked.stdout.splitlines()}
    card = {"pipeline", "transforms", "bundles", "tests", "environment.yml", "setup.cfg", "README.md"}
    beside = {
        "pyproject.toml",
        "Makefile",
        "LICENSE",
        "CONTRIBUTING.md",
        "CHANGELOG.md",
        "CITATION.cff",
        "SECURITY.md",
        "docs",
        "mkdocs.yml",
    }
    beside |= {"benchmarks", "studies", "requirements.lock", "requirements.hashes"}
    hidden = {".ci", ".github", ".gitignore", ".pre-commit-config.yaml"}
    assert card <= top
    assert top <= card | beside | hidden


@pytest.mark.skipif("PYTEST_XDIST_WORKER" not in os.environ, reason="one process runs all tests")
def test_the_tests_of_a_file_stay_on_one_worker(request: pytest.FixtureRequest) -> None:
    """Else what they share is made once a worker, in twice the time and memory."""
    assert request.node.nodeid.endswith("@test_packaging")


@pytest.mark.slow
def test_a_worker_that_dies_ends_the_tests_with_an_error(tmp_path: Path) -> None:
    """As one does that is killed because memory ran out."""
    (options,) = re.findall(
        r"^PYTEST := \$\(BIN\)/python -m pytest (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE
    )
    (tmp_path / "pytest.ini").write_text("[pytest]")
    (tmp_path / "test_a.py").write_text("import os\ndef test_1(): os.kill(os.getpid(), 9)\ndef test_2(): pass\n")
    (tmp_path / "test_b.py").write_text("def test_1(): pass\ndef test_2(): pass\n")
    command = [sys.executable, "-m", "pytest", "-n", "2", *options.split()]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=300)
    assert done.returncode == 1 and "crashed while running 'test_a.py::test_1'" in done.stdout
