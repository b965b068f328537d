"""Reports, model cards and figures of evaluations and comparisons."""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "evaluation_report": ["report_evaluation"],
        "evaluation_summary": ["write_evaluation"],
        "intake_page": ["IntakeCollector", "collect"],
    },
)
