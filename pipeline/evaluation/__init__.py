"""What the numbers can bear: metrics of groups, intervals, tests, verdicts."""

import lazy_loader

EXPORTS = {"audit": ["write_audit"], "metrics": ["GroupConfusion"]}
__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs=EXPORTS)
