"""What every room may use: errors, files, names, settings of the running config, several processes."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "claims": ["claim", "release"],
        "config": [
            "check_settings", "resolved_config", "resolved_settings", "run_name", "training_config", "write_settings",
        ],
        "distributed": ["is_primary", "local_device", "of_first_here", "start_processes"],
        "run_folder": ["is_resumed", "resume_point"],
        "tables": ["write_frame"],
        "volumes": ["PADDING", "unit_range"],
    },
)  # fmt: skip
