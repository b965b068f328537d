"""README and docs/ say what is there: commands with their options, settings with their values, files, messages."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from documented import PAGES, ROOT, Command, blocks, commands, settings_of
from monai.bundle.config_parser import ConfigParser

from fairlung.pipeline.cli.app import app
from fairlung.pipeline.common.settings import KINDS, check_values
from fairlung.pipeline.studies.plan import read_study

PROGRAM: Any = typer.main.get_command(app)
WRONG_USE: Any = typer.BadParameter.__base__
CONFIGS = ROOT / "bundles" / "fair_lung_ct" / "configs"
FOUND = [command for page in PAGES for command in commands(page)]
# options of other programs that pages name: docker, pip, torchrun, mlflow, uv, benchmarks/
OTHERS = {"shm-size", "ipc", "user", "no-deps", "require-hashes", "max_restarts", "env-manager", "compile-bytecode"}
OTHERS |= {"config_file", "only", "published", "key_in_ckpt"}


def found(*programs: str) -> list[Any]:
    return [pytest.param(command, id=str(command)) for command in FOUND if command.words[0] in programs]


@pytest.mark.parametrize("command", found("fairlung"))
def test_a_command_of_ours_takes_what_the_page_gives_it(command: Command) -> None:
    _, name, *rest = command.plain
    if name.startswith("--") or name == "COMMAND":
        return
    assert name in PROGRAM.commands
    one = PROGRAM.commands[name]
    if hasattr(one, "commands"):
        one, rest = one.commands[rest[0]], rest[1:]
    said = ""
    try:
        one.make_context(name, rest)
    except WRONG_USE as error:
        said = error.format_message()
    assert not said or (said.startswith("Missing") and (command.inline or "..." in command.words))


def runs() -> list[Any]:
    """Commands that run the bundle, and ``...`` for the first part of one."""
    shown = [c for c in FOUND if ("monai.bundle" in c.words and "run" in c.words) or c.words[0] == "..."]
    return [pytest.param(command, id=str(command)) for command in shown]


@cache
def entries(files: tuple[str, ...]) -> set[str]:
    return {name for file in files for name in yaml.safe_load((CONFIGS / file).read_text())}


@pytest.mark.parametrize("command", runs())
def test_a_run_names_configs_and_settings_that_are_there(command: Command) -> None:
    given = settings_of(command.words[command.words.index("run") if "run" in command.words else 0 :])
    files = given.pop("config_file", "['.../train.yaml','.../evaluate.yaml','.../inference.yaml']")
    listed = ast.literal_eval(files) if files.startswith("[") else [files]
    names = tuple(re.sub(r"^(\.\.\.|bundles/fair_lung_ct/configs)/", "", file) for file in listed)
    known = entries(names)
    values = {}
    for name, text in given.items():
        assert re.split("::", name)[0] in known, f"{name} is no entry of {', '.join(names)}"
        try:
            values[name] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            values[name] = text
    check_values(values)


@pytest.mark.parametrize("command", found("make"))
def test_a_target_of_make_is_there(command: Command) -> None:
    targets = re.findall(r"^([\w/.-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert command.words[1].split("#")[0].rstrip(",;") in targets


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_options_in_sentences_are_there(page: Path) -> None:
    of_commands = [
        option.removeprefix("--")
        for command in PROGRAM.commands.values()
        for one in (getattr(command, "commands", {}).values() or [command])
        for parameter in one.params
        for option in parameter.opts
    ]
    known = {*of_commands, *KINDS, *OTHERS, "version", "help"}
    known |= {name for file in CONFIGS.rglob("*.yaml") for name in yaml.safe_load(file.read_text())}
    spans = re.findall(r"`((?:\.\.\. )?--[^`]+)`", page.read_text())
    named = [name for span in spans for name in re.findall(r"--([a-zA-Z][\w-]*)", span)]
    assert [name for name in named if name not in known] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_sentences_name_are_there(page: Path) -> None:
    """Those of the repository, by their path from its root."""
    named = re.findall(
        r"`((?:pipeline|transforms|tests|benchmarks|bundles|studies|docs|configs)/[\w./-]+)`", page.read_text()
    )
    folders = (ROOT, CONFIGS.parent)
    missing = [name for name in named if not any((folder / name).exists() for folder in folders)]
    assert [name for name in missing if "NAME" not in name and "/models/" not in name] == []


def test_settings_on_the_page_have_their_defaults() -> None:
    """docs/settings.md, the table of what is changed first."""
    config = yaml.safe_load((CONFIGS / "train.yaml").read_text())
    rows = re.findall(r"^\| (`.+?) \| (.*?) ?\|", (ROOT / "docs" / "settings.md").read_text(), re.MULTILINE)
    checked = 0
    for names, values in rows:
        listed = re.findall(r"`(\w+)`", names)
        assert set(listed) <= set(KINDS)
        if not values or values == "the paper's":
            continue
        shown = yaml.safe_load(f"[{values}]")
        shown = shown * len(listed) if len(shown) == 1 else shown
        assert [float(v) if str(v)[:1].isdigit() else v for v in shown] == [config[name] for name in listed]
        checked += len(listed)
    assert checked > 20


def test_every_setting_has_a_place_in_the_pages() -> None:
    text = "\n".join(page.read_text() for page in PAGES)
    inner = {"required_splits", "metric_prefix"}  # the configs' own: evaluate.yaml sets them, nobody else does
    settings = entries(("train.yaml", "evaluate.yaml", "inference.yaml")) & KINDS.keys() - inner
    assert [name for name in settings if not re.search(rf"\b{name}\b", text)] == []


def test_messages_on_the_page_of_errors_are_those_of_the_code() -> None:
    """Between ``...``, which stand for names and numbers."""
    constants = set()
    for path in (file for folder in ("pipeline", "transforms") for file in (ROOT / folder).rglob("*.py")):
        constants |= {node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)}
    said = "\n".join(str(constant) for constant in constants)
    ours = (ROOT / "docs" / "errors.md").read_text().partition("## What is not ours")[0]
    messages = [
        message for row in re.findall(r"^\| (`.+?) \|", ours, re.MULTILINE) for message in re.findall(r"`(.+?)`", row)
    ]
    pieces = [piece for message in messages for piece in message.split("...") if len(piece.strip()) > 3]
    assert len(pieces) > 25
    assert [piece for piece in pieces if piece.strip(" ,") not in said] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_yaml_on_a_page_is_an_overlay_or_a_study(page: Path, tmp_path: Path) -> None:
    for _, text in blocks(page, "yaml"):
        (tmp_path / "mine.yaml").write_text(text)
        content = yaml.safe_load(text)
        if "systems" in content:
            read_study(tmp_path / "mine.yaml")
        else:
            assert content.keys() <= entries(("train.yaml",))
            parser = ConfigParser()
            parser.read_config([str(CONFIGS / "train.yaml"), str(tmp_path / "mine.yaml")])
            parser["class_counts"] = [4, 3, 2, 1]
            for name in content.keys() & {"sample_loss", "aggregation"}:
                assert parser.get_parsed_content(name) is not None
