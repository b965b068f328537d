"""What the numbers can bear: metrics of groups, intervals, tests, verdicts."""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__, submod_attrs={"audit": ["write_audit"], "metrics": ["GroupConfusion"], "resampling": ["check_resampling"]}
)
