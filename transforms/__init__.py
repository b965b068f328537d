"""fairlung.transforms: reading chest CT scans and choosing their slices, as MONAI transforms."""

from __future__ import annotations

from .discovery import find_scans
from .grey_levels import RandBrightnessd, to_grey_levels
from .load_scan import LoadScan, LoadScand
from .scan import ScanError, ScanSource
from .slices import FirstSlices, FirstSlicesd, SampleSlices, SampleSlicesd, SliceSelector, TrimSlices, TrimSlicesd

__all__ = [
    "FirstSlices",
    "FirstSlicesd",
    "LoadScan",
    "LoadScand",
    "RandBrightnessd",
    "SampleSlices",
    "SampleSlicesd",
    "ScanError",
    "ScanSource",
    "SliceSelector",
    "TrimSlices",
    "TrimSlicesd",
    "find_scans",
    "to_grey_levels",
]
