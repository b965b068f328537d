"""Networks and their checkpoints."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "checkpoint": ["ModelSettings", "model_settings", "require_checkpoint"],
        "cnn_rnn": ["CNNRNNClassifier"],
        "ensemble": ["ensemble_of"],
        "r3d18": ["R3D18Classifier"],
        "site_head": ["SiteHead"],
    },
)
