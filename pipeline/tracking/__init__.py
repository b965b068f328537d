"""MLflow, imported when it is used: runs, the journal that outlives its server, registered models."""

import lazy_loader

RUN_NAMES = ["RunTracker", "TrackEvaluation", "TrackTraining"]
NAMES = {"registry": ["register_evaluation", "require_tracking"], "run": RUN_NAMES}
__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs=NAMES)
