"""Pictures of what an answer looked at."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={"error_gallery": ["check_error_images", "write_error_gallery"], "overlays": ["OverlayWriter"]},
)
