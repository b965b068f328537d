"""What README and docs/ tell a reader to type: commands, settings, snippets, as they stand on the pages."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "bundles/fair_lung_ct/docs/README.md")]
PAGES += sorted((ROOT / "docs").glob("*.md"))
FENCED, INDENTED = r"^```(\w*)\n(.*?)^```", r"(?<=\n\n) {4}\S[^\n]*\n(?: {4}[^\n]*\n|\n(?= {4}))*"
BLOCK = re.compile(f"{FENCED}|({INDENTED})", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Command:
    """A command of a page, in words; ``inline`` where it stands in a sentence or a table, maybe without arguments."""

    page: str
    line: int
    words: tuple[str, ...]
    inline: bool = False

    @property
    def plain(self) -> list[str]:
        """Without what stands for something else: [...] for what may be left out, a|b for either, ... for more."""
        words = [re.sub(r"^\[(?=--)|(?<=\w)\]$", "", word) for word in self.words]
        return [re.sub(r"^(\w+)(\|\w+)+$", r"\1", word) for word in words if word != "..."]

    def __str__(self) -> str:
        return f"{self.page}:{self.line} {shlex.join(self.words)}"


def blocks(page: Path, *languages: str) -> Iterator[tuple[int, str]]:
    """The line and the text of a page's code blocks in some languages; an indented block has none."""
    text = page.read_text()
    for found in BLOCK.finditer(text):
        if (found[1] or "") in languages:
            yield text[: found.start()].count("\n") + 1, found[2] or re.sub("^ {4}", "", found[3], flags=re.MULTILINE)


def commands(page: Path) -> list[Command]:
    """The commands in a page's blocks of shell, then those in its sentences and tables."""
    name, found = str(page.relative_to(ROOT)), []
    # set in one block, used in others too
    variables = dict(re.findall(r"^(\w+)=(\S+)$", page.read_text(), re.MULTILINE))
    for line, block in blocks(page, "sh", ""):
        for variable, value in variables.items():
            block = block.replace(f"${variable}", value)
        for text in block.replace("\\\n", " ").splitlines():
            words = shlex.split(text, comments=True) if is_command(text) else []
            while words and re.fullmatch(r"\w+=.*", words[0]):
                words.pop(0)
            found += [Command(name, line, tuple(words))] if words else []
    for inline in re.finditer(r"`((?:fairlung|make) [^`]+)`", BLOCK.sub("", page.read_text())):
        found.append(Command(name, 0, tuple(shlex.split(inline[1])), inline=True))
    return found


def is_command(text: str) -> bool:
    return bool(re.match(r"(\w+=\S* +)*(fairlung|python|torchrun|make|mlflow|\.\.\.) ", text))


def settings_of(words: tuple[str, ...]) -> dict[str, str]:
    """``--name value`` and ``--name=value`` of a command."""
    found = {}
    for word, following in zip(words, [*words[1:], ""], strict=True):
        if word.startswith("--"):
            name, equals, value = word.removeprefix("--").partition("=")
            found[name] = value if equals else following
    return found
