"""fairlung.pipeline: from a cohort to a judged and published classifier, room by room (docs/architecture.md).

Importing it loads nothing heavy: each name is imported when it is first used.
"""

import lazy_loader

from .common.moved import find_moved_modules

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=[
        "cli", "common", "comparison", "data", "evaluation", "explain", "inference", "losses", "networks", "phantoms",
        "postprocessing", "reports", "shortcuts", "studies", "tracking", "training",
    ],
    submod_attrs={
        "data.cohort": ["load_cohort"],
        "evaluation.audit": ["audit"],
        "comparison.compare": ["compare"],
        "evaluation.metrics": ["GroupConfusion"],
        "evaluation.predictions": ["load_predictions"],
        "inference.classifier": ["Classifier", "load_model"],
        "losses.two_level": ["FairLACVaRLoss", "TwoLevelLoss"],
        "networks.r3d18": ["R3D18Classifier"],
    },
)  # fmt: skip

find_moved_modules()
