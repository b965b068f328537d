"""A report as plain parts (sections of text, verdicts, tables, pictures), rendered as one HTML file or as Markdown."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ..common.text import printable
from ..evaluation.wording import Verdict

if TYPE_CHECKING:
    from jinja2 import Environment
    from matplotlib.figure import Figure

TEMPLATES = Path(__file__).with_name("templates")
PNG_DPI = 130
# Each level of a verdict has a sign and a word: a reader must not depend on colour.
LEVELS = {
    "finding": ("\u25b2", "Finding"), "warning": ("\u25c6", "Warning"), "inconclusive": ("\u25d0", "Inconclusive"),
    "no-statement": ("\u25cb", "No statement"), "note": ("\u2022", "Note"),
}  # fmt: skip


@dataclass(frozen=True)
class Paragraph:
    kind: ClassVar[str] = "paragraph"
    text: str


@dataclass(frozen=True)
class Verdicts:
    kind: ClassVar[str] = "verdicts"
    items: tuple[Verdict, ...]  # the most important first


@dataclass(frozen=True)
class Table:
    """A table whose first column names the row; ValueError where a row has not as many values as columns."""

    kind: ClassVar[str] = "table"
    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]  # a line feed in a value is a line break, and a space in Markdown
    strong: frozenset[tuple[int, int]] = frozenset()  # (row, column) of the values in bold
    ends_in_text: bool = False  # the last column holds sentences, not numbers

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"table {self.caption!r}: {len(row)} values in a row of {len(self.columns)} columns")


@dataclass(frozen=True)
class Picture:
    """A figure, or an image made elsewhere."""

    kind: ClassVar[str] = "picture"
    name: str  # of the file beside the Markdown, without suffix
    alt: str  # what the picture shows, with its numbers
    png: bytes  # for Markdown, and for HTML when there is no SVG
    svg: bytes | None = None  # for HTML
    caption: str = ""
    min_width: int = 0  # CSS pixels below which it scrolls in its box instead of shrinking; 0 always shrinks

    @property
    def data_uri(self) -> str:
        """The picture as a data URI: an SVG in an image element has ids of its own, and runs no script."""
        media_type, content = ("image/png", self.png) if self.svg is None else ("image/svg+xml", self.svg)
        return f"data:{media_type};base64,{base64.b64encode(content).decode()}"


@dataclass(frozen=True)
class Pictures:
    """Pictures that stand side by side where there is room."""

    kind: ClassVar[str] = "pictures"
    items: tuple[Picture, ...]
    column: int = 320  # CSS pixels that one of them needs


Block = Paragraph | Verdicts | Table | Picture | Pictures


@dataclass(frozen=True)
class Section:
    title: str
    blocks: tuple[Block, ...]

    @property
    def anchor(self) -> str:
        return re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-")


@dataclass(frozen=True)
class Document:
    title: str
    facts: tuple[tuple[str, str], ...]  # (name, value): what was judged
    sections: tuple[Section, ...]
    badge: str = ""  # a word that must not be overlooked, such as SYNTHETIC
    badge_text: str = ""  # says why

    def pictures(self) -> list[Picture]:
        found: list[Picture] = []
        for block in (block for section in self.sections for block in section.blocks):
            found += [block] if isinstance(block, Picture) else block.items if isinstance(block, Pictures) else []
        return found


def figure_picture(figure: Figure, name: str, alt: str, caption: str = "", min_width: int = 0) -> Picture:
    """A matplotlib figure as a picture; the same figure gives the same bytes."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    svg, png = io.BytesIO(), io.BytesIO()
    figure.set_dpi(PNG_DPI)
    FigureCanvasAgg(figure).print_png(png, metadata={"Software": None})
    figure.set_layout_engine("none")  # the layout is done; savefig would repeat it five times
    # Text becomes outlines, so that the layout holds on machines that lack the font.
    with rc_context({"svg.hashsalt": name, "svg.fonttype": "path"}):
        FigureCanvasSVG(figure).print_svg(svg, metadata={"Date": None, "Creator": None})
    return Picture(name, alt, png.getvalue(), svg.getvalue(), caption, min_width)


def write_document(document: Document, path: str | Path) -> Path:
    """Write ``path`` (HTML, self-contained; else ValueError), the same as Markdown (``.md``), and return ``path``.

    The Markdown's pictures go into ``<stem>_files``, from which the PNGs of an earlier report are removed.
    """
    path = Path(path)
    require_html(path)
    folder = path.with_name(f"{path.stem}_files")
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.png"):
        old.unlink()
    for picture in document.pictures():
        (folder / f"{picture.name}.png").write_bytes(picture.png)
    write_text(path.with_suffix(".md"), render_markdown(document, folder.name))
    write_text(path, render_html(document))
    return path


def require_html(path: str | Path) -> None:
    """ValueError when a report's name does not end in .html."""
    if Path(path).suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"a report is an .html file (Markdown is written beside it), got {Path(path).name}")


def render_html(document: Document) -> str:
    """One HTML page that asks for nothing from anywhere; every text is escaped and :func:`~.printable`."""
    environment = _environment(autoescape=True, finalize=lambda v: printable(v) if type(v) is str else v)
    return environment.get_template("report.html.jinja").render(document=document, levels=LEVELS)


def render_markdown(document: Document, pictures: str) -> str:
    """The same content as Markdown (GitHub's tables); ``pictures`` is the folder of its PNG files."""
    template = markdown_environment().get_template("report.md.jinja")
    return squeezed(template.render(document=document, levels=LEVELS, pictures=pictures))


def markdown_environment() -> Environment:
    """Templates of Markdown: every inserted value is escaped, but for what the filter ``raw`` marks as Markdown."""
    from markupsafe import Markup

    environment = _environment(finalize=lambda v: v if isinstance(v, Markup) else escape_markdown(str(v)))
    environment.filters["table"] = lambda table: Markup(markdown_table(table))  # noqa: S704  (its cells are escaped)
    environment.filters["raw"] = Markup
    return environment


def _environment(**settings: Any) -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    loader = FileSystemLoader(TEMPLATES)
    # each kind of page brings how it escapes
    return Environment(  # noqa: S701
        loader=loader, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, **settings
    )


def escape_markdown(text: str) -> str:
    """Text that Markdown shows as it is: no markup, no HTML, no link, no formula, on one line."""
    text = " ".join(printable(text).split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = re.sub(r"([\\`*\[\]|#~$])", r"\\\1", text)
    text = re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", text)  # inside a word _ is no markup
    return text.replace("://", ":&#47;/")  # an address would become a link


def markdown_table(table: Table) -> str:
    """A table in GitHub's Markdown, its caption in bold above."""
    rows = [list(map(escape_markdown, row)) for row in (table.columns, *table.rows)]
    for row, column in table.strong:
        rows[row + 1][column] = f"**{rows[row + 1][column]}**"
    lines = [f"| {' | '.join(row)} |" for row in rows]
    rule = "|".join(["", " --- ", *[" ---: "] * (len(table.columns) - 1), ""])
    return "\n".join([f"**{escape_markdown(table.caption)}**", "", lines[0], rule, *lines[1:]])


def squeezed(text: str) -> str:
    """Text without repeated empty lines, ending in one line feed."""
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def write_text(path: Path, text: str) -> None:
    """Write a text file, the same on every system; a name that is not Unicode stays told from others."""
    path.write_text(text, encoding="utf-8", errors="backslashreplace", newline="\n")
