"""A second head that names the source of a scan, in training only: what is saved and answers is the network itself."""

import torch
from torch import Tensor, nn

from fairlung.transforms.checks import check_setting, check_whole

from .class_layer import class_layer, head_beside, logits_and_features


class ReversedGradient(torch.autograd.Function):
    """The identity, whose gradient is the negative one (Ganin and Lempitsky 2015, Eq. 7 and 8, lambda 1)."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, features: Tensor) -> Tensor:
        return features.view_as(features)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return -gradient


class SiteHead(nn.Module):
    """A network and a linear head on what its last linear layer gets; for :class:`~.losses.SiteHeadLoss`.

    In training the output is [N, C + S], the class logits and then those of the sources, so that it is one tensor for
    micro-batches, processes and mixed precision; in evaluation it is the network's own, [N, C]. With ``gamma`` 0 there
    is no head, and the training is that of the network, to the bit.

    Args:
        network: its last ``nn.Linear`` gives the class logits, [N, features] to [N, C].
        num_classes: C.
        num_sources: S, at least 2.
        gamma: weight of the source loss, at least 0.
        reverse: the head learns to name the source, and the network to keep it from that, by a reversed gradient.
    """

    def __init__(
        self, network: nn.Module, num_classes: int, num_sources: int, gamma: float = 0.5, reverse: bool = False
    ) -> None:
        super().__init__()
        check_setting("gamma", gamma, 0 <= gamma < float("inf"), "in [0, inf)")
        check_whole("num_sources", num_sources, least=2)
        last = class_layer(network, num_classes, "a site head")
        self.network, self.reverse = network, reverse
        self.head: nn.Linear | None = None
        if gamma > 0:
            self.head = head_beside(last, last.in_features, num_sources)
        self._last = (last,)  # in a tuple: it is a part of the network, and of the state dict, already

    def forward(self, image: Tensor) -> Tensor:
        if self.head is None or not self.training:
            return self.network(image)
        logits, features = logits_and_features(self.network, self._last[0], image)
        return torch.cat([logits, self.head(ReversedGradient.apply(features) if self.reverse else features)], dim=1)
