"""Features in two halves, of the classes and of the groups, in training only: what is saved is the network itself."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fairlung.transforms.checks import check_setting, check_whole

from .class_layer import class_layer, head_beside, logits_and_features


class Disentangled(nn.Module):
    """A network whose features are one half the classes', one half the groups'; for :class:`~.losses.DisentangledLoss`.

    The features are what the last linear layer gets. That layer sees the first half alone (of an odd number, the
    smaller one), and a linear head reads the group from the other. So the layer's weights on the second half, which
    are set to 0 here, get no gradient and stay 0: the network answers by itself as it does in training, and its
    checkpoint needs nothing of this.

    In training the output is [N, C + G + F], class logits, group logits and features, one tensor for micro-batches,
    processes and mixed precision; in evaluation it is the network's own, [N, C]. With ``gamma`` and ``contrast`` 0 the
    network is left as it is, and the training is the network's, to the bit.

    Args:
        network: its last ``nn.Linear`` gives the class logits, [N, F] to [N, C], F at least 2.
        num_classes: C.
        num_groups: G, at least 2.
        gamma: weight of the group loss, at least 0.
        contrast: weight of the contrastive loss, at least 0.
    """

    def __init__(
        self, network: nn.Module, num_classes: int, num_groups: int, gamma: float = 0.1, contrast: float = 0.1
    ) -> None:
        super().__init__()
        for name, value in (("gamma", gamma), ("contrast", contrast)):
            check_setting(name, value, 0 <= value < float("inf"), "in [0, inf)")
        check_whole("num_groups", num_groups, least=2)
        last = class_layer(network, num_classes, "features in two halves")
        check_whole("features of the last layer", last.in_features, least=2)
        self.network = network
        self.head: nn.Linear | None = None
        self._of_classes = last.in_features // 2
        if gamma > 0 or contrast > 0:
            self.head = head_beside(last, last.in_features - self._of_classes, num_groups)
            with torch.no_grad():
                last.weight[:, self._of_classes :] = 0
        self._last = (last,)  # in a tuple: it is a part of the network, and of the state dict, already

    def forward(self, image: Tensor) -> Tensor:
        if self.head is None or not self.training:
            return self.network(image)
        logits, features = logits_and_features(self.network, self._last[0], image, self._first_half)
        return torch.cat([logits, self.head(features[:, self._of_classes :]), features], dim=1)

    def _first_half(self, features: Tensor) -> Tensor:
        return F.pad(features[:, : self._of_classes], (0, features.shape[1] - self._of_classes))
