"""Sharpness-aware minimisation (SAM): a step's gradient is taken where the loss around the weights is highest."""

from contextlib import AbstractContextManager, nullcontext

import torch
from ignite.engine import Engine
from monai.engines import SupervisedTrainer
from monai.utils.enums import CommonKeys
from torch import Tensor, nn

from fairlung.transforms.checks import check_setting

from .bad_steps import SkipBadSteps, step_parameters


class SharpnessAware(SkipBadSteps):
    r"""SAM (Foret et al. 2021, Alg. 1) for MONAI's stock trainer and any optimiser, in the place of SkipBadSteps.

    With g the gradient of a step's loss L at the weights w, the optimiser steps from w with

    .. math:: \nabla L(w + \rho \, g / \lVert g \rVert_2)

    the norm being over all parameters that have a gradient. The second pass sees the same batch, dropout masks, draws
    of the loss and, with :class:`~.MicroBatchInferer`, micro-batches. The loss is the same function of the weights: it
    sets out from what it remembered before the step, and what it and the network's running statistics remember after
    the step is of the first pass alone, so no batch counts twice. The step's outputs and loss, which metrics see, are
    those at w. As g is that of the whole batch of all processes, so is the climb (the authors' own code lets each
    device climb by itself, their m-sharpness). A gradient scaler's factor drops out of the direction.

    The optimiser's state is its own, nothing is added to a resume point, and ``rho`` 0 is the optimiser without SAM to
    the bit. Decay of the weights is the optimiser's, and takes no part in the climb.

    Args:
        rho: at least 0.
    """

    def __init__(self, loss: nn.Module, evaluator: Engine | None = None, most: int = 10, rho: float = 0.05) -> None:
        super().__init__(loss, evaluator, most)
        check_setting("rho", rho, 0 <= rho < float("inf"), "in [0, inf)")
        self.rho = float(rho)
        self._random: list[Tensor] = []  # states of the generators before the step, the CPU's first

    def _remember(self, engine: SupervisedTrainer) -> None:
        super()._remember(engine)
        self._random = [torch.get_rng_state(), *(torch.cuda.get_rng_state(device) for device in _gpu(engine))]

    def _judge(self, engine: SupervisedTrainer) -> None:
        self._differentiate_above(engine)
        super()._judge(engine)  # a climb or a second pass that is not finite shows in the gradient

    def _differentiate_above(self, engine: SupervisedTrainer) -> None:
        """Replace the gradients at the weights by those at the point that the first ones lead to."""
        moved = [(parameter, parameter.grad) for parameter in step_parameters(engine) if parameter.grad is not None]
        parameters, gradients = [parameter for parameter, _ in moved], [gradient for _, gradient in moved]
        weights = [parameter.detach().clone() for parameter in parameters]
        buffers = [buffer for buffer, _ in self._before]
        remembered = [buffer.detach().clone() for buffer in buffers]
        norm = torch.nn.utils.get_total_norm(gradients)
        with torch.no_grad():
            length = self.rho / norm.clamp(min=torch.finfo(norm.dtype).tiny)  # without a gradient there is no climb
            for parameter, gradient in moved:
                parameter.add_(gradient * length)
            for buffer, before in self._before:
                buffer.copy_(before)
        engine.optimizer.zero_grad(set_to_none=engine.optim_set_to_none)
        with torch.random.fork_rng(devices=_gpu(engine)):
            torch.set_rng_state(self._random[0])
            for device, state in zip(_gpu(engine), self._random[1:], strict=True):
                torch.cuda.set_rng_state(state, device)
            self._backward(engine)
        with torch.no_grad():
            for tensor, value in zip((*parameters, *buffers), (*weights, *remembered), strict=True):
                tensor.copy_(value)

    def _backward(self, engine: SupervisedTrainer) -> None:
        """What the trainer does for the gradient of a step."""
        scaled = engine.amp and engine.scaler is not None
        inputs, target = engine.state.output[CommonKeys.IMAGE], engine.state.output[CommonKeys.LABEL]
        autocast: AbstractContextManager = torch.autocast("cuda", **engine.amp_kwargs) if scaled else nullcontext()
        with autocast:
            loss = engine.loss_function(engine.inferer(inputs, engine.network), target).mean()
        (engine.scaler.scale(loss) if scaled else loss).backward()


def _gpu(engine: SupervisedTrainer) -> list[torch.device]:
    device = torch.device(engine.state.device)
    return [device] if device.type == "cuda" else []
