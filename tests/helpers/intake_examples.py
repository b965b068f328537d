"""Intake records as LoadScand makes them, with the names of their scans."""

from __future__ import annotations

from typing import Any

import numpy as np

EVIL = "a/<script>alert(1)</script> & $x$ [red]"


def record(scan: str, **changes: Any) -> dict[str, Any]:
    """A record of a CT that is fine, as LoadScand makes it, with its name."""
    return {
        "scan": scan,
        "kind": "dicom",
        "status": "ok",
        "reason": "",
        "warnings": [],
        "series": "",
        "slices_found": 80,
        "slices_used": 16,
        "shape": [80, 512, 512],
        "spacing": [2.5, 0.7, 0.7],
        "affine": np.diag([-0.7, -0.7, 2.5, 1]).tolist(),
        "indices": list(range(0, 80, 5)),
        "orientation": "LPS",
        "value_range": [-1024.0, 1900.0],
        "tilt_degrees": 0.0,
        "decoder": "pydicom",
        "files": ["/home/Doe_John/1.dcm"],
    } | changes


UNKNOWN = dict.fromkeys(("shape", "spacing", "affine", "value_range", "tilt_degrees"))
EMPTY = {**UNKNOWN, "slices_found": 0, "slices_used": 0, "indices": [], "kind": "", "orientation": "", "decoder": ""}
RECORDS = [
    record("fine"),
    record("doubtful", warnings=["missing_slices: 2 of 80", "few_slices: 24 slices"]),
    record("broken", status="refused", reason="not a\nDICOM file", **EMPTY),
    record("localizer", status="skipped", reason="a localizer", **EMPTY),
    record("folder", kind="slices", spacing=None, affine=None, warnings=["few_slices: 24 slices"]),
]
