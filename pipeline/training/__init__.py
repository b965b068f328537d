"""What MONAI's trainer needs beyond stock: groups, steps over several batches, flat minima, resuming."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "accumulation": ["MicroBatchInferer", "whole_batch"],
        "bad_steps": ["BestSaver", "SkipBadSteps"],
        "frozen_features": ["FeatureDataset"],
        "group_loss": ["GroupLoss", "PrepareGroupBatch"],
        "history": ["EpochLog", "MetricHistory"],
        "output_dir": ["begin", "check_run", "publish"],
        "record": ["TrainingRecord"],
        "sharpness": ["SharpnessAware"],
        "resume": ["ResumePoint", "end", "made_for", "outlive_sigterm", "train"],
    },
)
