"""A batch larger than the memory: one optimiser step over several micro-batches, weighed as one batch."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from monai.inferers import Inferer
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from fairlung.transforms.checks import check_whole


def whole_batch(batch_size: int, accumulate: int) -> int:
    """Scans of an optimiser step (of one process): ``accumulate`` micro-batches of ``batch_size``."""
    check_whole("batch_size", batch_size, least=1)
    check_whole("accumulate", accumulate, least=1)
    return batch_size * accumulate


def in_micro_batches(network: nn.Module, image: Tensor, batch_size: int) -> Tensor:
    """The network's outputs of a batch, with the memory of a micro-batch: activations are made twice, not kept.

    Adding up gradients batch by batch cannot train a group loss: CVaR's weights are those of the whole batch, and are
    known when its last sample is. So there are two passes, as in GradCache (Gao et al. 2021), here by PyTorch's
    activation checkpointing: the first gives the outputs of all micro-batches, from which any loss is computed as
    usual; ``loss.backward()`` runs the second, which computes each micro-batch again, with the same dropout masks, and
    passes back the gradient that the loss has given its outputs. It costs one more forward pass a step.

    The gradient is that of the whole batch in one piece. Batch normalisation is the exception: in training a
    micro-batch is normalised by its own statistics, and the running ones move once a micro-batch (the second pass does
    not move them again).

    Args:
        network: maps [n, ...] to [n, ...], each sample by itself (but for batch normalisation). A
            ``DistributedDataParallel`` sees one forward pass, and averages the gradients once.
        batch_size: samples of a micro-batch; the last one may have fewer.
    """
    if len(image) <= batch_size or not torch.is_grad_enabled():
        return network(image)
    if not isinstance(network, DistributedDataParallel):
        return _checkpointed(network, network, image, batch_size)
    # its own forward pass prepares the averaging of gradients, so it has to be called once, with the whole batch
    module = network.module
    plain = module.forward
    module.forward = lambda whole: _checkpointed(module, plain, whole, batch_size)
    try:
        return network(image)
    finally:
        del module.forward


def _checkpointed(network: nn.Module, forward: Callable[[Tensor], Tensor], image: Tensor, batch_size: int) -> Tensor:
    def contexts() -> tuple[AbstractContextManager, AbstractContextManager]:
        return nullcontext(), statistics_kept(network)

    parts = image.split(batch_size)
    return torch.cat([checkpoint(forward, part, use_reentrant=False, context_fn=contexts) for part in parts])


@contextmanager
def statistics_kept(network: nn.Module) -> Iterator[None]:
    """Batch normalisation without an effect on its running statistics; its outputs are the same."""
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm)]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:  # as checkpointing wants it, the statistics are still passed on; they move by nothing
        norm.momentum = 0.0
        norm.num_batches_tracked = None if norm.num_batches_tracked is None else norm.num_batches_tracked.clone()
    try:
        yield
    finally:
        for norm, (momentum, batches) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, batches


class MicroBatchInferer(Inferer):
    """The inferer of MONAI's stock ``SupervisedTrainer`` that goes :func:`in_micro_batches`.

    The trainer's batch is the whole one: loader and sampler are given :func:`whole_batch`. So every group of a batch
    (``every_group``), group losses and what a loss remembers are those of the optimiser step, and so is an iteration.
    """

    def __init__(self, batch_size: int) -> None:
        super().__init__()
        self.batch_size = whole_batch(batch_size, 1)

    def __call__(self, inputs: Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if args or kwargs or not isinstance(network, nn.Module):
            raise TypeError("MicroBatchInferer calls a module with the images alone")
        return in_micro_batches(network, inputs, self.batch_size)
