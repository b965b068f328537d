"""What an import is to find in place of a package, or not to find at all."""

import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from types import ModuleType

# of MONAI's optional packages, all of which it imports where they are installed, those that inference does not use
NOT_INFERRED_WITH = ("matplotlib", "mlflow", "skimage", "sklearn")
# and those without which our own bundle reads scans
NOT_READ_WITH = (
    *NOT_INFERRED_WITH, "ignite", "itk", "jsonschema", "pandas", "requests", "scipy", "torchvision",
)  # fmt: skip


@contextmanager
def standing_in(modules: Mapping[str, ModuleType | None]) -> Iterator[None]:
    """Within it, what is imported finds ``modules`` by their names; None: nothing of that name."""
    here = {name: sys.modules.get(name) for name in modules}
    sys.modules.update(modules)  # type: ignore[arg-type]  # None: as if it were not there
    try:
        yield
    finally:
        for name, module in here.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


def absent(*packages: str) -> AbstractContextManager[None]:
    """Within it, what is imported takes packages for not installed, also those that are imported already.

    Example:
        >>> with absent("json"):
        ...     try:
        ...         import json
        ...     except ImportError:
        ...         print("no json")
        no json
    """
    return standing_in(dict.fromkeys(packages))
