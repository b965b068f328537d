"""fairlung.transforms: reading chest CT scans and choosing their slices, as MONAI transforms."""

from __future__ import annotations

from .load_scan import LoadScan, LoadScand, ScanError, find_scans
from .slices import SampleSlices, SampleSlicesd, SliceSelector, TrimSlices, TrimSlicesd

__all__ = [
    "LoadScan",
    "LoadScand",
    "SampleSlices",
    "SampleSlicesd",
    "ScanError",
    "SliceSelector",
    "TrimSlices",
    "TrimSlicesd",
    "find_scans",
]
