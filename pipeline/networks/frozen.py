"""A network in two parts: the body, which stays as its weights have it, and the head, which alone is trained."""

from __future__ import annotations

import copy
import hashlib
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fairlung.transforms.checks import check_setting, check_whole

from ..common.files import replacing
from .catalogue import CATALOGUE, OF_NETWORK
from .checkpoint import NETWORK
from .r3d18 import R3D18Classifier
from .train_layers import head_layers

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_OF_ALL = frozenset(inspect.signature(R3D18Classifier).parameters)  # what all networks of ours are given


def build_network(config: Mapping[str, Any], seed: int, **initial_weights: Any) -> nn.Module:
    """The ``network_def`` of a running config, built anew on the CPU; what is random in it is of ``seed``."""
    from monai.bundle import ConfigParser

    parser = ConfigParser({**config, "initial_weights": initial_weights})
    parser.parse()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return parser.get_parsed_content("network_def")


class FrozenBody:
    """The body of a config's ``network_def``: features [N, D] of volumes. It is built when the first are asked for.

    Args:
        config: the running config.
        pretrained: the body has published weights, else random ones of ``seed``.
        weights: their name, or a file; None is the network's own.
        seed: of what is random in the body.
        precision: ``float32``, or ``bfloat16``: several times faster where the processor or the GPU computes in it.
        device: that computes the features.
    """

    def __init__(
        self, config: Mapping[str, Any], pretrained: bool, weights: str | None = None, seed: int = 0,
        precision: str = "float32", device: str | torch.device = "cpu",
    ) -> None:  # fmt: skip
        check_whole("body_seed", seed, least=0)
        check_setting("feature_precision", precision, precision in PRECISIONS, f"one of {', '.join(PRECISIONS)}")
        self.config, self.pretrained, self.weights, self.seed = dict(config), pretrained, weights, seed
        self.precision, self.device = precision, torch.device(device)
        self.name = str(self.config["network_def"].get("_target_", "")).rpartition(".")[2]
        self._body: nn.Module | None = None
        # once: of weights in a file it takes reading them all, and the head and both data sets ask for it
        self.weights_name = self._weights_name()

    def network(self) -> nn.Module:
        """The whole network, its head untrained."""
        return build_network(self.config, self.seed, pretrained=self.pretrained, weights=self.weights)

    def head(self) -> tuple[str, nn.Module]:
        """The name of the head's module in the network, and a new one, drawn from torch's random state."""
        with torch.device("meta"):  # only its shape is needed
            network = build_network(self.config, self.seed, pretrained=False, weights=None)
        name = head_name(network)
        head = network.get_submodule(name).to_empty(device="cpu")
        for layer in head.modules():
            if isinstance(layer, nn.Linear):
                layer.reset_parameters()
            elif [*layer.parameters(recurse=False), *layer.buffers(recurse=False)]:
                raise ValueError(f"frozen features: the head of {self.name} has a {type(layer).__name__}, not a Linear")
        return name, head

    def _weights_name(self) -> str:
        """Which weights the body has: equal for equal bodies, other ones for others."""
        section = self.config["network_def"]
        if self.name not in OF_NETWORK or section.keys() - {"_target_"} - _OF_ALL:  # it may load what it likes
            body = self._built()
            digest = hashlib.sha256(repr(body).encode())
            for name, value in body.state_dict().items():
                digest.update(name.encode() + value.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
            return f"weights {digest.hexdigest()[:12]}"
        if not self.pretrained:
            return f"random weights of seed {self.seed}, torch {torch.__version__}"
        known = OF_NETWORK[self.name] if self.weights is None else CATALOGUE.get(self.weights)
        if known is not None:
            return f"{known.name} {known.sha256[:12]}"
        file = Path(str(self.weights))
        if not file.is_file():  # the network says what is wrong with it
            self.network()
        with file.open("rb") as opened:
            return f"weights {hashlib.file_digest(opened, 'sha256').hexdigest()[:12]}"

    def __call__(self, image: Tensor) -> Tensor:
        """Features [N, D] in float32 on the CPU of volumes [N, 1, D, H, W] in [0, 1]."""
        body = self._built()
        with (
            torch.inference_mode(),
            torch.autocast(self.device.type, PRECISIONS[self.precision], enabled=self.precision != "float32"),
        ):
            features = body(image.to(self.device, memory_format=torch.channels_last_3d))
        if features.ndim != 2 or not torch.isfinite(features).all():
            shape = tuple(features.shape)
            raise ValueError(f"{self.name} gave features of shape {shape}, or some that are not finite; [N, D] is due")
        return features.float().cpu()

    def _built(self) -> nn.Module:
        if self._body is None:
            network = self.network()
            network.set_submodule(head_name(network), nn.Identity())
            self._body = network.to(self.device).to(memory_format=torch.channels_last_3d).eval()
        return self._body


def head_name(network: nn.Module) -> str:
    """The module of a network's head; ValueError where it has several, or none that is a Linear at the end."""
    names = head_layers(network)
    if len(names) > 1:
        raise ValueError(f"frozen features need a head of one module; {type(network).__name__} has {', '.join(names)}")
    return names[0]


class FrozenHead(nn.Module):
    """Logits [N, C] of features [N, D]: the head of a network, as a network of its own.

    Its checkpoints hold the head alone, and their settings name the body and its weights (``described``), so that a
    head never answers for another body.
    """

    on_frozen_features = True  # what train_layers looks at

    def __init__(self, body: FrozenBody) -> None:
        super().__init__()
        self.body = body
        self.name_in_network, self.head = body.head()
        self.features = next(layer.in_features for layer in self.head.modules() if isinstance(layer, nn.Linear))
        self.described = f"head of {body.name} on frozen features, {body.weights_name}"

    def forward(self, features: Tensor) -> Tensor:
        if features.ndim != 2 or features.shape[1] != self.features:
            shape = tuple(features.shape)
            raise ValueError(f"the head of {self.body.name} takes features [N, {self.features}], got {shape}")
        return self.head(features)

    def whole(self) -> nn.Module:
        """The network of body and head: logits of volumes."""
        network = self.body.network()
        network.set_submodule(self.name_in_network, copy.deepcopy(self.head))
        return network.to(self.body.device).train(self.training)


def whole_network(network: nn.Module) -> nn.Module:
    """The network itself; of a head on frozen features the body with it."""
    return network.whole() if isinstance(network, FrozenHead) else network


def write_whole(head: FrozenHead, checkpoint: str | Path, path: str | Path) -> Path:
    """Write a checkpoint of the whole network, body and head, of one of the head; returns its path."""
    content = torch.load(checkpoint, map_location="cpu", weights_only=True)
    trained = copy.deepcopy(head)
    trained.load_state_dict(content["model"])
    content |= {"model": trained.whole().cpu().state_dict()}
    content |= {"settings": {**content["settings"], NETWORK: head.body.name}}
    with replacing(Path(path)) as part:
        torch.save(content, part)
    return Path(path)
