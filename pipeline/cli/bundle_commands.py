"""Commands for the bundle: its folder, copies and archives; and its three jobs, as ``monai.bundle`` does them."""

from __future__ import annotations

import re
import runpy
import sys
import warnings
from pathlib import Path
from typing import Annotated, NamedTuple

import typer
from typer import Argument, Option

from ..common.bundle import BUNDLE, bundle_folder, config_file, copy_bundle, merged
from ..common.errors import UserError
from ..common.imports import NOT_INFERRED_WITH, absent
from .console import say

Words = Annotated[list[str] | None, Argument(metavar="[--SETTING VALUE]...", show_default=False)]
# all words are the job's: typer takes none of them for an option of its own, --help neither
AS_TYPED = {"ignore_unknown_options": True, "help_option_names": []}


class CommandLineError(UserError, ValueError):
    """Words that a job does not take."""


class Asked(NamedTuple):
    """What the words of a job's command line ask for."""

    configs: list[str]  # overlays, by name or path
    settings: list[str]  # flags with their values, as MONAI takes them
    bundle_root: str | None
    help: bool


def asked(words: list[str], positional: str = "") -> Asked:
    """Sort the words of a job: ``-c NAME`` overlays, ``-o DIR`` output_dir, a word alone is ``positional``."""
    configs: list[str] = []
    settings: list[str] = []
    root, shows_help, rest = None, False, list(words)
    while rest:
        word = rest.pop(0)
        if word in ("-h", "--help"):
            shows_help = True
        elif word in ("-c", "-o"):
            if not rest:
                raise CommandLineError(f"{word} needs a value")
            configs += [rest.pop(0)] if word == "-c" else []
            settings += ["--output_dir", rest.pop(0)] if word == "-o" else []
        elif re.match(r"--[a-zA-Z_]", word):
            name, equals, value = word[2:].partition("=")
            if not equals and rest and not re.match(r"--|-[a-zA-Z]", rest[0]):
                value, equals = rest.pop(0), "="
            name = name.replace("-", "_")
            root = value if name == "bundle_root" else root
            # a value of its own word is one to python-fire whatever it begins with
            settings.append(f"--{name}={value}" if equals else f"--{name}")
        elif positional and not word.startswith("-"):
            settings.append(f"--{positional}={word}")
            positional = ""
        else:
            raise CommandLineError(f"settings are given as --name value, got {word!r}")
    return Asked(configs, settings, root, shows_help)


def _by_engine(given: Asked) -> Asked:
    """An inference whose engine is named as that of a study is: ``--engine ray --address HOST:PORT``."""
    values = dict(setting[2:].partition("=")[::2] for setting in given.settings)
    engine, address = values.get("engine", "local"), values.get("address")
    if engine not in ("local", "ray"):
        raise CommandLineError(f"--engine must be one of local, ray, got {engine!r}")
    if engine == "local" and address is not None:
        raise CommandLineError("--address is that of a cluster, for --engine ray")
    settings = [setting for setting in given.settings if setting[2:].partition("=")[0] not in ("engine", "address")]
    settings += [f"--ray_address={address}"] if address else []
    return given._replace(configs=[*given.configs, *(["ray_inference"] if engine == "ray" else [])], settings=settings)


def train(words: Words = None) -> None:
    """Train: configs/train.yaml of the bundle. `-c systems/ce` puts an overlay on it; --help shows every setting."""
    _job("train", words)


def evaluate(words: Words = None) -> None:
    """Judge a training's best checkpoint: train.yaml and evaluate.yaml. --help shows every setting."""
    _job("evaluate", words)


def infer(words: Words = None) -> None:
    """Answer new scans: `fairlung infer SCANS -o DIR --checkpoint FILE`. --help shows every setting."""
    _job("infer", words)


USAGE = {
    "train": ("fairlung train --cohort cohort.csv -o runs/a08", ""),
    "evaluate": ("fairlung evaluate --cohort cohort.csv -o runs/a08 --split test", ""),
    "infer": ("fairlung infer SCANS -o out --checkpoint runs/a08/models/best.pt", "scans"),
}


def _job(job: str, words: list[str] | None) -> None:
    """Run a job in this process by the very program that ``python -m monai.bundle run`` is."""
    from ..common.settings import settings_text

    usage, positional = USAGE[job]
    given = asked(words or [], positional)
    given = _by_engine(given) if job == "infer" else given
    root = bundle_folder(given.bundle_root)
    first, last = {"train": ("train", ""), "evaluate": ("train", "evaluate"), "infer": ("inference", "")}[job]
    files = [config_file(root, name) for name in filter(None, (first, *given.configs, last))]
    if given.help:
        configs = " ".join(f"-c {name}" for name in given.configs)
        say(f"{usage} {configs}".rstrip())
        say("-o DIR is --output_dir; -c NAME puts a config of the bundle, such as systems/ce, or a file on the others.")
        if job == "infer":
            say("--engine ray --address HOST:PORT is -c ray_inference --ray_address HOST:PORT: a cluster answers.")
        say(settings_text(merged(files)))
        return
    own = [] if given.bundle_root is not None else [f"--bundle_root={root}"]
    if all(file.is_relative_to(BUNDLE) for file in files):  # MONAI warns of configs of others
        warnings.filterwarnings("ignore", "parsing config_file", UserWarning)
    if job == "infer" and not given.configs and given.bundle_root is None:
        with absent(*NOT_INFERRED_WITH):
            import monai.bundle  # noqa: F401  (before it is run as a program, which would import it whole)
    sys.argv = ["monai.bundle", "run", f"--config_file={[str(file) for file in files]}", *own, *given.settings]
    try:
        runpy.run_module("monai.bundle", run_name="__main__", alter_sys=True)
    except KeyboardInterrupt as interrupt:
        sys.excepthook(KeyboardInterrupt, interrupt, None)  # the job's: it says how to go on
        raise typer.Exit(130) from None


def bundle(
    copy: Annotated[Path | None, Option(help="Copy it into a new folder, to be edited; no trained models.")] = None,
    archive: Annotated[Path | None,
        Option("--zip", help="Write the archive that MONAI's download takes into this folder.")] = None,
    weights: Annotated[Path | None, Option(help="zip: a checkpoint, which the archive has as models/model.pt.")] = None,
    weights_url: Annotated[str | None,
        Option(help="zip: where the weights will lie, beside the archive, whose large_files.yml says so.")] = None,
    bundle_root: Annotated[Path | None, Option(help="Folder of another bundle than the one that came along.")] = None,
) -> None:  # fmt: skip
    """Show the bundle's folder, copy it, or make an archive of it."""
    root = bundle_folder(bundle_root)
    if archive is None and (weights or weights_url):
        raise CommandLineError("--weights and --weights-url are for --zip")
    if copy is not None:
        copy_bundle(root, copy)
        say(f"wrote {copy}; use it with --bundle_root {copy}")
    if archive is not None:
        from ..reports.bundle_archive import write_archive

        path, *beside = write_archive(root, archive, weights, weights_url)
        say(f"wrote {path}")
        for file in beside:
            say(f"wrote {file}: put it at {weights_url}")
    if copy is None and archive is None:
        print(root)  # alone on its line, for "$(fairlung bundle)"
