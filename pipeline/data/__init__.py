"""Data sets: the cohort, its groups and folds, cached volumes, the order in which scans are drawn."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "archives": ["scan_roots"],
        "cohort": ["load_cohort"],
        "dataset": ["NewScanDataset", "ScanDataset", "default_num_workers", "read_scans", "scan_finder"],
        "preprocessing": ["center_crop", "pad_slices", "to_unit_range", "volume_transforms"],
        "sampling": ["EpochSampler", "SeedEpochs", "class_counts", "training_items"],
    },
)
