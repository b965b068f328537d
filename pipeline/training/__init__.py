"""What MONAI's trainer needs beyond stock: groups, steps over several batches, resuming."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "accumulation": ["MicroBatchInferer", "whole_batch"],
        "group_loss": ["GroupLoss", "PrepareGroupBatch"],
        "history": ["EpochLog", "MetricHistory"],
        "output_dir": ["begin", "check_run", "end", "publish"],
        "resume": ["ResumePoint", "made_for"],
    },
)
