"""Data sets: the cohort, its groups and folds, cached volumes, the order in which scans are drawn."""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "archives": ["scan_roots"],
        "cohort": ["load_cohort", "warn_of_small_cells"],
        "dataset": ["ScanDataset", "default_num_workers"],
        "new_scans": ["NewScanDataset"],
        "sampling": ["EpochSampler", "SeedEpochs", "balanced_class_counts", "order_digest"],
    },
)
