"""Tables as LaTeX: no text can do harm, and every letter is one that pdflatex has."""

from __future__ import annotations

import re

import hypothesis.strategies as st
from hypothesis import given
from latex_checks import check_latex

from fairlung.pipeline.reports.document import Table
from fairlung.pipeline.reports.latex import escape_latex, latex_table


@given(st.text(max_size=30))
def test_any_text_is_safe_in_latex(text):
    shown = escape_latex(text)
    rest = re.sub(r"\\text[a-z]+\{\}|-\{\}|\\[&%$#_{}]|\$(\\alpha|\\pm|\\times|-)\$|\{[\[\]*`']\}", "", shown)
    assert not re.search(r"[\\&%$#_{}~^<>|\[\]*]", rest)
    assert "\n" not in shown and shown.isprintable()
    check_latex(
        latex_table(Table(text, ("a", "b"), ((text, f"1\n{text}"),), frozenset({(0, 1)})), "tab:table1", [text])
    )


def test_letters_that_pdflatex_lacks_are_called_by_their_number():
    assert escape_latex("Zürich, Ørsted, Łódź, Şükrü: 3 \u00b1 1") == "Zürich, Ørsted, Łódź, Şükrü: 3 $\\pm$ 1"
    assert escape_latex("\u2260\u0105\u1ebf\u212a\u80ba") == "[U+2260][U+0105][U+1EBF][U+212A][U+80BA]".translate(
        {91: "{[}", 93: "{]}"}
    )
    assert escape_latex("-0.1 (-0.2 to 0.1), a-1--b") == "$-$0.1 ($-$0.2 to 0.1), a-1-{}-b"
