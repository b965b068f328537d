"""Reports, model cards and figures of evaluations and comparisons."""

import lazy_loader

EXPORTS = {
    "evaluation_report": ["report_evaluation"],
    "evidence": ["write_evaluation"],
    "intake_page": ["IntakeCollector", "collect"],
}
__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs=EXPORTS)
