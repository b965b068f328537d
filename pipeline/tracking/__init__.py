"""MLflow: runs, the journal that outlives its server, registered models."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={"registry": ["register_evaluation", "require_tracking"],
                  "run": ["RunTracker", "TrackEvaluation", "TrackTraining"]},
)  # fmt: skip
