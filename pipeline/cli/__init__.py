"""The console program ``fairlung``."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__, submod_attrs={"data_commands": ["report_intake"], "evaluation_commands": ["show_results"]}
)
