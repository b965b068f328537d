"""The concepts of a DICOM answer, and the UIDs that follow from what they are given to."""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydicom.sr.coding import Code

SCHEME = "99FAIRLUNG"
MAX_MEANING = 64  # characters of LO: code meanings, names of devices

# SNOMED CT; class names are compared by their letters and digits
STANDARD_CLASSES = {
    "adenocarcinoma": ("254626006", "Adenocarcinoma of lung"),
    "squamouscell": ("254634000", "Squamous cell carcinoma of lung"),
    "squamouscellcarcinoma": ("254634000", "Squamous cell carcinoma of lung"),
    "covid": ("840539006", "COVID-19"),
    "covid19": ("840539006", "COVID-19"),
    "normal": ("17621005", "Normal"),
}


def plain_text(text: str) -> str:
    """Without control characters, line breaks and backslashes, which separate values in DICOM."""
    return " ".join(re.sub(r"[\x00-\x1f\x7f\\]", " ", text).split())


def own_code(value: str, meaning: str) -> Code:
    """A concept of our own scheme."""
    from pydicom.sr.coding import Code

    return Code(value, SCHEME, plain_text(meaning)[:MAX_MEANING])


def _short(name: str) -> str:
    """A class name for a code value, which has 16 characters with its prefix: itself, or its digest."""
    plain = re.fullmatch(r"[A-Za-z0-9_.-]{1,14}", name)
    return name if plain else hashlib.sha256(name.encode()).hexdigest()[:14]


def class_code(name: str) -> Code:
    """The coded concept of a class: SNOMED CT where :data:`STANDARD_CLASSES` knows it, else a private code."""
    from pydicom.sr.coding import Code

    standard = STANDARD_CLASSES.get(re.sub(r"[\W_]+", "", name).lower())
    return Code(standard[0], "SCT", standard[1]) if standard else own_code(f"C-{_short(name)}", name)


def probability_code(name: str) -> Code:
    """The private concept "probability of a class".

    Each class has its own, so that a reader that shows names and values alone does not show one name with many values.
    """
    return own_code(f"P-{_short(name)}", f"Probability of {class_code(name).meaning}")


def uid_of(*what: object) -> str:
    """The UID of what is described; of the same description always the same."""
    from pydicom.uid import generate_uid

    return generate_uid(entropy_srcs=["fairlung-dicom-report", *(f"\0{part}" for part in what)])
