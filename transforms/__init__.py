"""fairlung.transforms: reading chest CT scans and choosing their slices, as MONAI transforms."""

from __future__ import annotations

from .load_scan import LoadScan, LoadScand, ScanError, find_scans
from .slices import FirstSlices, FirstSlicesd, SampleSlices, SampleSlicesd, SliceSelector, TrimSlices, TrimSlicesd

__all__ = [
    "FirstSlices",
    "FirstSlicesd",
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
