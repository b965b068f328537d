"""Pictures of what an answer looked at."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={"error_gallery": ["write_error_gallery"], "overlays": ["OverlayWriter"]},
)
