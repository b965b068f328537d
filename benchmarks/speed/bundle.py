"""The bundle's own parts, built from its configs, so that what is timed is what runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser
from torch import nn

from .harness import ROOT

BUNDLE = ROOT / "bundles" / "fair_lung_ct"
CONFIGS = BUNDLE / "configs"
SETTINGS = {"class_names": ["adenocarcinoma", "squamous_cell", "covid19", "normal"]}


def parts(*names: str, config: str = "train.yaml", **settings: Any) -> list[Any]:
    """Entries of a config, resolved, under changed settings."""
    parser = ConfigParser()
    parser.read_config(str(CONFIGS / config))
    for name, value in settings.items():
        parser[name] = value
    return [parser.get_parsed_content(name) for name in names]


def network(channels_last: bool = False, device: torch.device | str = "cpu") -> nn.Module:
    """The bundle's network with random weights, always the same."""
    from fairlung.pipeline.networks.r3d18 import R3D18Classifier

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        built = R3D18Classifier(num_classes=len(SETTINGS["class_names"]))
        # a network whose batch normalisation has seen something: else all activations of a random one explode
        for module in built.modules():
            if isinstance(module, nn.BatchNorm3d):
                nn.init.uniform_(module.running_mean, -0.1, 0.1)
                nn.init.uniform_(module.running_var, 0.5, 1.5)
    kind = torch.channels_last_3d if channels_last else torch.contiguous_format
    return built.to(device, memory_format=kind)


def loader(fast_decode: bool = False) -> Any:
    """``LoadScan`` as the bundle sets it up."""
    from fairlung.transforms import LoadScan, SampleSlices, TrimSlices

    return LoadScan(select=[TrimSlices(0.1), SampleSlices(64)], size=256, fast_decode=fast_decode)


def run_config(config: str | list[str], **overrides: Any) -> Any:
    """A workflow of the bundle, not yet initialised."""
    from monai.bundle import ConfigWorkflow

    files = [config] if isinstance(config, str) else config
    return ConfigWorkflow(
        config_file=[str(CONFIGS / name) for name in files],
        workflow_type="train" if files[0].startswith("train") else "inference",
        logging_file=False,
        bundle_root=str(BUNDLE),
        **overrides,
    )


def checkpoint(path: Path, net: nn.Module, **changed: Any) -> Path:
    """A checkpoint of a network under the bundle's settings."""
    import yaml

    from fairlung.pipeline.networks.checkpoint import MODEL_SETTINGS

    config = yaml.safe_load((CONFIGS / "train.yaml").read_text())
    settings = {name: config[name] for name in MODEL_SETTINGS} | {"group_names": ["male", "female"]}
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"model": net.state_dict(), "settings": {**settings, **changed, "network": type(net).__name__}}, path)
    return path
