"""Packages that an import is not to find."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

# of MONAI's optional packages, all of which it imports where they are installed, those that inference does not use
NOT_INFERRED_WITH = ("matplotlib", "mlflow", "skimage", "sklearn")


@contextmanager
def absent(*packages: str) -> Iterator[None]:
    """Within it, what is imported takes packages for not installed, also those that are imported already.

    Example:
        >>> with absent("json"):
        ...     try:
        ...         import json
        ...     except ImportError:
        ...         print("no json")
        no json
    """
    here = {name: sys.modules.get(name) for name in packages}
    sys.modules.update(dict.fromkeys(packages))  # type: ignore[arg-type]  # None: as if it were not there
    try:
        yield
    finally:
        for name, module in here.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module
