"""fairlung.transforms: reading chest CT scans and choosing their slices, as MONAI transforms.

Each name is imported when it is first used: listing scans needs neither torch nor MONAI.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "discovery": ["find_scans"],
        "grey_levels": ["RandBrightnessd", "to_grey_levels"],
        "load_scan": ["LoadScan", "LoadScand", "read_scan"],
        "scan": ["ScanError", "ScanSource"],
        "slices": [
            "FirstSlices", "FirstSlicesd", "SampleSlices", "SampleSlicesd", "SliceSelector", "TrimSlices",
            "TrimSlicesd",
        ],
    },
)  # fmt: skip
