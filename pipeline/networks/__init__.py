"""Networks and their checkpoints."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "checkpoint": ["ModelSettings", "model_settings", "require_checkpoint"],
        "cnn_rnn": ["CNNRNNClassifier", "RACNet"],
        "ct_resnet": ["CTResNet152"],
        "disentangled": ["Disentangled"],
        "ensemble": ["ensemble_of"],
        "frozen": ["FrozenBody", "FrozenHead"],
        "i3d": ["I3D"],
        "precision": ["AmpInferer"],
        "r3d18": ["R3D18Classifier"],
        "resnest": ["ResNeSt50"],
        "site_head": ["SiteHead"],
        "spectrum": ["WithSpectrum"],
        "train_layers": ["train_only", "trained_parameters"],
    },
)
