"""Batches of losses, and groups of them, for the tests of the objective."""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from torch import Tensor

COUNTS = {"a": 250, "g": 84, "covid": 200, "normal": 200}


alphas = st.floats(0.05, 1.0)


# few distinct values, so that ties happen
losses_of_groups = st.lists(st.one_of(st.floats(0, 20), st.integers(0, 4).map(float)), min_size=1, max_size=7).map(
    lambda values: torch.tensor(values, dtype=torch.float64)
)


@st.composite
def batches(draw: st.DrawFn, lowest_group: int = -1) -> tuple[Tensor, Tensor]:
    """Losses and group ids of a batch."""
    size = draw(st.integers(1, 12))
    losses = draw(st.lists(st.floats(0, 20), min_size=size, max_size=size))
    group = draw(st.lists(st.integers(lowest_group, 4), min_size=size, max_size=size))
    return torch.tensor(losses, dtype=torch.float64), torch.tensor(group)


def close(actual: Tensor | float, expected: object, tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(
        torch.as_tensor(actual, dtype=torch.float64),
        torch.as_tensor(expected, dtype=torch.float64),
        rtol=tolerance,
        atol=tolerance,
    )


def batch(seed: int = 0, size: int = 8, groups: int = 2, classes: int = 4) -> tuple[Tensor, dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(size, classes, generator=generator, dtype=torch.float64)
    label = torch.randint(classes, (size,), generator=generator)
    group = torch.randint(-1, groups, (size,), generator=generator)
    return logits.requires_grad_(), {"label": label, "group": group}
