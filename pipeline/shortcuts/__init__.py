"""What a network knows beside the disease: its features, what they tell, scans that look like one patient's."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__, submod_attrs={"duplicates": ["DuplicateSearch"], "features": ["FeatureWriter", "UntrainedNetwork"]}
)
