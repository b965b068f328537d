"""What a LaTeX table of ours may hold."""

from __future__ import annotations

import re

from fairlung.pipeline.reports.latex import FIT


def check_latex(text: str) -> None:
    """Balanced, ASCII or accented letters, and no command that the table does not write itself."""
    assert FIT in text
    body = text.partition("\n")[2].replace(FIT, "")  # without the comment, and what makes it as wide as the page
    plain = re.sub(r"\\[\\&%$#_{}]", "", body)  # escaped signs and line ends
    depth = 0
    for sign in plain:
        depth += (sign == "{") - (sign == "}")
        assert depth >= 0
    assert depth == 0
    assert not re.search(r"[%#~^_|<>]", plain.replace("\\textasciitilde", "").replace("tab:table1", ""))
    commands = set(re.findall(r"\\([a-zA-Z]+)", body.replace("\\\\", " ")))
    assert commands <= {
        "begin", "end", "centering", "scriptsize", "setlength", "tabcolsep", "caption", "label", "toprule", "midrule",
        "bottomrule", "shortstack", "tiny", "par", "smallskip", "raggedright", "boldmath", "bfseries", "alpha",
        "textbackslash", "textasciitilde", "textasciicircum", "textless", "textgreater", "textbar", "pm", "times",
        "textendash", "rule", "strut",
    }  # fmt: skip
    columns = re.search(r"\\begin\{tabular\}\{(l?r+)\}", body)
    assert columns is not None
    rows = [line for line in body.splitlines() if line.endswith(r"\\")]
    for row in rows:
        assert len(re.findall(r"(?<!\\)&", row)) == len(columns[1]) - 1
