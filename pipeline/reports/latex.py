"""Tables as LaTeX."""

import re
import unicodedata
from collections.abc import Sequence

from .document import Table

LATEX = str.maketrans(
    {
        "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}",
        ">": r"\textgreater{}", "|": r"\textbar{}", "\u2013": r"\textendash{}", "\u2212": "$-$", "\u00b1": r"$\pm$",
        "\u00d7": r"$\times$", "\u03b1": r"$\alpha$",
        **{sign: f"\\{sign}" for sign in "&%$#_{}"},
        **{sign: f"{{{sign}}}" for sign in "[]*`'"},  # after a line break LaTeX reads [ and * as arguments
    }
)  # fmt: skip
# Only a table that is wider than the page shrinks (graphicx).
FIT = r"\resizebox{\ifdim\width>\textwidth\textwidth\else\width\fi}{!}"


def escape_latex(text: str) -> str:
    """Text that LaTeX shows as it is, on one line: no command, and no letter that pdflatex lacks."""
    spaced = " ".join("".join(sign if sign.isprintable() else " " for sign in text).split())
    spaced = re.sub(r"(?<![^\s(])-(?=\d)", "\u2212", spaced)  # it is a minus, not a hyphen
    shown = "".join(sign if _in_latex(sign) else f"[U+{ord(sign):04X}]" for sign in spaced).translate(LATEX)
    return re.sub("-(?=-)", "-{}", shown)  # two hyphens would become a dash


def _in_latex(sign: str) -> bool:
    """ASCII, what LATEX replaces, and the Latin letters that pdflatex sets in its default font (tried in all)."""
    base, *marks = list(unicodedata.normalize("NFD", sign))
    accented = sign < "\u0180" and base.isascii() and "\u0328" not in marks  # no ogonek
    return sign.isascii() or ord(sign) in LATEX or sign in "ßøØæÆœŒłŁ" or accented


def latex_table(table: Table, label: str, notes: Sequence[str] = ()) -> str:
    """A table in LaTeX, over both columns of a page, with a label for ``\\ref`` and ``notes`` below.

    It needs the packages booktabs and graphicx. Values that hold a line feed become two lines, the second smaller. The
    caption loses "Table 1.", as LaTeX counts by itself.
    """
    import pandas as pd

    rows = [list(map(_latex_cell, row)) for row in table.rows]
    for row, column in table.strong:
        rows[row][column] = rf"{{\boldmath\bfseries {rows[row][column]}}}"
    head = list(map(escape_latex, table.columns))
    frame = pd.DataFrame(rows, columns=range(len(head)), dtype=str).set_axis(head, axis=1)
    tabular = frame.style.hide(axis="index").to_latex(hrules=True, column_format=f"l{'r' * (len(head) - 1)}")
    lines = [
        *(r"% needs \usepackage{booktabs,graphicx}", r"\begin{table*}", r"\centering", r"\scriptsize"),
        r"\setlength{\tabcolsep}{3pt}",
        rf"\caption{{{escape_latex(re.sub(r'Table [0-9]+[.] ', '', table.caption, count=1))}}}",
        rf"\label{{{label}}}",
        f"{FIT}{{{tabular.strip()}}}",
        *(rf"\par\smallskip\raggedright {escape_latex(note)}" for note in notes),
        r"\end{table*}",
    ]
    return "\n".join(lines) + "\n"


def _latex_cell(text: str) -> str:
    first, *more = map(escape_latex, text.split("\n"))
    if not more:
        return first
    # Without struts the lines would touch the row above, or stand higher than their neighbours.
    return rf"\shortstack[r]{{\rule{{0pt}}{{3ex}}{first}\\{{\tiny\strut {' '.join(more)}}}}}"
