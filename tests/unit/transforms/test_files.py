"""Files of a folder in natural order."""

from __future__ import annotations

from fairlung.transforms.files import natural_key


def test_natural_key_orders_any_names() -> None:
    names = [
        "10",
        "2",
        "a",
        "A1",
        "a01",
        "a1",
        "",
        "1a",
        "1.jpg",
        "01.jpg",
        "-3",
        "x\u00b2.jpg",
        "\u0663.jpg",
        "5\u00b2",
    ]
    ordered = sorted(names, key=natural_key)
    backwards = names[::-1]
    assert ordered == sorted(backwards, key=natural_key)
    assert ordered.index("2") < ordered.index("10")
