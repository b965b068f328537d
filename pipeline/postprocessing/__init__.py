"""Probabilities changed after training: temperature, class offsets, class priors."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs={"prevalence": ["deployment_prior"]})
