"""Data sets: the cohort, its groups and folds, cached volumes, the order in which scans are drawn."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "archives": ["scan_roots"],
        "augmentation": ["to_unit_range"],
        "cohort": ["load_cohort"],
        "dataset": [
            "NewScanDataset", "ScanDataset", "center_crop", "default_num_workers", "pad_slices", "read_scans",
            "scan_finder", "start_method", "volume_transforms",
        ],
        "pseudonyms": ["Pseudonyms"],
        "sampling": [
            "EpochSampler", "SeedEpochs", "class_counts", "group_counts", "source_counts", "training_items",
            "with_sources",
        ],
    },
)  # fmt: skip
