"""What the site has beside the pages of docs/: pages from elsewhere, files that pages link to, generated reference.

Pages are written for code hosts: relative links, nothing that only this site understands. A page that lies where code
hosts look for it is a page here too (:data:`ELSEWHERE`). A file of the repository that a page links to goes with the
site, so the site needs no code host.
"""

import importlib
import inspect
import posixpath
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import griffe
import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

from fairlung.pipeline.cli.app import app
from fairlung.pipeline.common.settings import KINDS, kind_text

ROOT = Path(__file__).parents[1]
ELSEWHERE = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
    "bundles/fair_lung_ct/docs/README.md": "bundle.md",
    "tests/data/SOURCES.md": "test-data.md",
}
# rooms whose names notebooks and overlays use
ROOMS = ("losses", "networks", "training", "data", "evaluation", "comparison", "postprocessing", "inference")
ROOMS += ("explain", "shortcuts", "phantoms", "reports", "tracking", "studies")
ROLE = re.compile(r":(?:class|func|mod|attr|meth|data):`~?[.]*([^`]+)`")
PLACEHOLDER = re.compile(r"((`+).*?\2)|<(\w[\w ]*)>", re.DOTALL)
LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#)([^)\s#]+)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    pages = {page.src_uri: (page.content_string, f"docs/{page.src_uri}") for page in files.documentation_pages()}
    pages |= {page: ((ROOT / source).read_text(), source) for source, page in ELSEWHERE.items()}
    pages["api.md"] = (api_reference(text for text, _ in pages.values()), "docs/api.md")
    linked: set[str] = set()
    for page, (text, source) in pages.items():
        text += {"settings.md": settings_reference, "commands.md": commands_reference}.get(page, str)()
        replace_page(files, File.generated(config, page, content=relinked(text, source, linked)))
    for path in linked:
        files.append(File.generated(config, f"repository/{path}", abs_src_path=str(ROOT / path)))
    return files


class PlainDocstrings(griffe.Extension):
    """Docstrings as mkdocstrings reads them: a section Examples, names without Sphinx's roles, <class> no tag."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            text = obj.docstring.value.replace("\nExample:\n", "\nExamples:\n")
            text = ROLE.sub(r"`\1`", text)
            obj.docstring.value = PLACEHOLDER.sub(lambda found: found[1] or f"&lt;{found[3]}&gt;", text)


def replace_page(files: Files, page: File) -> None:
    before = files.get_file_from_path(page.src_uri)
    if before is not None:
        files.remove(before)
    files.append(page)


def relinked(text: str, source: str, linked: set[str]) -> str:
    """The text of a file of the repository, with links for the site; files that are no page are added to ``linked``.

    PluginError: a link to a file that is not there.
    """

    def target(match: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), match[1]))
        if path in ELSEWHERE:
            return ELSEWHERE[path]
        if path.startswith("docs/"):
            return path.removeprefix("docs/")
        if not (ROOT / path).is_file():
            raise PluginError(f"{source} links to {match[1]}, which is not there")
        linked.add(path)
        return f"repository/{path}"

    return LINK.sub(target, text)


def settings_reference() -> str:
    """Every setting with what it is and what it may be, in the order of :class:`fairlung.pipeline.common.Settings`."""
    rows = [f"| `{name}` | {kind.__metadata__[-1]} | {kind_text(kind)} |" for name, kind in KINDS.items()]
    return "\n## Every setting\n\n| setting | what it is | what it may be |\n|---|---|---|\n" + "\n".join(rows) + "\n"


def commands_reference() -> str:
    """Arguments and options of every command of the console program."""
    program: Any = typer.main.get_command(app)
    found = []
    for name, command in program.commands.items():
        inner = getattr(command, "commands", None)
        parts = {f"{name} {sub}": part for sub, part in inner.items()} if inner else {name: command}
        found += [command_reference(f"fairlung {words}", part) for words, part in parts.items()]
    return "\n## Every command\n\n" + "\n".join(found)


def command_reference(words: str, command: Any) -> str:
    lines = [f"### {words}", "", *inspect.cleandoc(command.help).splitlines(), "", "| | | default |", "|---|---|---|"]
    for parameter in command.params:
        is_option = parameter.param_type_name == "option"
        name = ", ".join(parameter.opts) if is_option else parameter.metavar or parameter.name.upper()
        default = "required" if parameter.required else parameter.default
        default = "" if default in (None, False, ()) else default
        lines.append(f"| `{name}` | {parameter.help or ''} | {default} |".replace("<", "&lt;"))
    return "\n".join(lines) + "\n"


def api_reference(pages: Iterable[str]) -> str:
    """What packages expose, and what the Python on these pages imports, a heading a package."""
    imported = [
        found for page in pages for found in re.findall(r"^from (fairlung\S+) import (.+)$", page, re.MULTILINE)
    ]
    packages = ["fairlung.pipeline", *(f"fairlung.pipeline.{room}" for room in ROOMS), "fairlung.transforms"]
    text = ["# Python", "", "The names that notebooks and overlays use. Everything else may change.", ""]
    shown: set[str] = set()
    for package in packages:
        module = importlib.import_module(package)
        found = [getattr(module, name) for name in getattr(module, "__all__", [])]
        for path, names in imported:
            if path.startswith(f"{package}.") and package != "fairlung.pipeline":
                found += [getattr(importlib.import_module(path), name) for name in names.split(", ")]
        names = {f"{each.__module__}.{each.__qualname__}": None for each in found if hasattr(each, "__qualname__")}
        names = [name for name in names if name not in shown]
        shown.update(names)
        if names:
            text += [f"## {package}", "", (module.__doc__ or "").strip(), ""]
            text += [f"::: {name}\n    options: {{heading_level: 3}}\n" for name in names]
    return "\n".join(text)
