"""The group level beyond the paper's: nested CVaR, group DRO, and what is remembered of earlier batches."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linprog
from torch import Tensor

from fairlung.pipeline.losses.aggregation import (
    Aggregation,
    GroupCVaR,
    GroupDRO,
    GroupTreeCVaR,
    HierarchicalCVaR,
    KLGroupDRO,
    MeanAggregation,
    RunningGroupLoss,
)
from fairlung.pipeline.losses.cvar import cvar_weights, group_means, group_sums, nested_cvar_weights
from fairlung.pipeline.losses.sample_losses import CrossEntropy, LogitAdjustedCrossEntropy
from fairlung.pipeline.losses.two_level import TwoLevelLoss

GROUPS = 5
# every aggregation that makes its weights from groups; the parents put groups 0, 1, 4 together and 2, 3
AGGREGATIONS: dict[str, Callable[[], Aggregation]] = {
    "cvar": lambda: GroupCVaR(0.6),
    "worst group": lambda: GroupCVaR(1 / GROUPS),
    "running": lambda: GroupCVaR(0.6, estimator="running", num_groups=GROUPS),
    "running, published": lambda: GroupCVaR(0.6, "published", estimator="running", num_groups=GROUPS),
    "dro": lambda: GroupDRO(GROUPS, eta=0.3),
    "kl": lambda: KLGroupDRO(GROUPS, eta=0.7),
    "hierarchical": lambda: HierarchicalCVaR(0.6, 0.7),
    "tree": lambda: GroupTreeCVaR([0, 0, 7, 7, 0], 0.6, 0.7),
}
REMEMBERING = ["running", "running, published", "dro", "kl"]
alphas = st.floats(0.05, 1.0)


@st.composite
def batches(draw: st.DrawFn, lowest_group: int = -1) -> tuple[Tensor, Tensor]:
    """Losses, some of them equal, and group ids of a batch."""
    size = draw(st.integers(1, 12))
    value = st.one_of(st.floats(0, 20), st.integers(0, 3).map(float))
    losses = draw(st.lists(value, min_size=size, max_size=size))
    group = draw(st.lists(st.integers(lowest_group, GROUPS - 1), min_size=size, max_size=size))
    return torch.tensor(losses, dtype=torch.float64), torch.tensor(group)


def close(actual: Tensor | float, expected: object, tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(
        torch.as_tensor(actual, dtype=torch.float64).detach(),
        torch.as_tensor(expected, dtype=torch.float64).detach(),
        rtol=tolerance,
        atol=tolerance,
    )


def stream(steps: int, seed: int = 0, size: int = 6, lowest_group: int = 0) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        (
            3 * torch.rand(size, generator=generator, dtype=torch.float64),
            torch.randint(lowest_group, GROUPS, (size,), generator=generator),
        )
        for _ in range(steps)
    ]


def state_of(module: torch.nn.Module) -> dict[str, Tensor]:
    return copy.deepcopy(module.state_dict())


def same_state(module: torch.nn.Module, state: dict[str, Tensor]) -> bool:
    return all(torch.equal(value, state[name]) for name, value in module.state_dict().items())


# --- nested CVaR -----------------------------------------------------------------------------------------------------


def nested_programme(losses: np.ndarray, parent: np.ndarray, alpha: float, alpha_inner: float) -> float:
    """Nested CVaR as one linear programme in u_i = w_p(i) v_i and w_p."""
    parents = np.unique(parent)
    n, p = len(losses), len(parents)
    member = (parent[None, :] == parents[:, None]).astype(float)  # [P, N]
    # u_i <= w_p / (alpha_inner n_p)
    caps = np.hstack([np.eye(n), -(member / (alpha_inner * member.sum(1, keepdims=True))).T])
    sums = np.vstack([np.hstack([member, -np.eye(p)]), np.r_[np.zeros(n), np.ones(p)]])
    solution = linprog(
        np.r_[-losses, np.zeros(p)],
        A_ub=caps,
        b_ub=np.zeros(n),
        A_eq=sums,
        b_eq=np.r_[np.zeros(p), 1],
        bounds=[(0, None)] * n + [(0, 1 / (alpha * p))] * p,
    )
    assert solution.success
    return -solution.fun


@given(batches(lowest_group=0), alphas, alphas)
def test_nested_cvar_solves_the_linear_programme(
    sample: tuple[Tensor, Tensor], alpha: float, alpha_inner: float
) -> None:
    losses, parent = sample
    weights = nested_cvar_weights(losses, parent, alpha, alpha_inner)
    close(weights.sum(), 1.0)
    assert weights.min() >= 0
    close(weights @ losses, nested_programme(losses.numpy(), parent.numpy(), alpha, alpha_inner), 1e-7)


@given(batches(lowest_group=0), alphas, alphas)
def test_nested_cvar_is_the_cvar_of_cvars(sample: tuple[Tensor, Tensor], alpha: float, alpha_inner: float) -> None:
    losses, parent = sample
    inside = {p: cvar_weights(losses[parent == p], alpha_inner) for p in parent.unique().tolist()}
    of_parents = torch.stack([weights @ losses[parent == p] for p, weights in inside.items()])
    value = nested_cvar_weights(losses, parent, alpha, alpha_inner) @ losses
    close(value, cvar_weights(of_parents, alpha) @ of_parents)
    if len(inside) == 1:
        close(nested_cvar_weights(losses, parent, alpha, alpha_inner), cvar_weights(losses, alpha_inner))


@given(batches(), alphas)
def test_hierarchical_cvar_with_whole_groups_is_group_cvar(sample: tuple[Tensor, Tensor], alpha: float) -> None:
    close(HierarchicalCVaR(alpha, 1.0)(*sample), GroupCVaR(alpha)(*sample))


@given(batches(lowest_group=0), alphas)
def test_hierarchical_cvar_of_one_group_is_the_cvar_of_its_samples(sample: tuple[Tensor, Tensor], alpha: float) -> None:
    losses, _ = sample
    one = torch.zeros(len(losses), dtype=torch.long)
    close(HierarchicalCVaR(0.3, alpha).weights(losses, one), cvar_weights(losses, alpha))


@given(batches(), alphas, alphas)
def test_special_trees(sample: tuple[Tensor, Tensor], alpha: float, other: float) -> None:
    """Each group its own parent, all under one, and parents that are all of what counts."""
    close(GroupTreeCVaR(range(GROUPS), alpha, other)(*sample), GroupCVaR(alpha)(*sample))
    close(GroupTreeCVaR([3] * GROUPS, other, alpha)(*sample), GroupCVaR(alpha)(*sample))


def test_a_tree_by_hand() -> None:
    """Two parents: of the first the children lose 4 and 2, of the second 1; alpha .8 over both, .5 inside."""
    losses, group = torch.tensor([5.0, 3.0, 2.0, 1.0]), torch.tensor([0, 0, 1, 2])
    tree = GroupTreeCVaR([0, 0, 1], alpha=0.8, alpha_inner=0.5)
    close(tree.weights(losses, group), [0.625 / 2, 0.625 / 2, 0, 0.375], 1e-6)
    close(tree(losses, group), 0.625 * 4 + 0.375 * 1, 1e-6)
    # with the mean inside, the first parent loses 3
    close(GroupTreeCVaR([0, 0, 1], 0.8, 1.0)(losses, group), 0.625 * 3 + 0.375, 1e-6)


# --- group DRO -------------------------------------------------------------------------------------------------------


def test_group_dro_follows_the_algorithm() -> None:
    dro, weights = GroupDRO(GROUPS, eta=0.3), np.full(GROUPS, 1 / GROUPS)
    for losses, group in stream(30):
        means = np.array([losses[group == g].mean() if (group == g).any() else 0.0 for g in range(GROUPS)])
        weights = weights * np.exp(0.3 * means)
        weights /= weights.sum()
        close(dro(losses, group), weights @ means)
    close(dro.log_weights.exp(), weights)


def test_group_dro_ends_at_the_worst_group_and_comes_back() -> None:
    dro = GroupDRO(3, eta=0.5)
    group = torch.tensor([0, 1, 2])
    for _ in range(100):
        dro(torch.tensor([1.0, 3.0, 2.0]), group)
    close(dro.log_weights.exp(), [0, 1, 0], 1e-9)
    for _ in range(150):
        dro(torch.tensor([3.0, 1.0, 2.0]), group)
    close(dro.log_weights.exp(), [1, 0, 0], 1e-9)


# --- the running estimate --------------------------------------------------------------------------------------------


def test_the_average_is_the_weighted_mean_of_the_batches_with_the_group() -> None:
    running, momentum = RunningGroupLoss(GROUPS, 0.8), 0.8
    met: dict[int, list[float]] = {g: [] for g in range(GROUPS)}
    counts = np.zeros(GROUPS)
    for losses, group in stream(25, size=3, lowest_group=-1):
        running.update(losses, group)
        for g in met:
            counts[g] += int((group == g).sum())
            met[g] += [losses[group == g].mean().item()] if (group == g).any() else []
    expected = [np.average(v, weights=[momentum ** (len(v) - 1 - i) for i in range(len(v))]) for v in met.values()]
    close(running.losses, expected)
    close(running.shares, counts / counts.sum())


def test_groups_take_part_from_when_they_are_first_seen() -> None:
    running = RunningGroupLoss(3)
    assert not running.seen.any() and not running.losses.any() and not running.shares.any()
    running.update(torch.tensor([2.0, 4.0, 9.0]), torch.tensor([1, 1, -1]))
    assert running.seen.tolist() == [False, True, False]
    close(running.losses, [0, 3, 0])
    cvar = GroupCVaR(0.7, estimator="running", num_groups=3)
    losses = torch.tensor([2.0, 4.0])
    close(cvar(losses, torch.tensor([1, 1])), 3.0, 1e-6)  # alone so far: the plain mean


@given(batches(), alphas)
def test_the_first_step_is_the_batch_estimate(sample: tuple[Tensor, Tensor], alpha: float) -> None:
    running = GroupCVaR(alpha, estimator="running", num_groups=GROUPS)
    close(running(*sample), GroupCVaR(alpha)(*sample), 1e-7)


def test_a_batch_with_one_group_gets_its_cvar_weight() -> None:
    cvar = GroupCVaR(0.8, estimator="running", num_groups=2)
    cvar(torch.tensor([2.0, 1.0]), torch.tensor([0, 1]))
    for loss, group, weight, share in ((2.0, 0, 0.625, 3 / 4), (1.0, 1, 0.375, 3 / 6)):
        losses = torch.full((2,), loss, requires_grad=True)
        cvar(losses, torch.full((2,), group)).backward()
        close(losses.grad, [weight / share / 2] * 2, 1e-6)  # the share is that of the samples so far


class Population:
    """A training set at fixed parameters: a loss and a gradient a sample, in groups whose losses differ."""

    def __init__(self, minority: float, size: int = 400) -> None:
        generator = torch.Generator().manual_seed(1)
        self.group = (torch.arange(size) < minority * size).long()  # group 1 is the minority
        self.losses = torch.tensor([1.0, 2.0])[self.group].double()
        self.losses += 0.4 * (torch.rand(size, generator=generator, dtype=torch.float64) - 0.5)
        self.gradients = torch.randn(size, 3, generator=generator, dtype=torch.float64)
        # the groups pull in different directions, and the loss of a sample goes with its gradient
        self.gradients += torch.tensor([[1.0, 0.0, 2.0], [-1.0, 2.0, 2.0]])[self.group] + self.losses[:, None]

    def exact_gradient(self, alpha: float) -> tuple[Tensor, Tensor]:
        """Gradient and value of the CVaR of the whole set."""
        losses = torch.stack([self.losses[self.group == g].mean() for g in (0, 1)])
        weights = cvar_weights(losses, alpha)
        means = torch.stack([self.gradients[self.group == g].mean(0) for g in (0, 1)])
        return weights @ means, weights @ losses

    def steps(self, cvar: GroupCVaR, batch: int, steps: int = 1500) -> Tensor:
        """[steps, 4] gradient and value of the loss of random batches, after as many that only settle the memory."""
        generator = torch.Generator().manual_seed(2)
        found = []
        for step in range(2 * steps):
            drawn = torch.randint(len(self.losses), (batch,), generator=generator)
            losses = self.losses[drawn].requires_grad_()
            value = cvar(losses, self.group[drawn])
            (weights,) = torch.autograd.grad(value, losses)
            if step >= steps:
                found.append(torch.cat([weights @ self.gradients[drawn], value.detach()[None]]))
        return torch.stack(found)


@pytest.mark.parametrize(
    ("batch", "minority"),
    [(4, 0.1), *(pytest.param(*case, marks=pytest.mark.slow) for case in [(4, 0.5), (2, 0.1), (2, 0.5)])],
)
def test_the_running_gradient_is_that_of_the_whole_set_on_average(batch: int, minority: float) -> None:
    population = Population(minority)
    expected = torch.cat([part.reshape(-1) for part in population.exact_gradient(0.6)])

    def deviation(estimator: str) -> Tensor:
        """Of the mean from the exact gradient and value, in standard errors."""
        steps = population.steps(GroupCVaR(0.6, estimator=estimator, num_groups=2), batch)
        return (steps.mean(0) - expected).abs() / (steps.std(0) / math.sqrt(len(steps)))

    assert deviation("running").max() < 3.5
    assert deviation("batch").max() > 6  # so few batches suffice to see that the batch estimate's is another


# --- group DRO with a KL penalty -------------------------------------------------------------------------------------


@pytest.mark.parametrize("eta", [0.3, 2.0])
def test_kl_dro_of_whole_sets_has_the_gradient_of_its_objective(eta: float) -> None:
    """With momentum 0 and the whole set in the batch, over the cells of class and group."""
    generator = torch.Generator().manual_seed(3)
    label, group = (torch.randint(n, (40,), generator=generator) for n in (3, 2))
    losses = 3 * torch.rand(40, generator=generator, dtype=torch.float64)
    losses.requires_grad_()
    target = {"label": label, "group": group}
    dro = KLGroupDRO(2, eta, momentum=0.0, num_classes=3)
    (found,) = torch.autograd.grad(dro(losses, dro.groups(target)), losses)
    cells = [(label == y) & (group == g) for y in range(3) for g in range(2)]
    parts = torch.stack([cell.double().mean().log() + losses[cell].mean() / eta for cell in cells])
    (expected,) = torch.autograd.grad(eta * torch.logsumexp(parts, 0), losses)
    close(found, expected)


@given(batches())
def test_kl_dro_lies_between_the_mean_and_the_worst_group(sample: tuple[Tensor, Tensor]) -> None:
    close(KLGroupDRO(GROUPS, 1e12)(*sample), sample[0].mean(), 1e-7)
    losses, group = sample
    if (group >= 0).all():
        means = torch.stack([losses[group == g].mean() for g in group.unique()])
        close(KLGroupDRO(GROUPS, 1e-9)(losses, group), means.max(), 1e-6)


def test_kl_dro_tells_cells_apart_and_leaves_the_unknown_out() -> None:
    target = {"label": torch.tensor([0, 2, 0, 1], dtype=torch.uint8), "group": torch.tensor([0, 0, 1, -1])}
    assert KLGroupDRO(2, num_classes=3).groups(target).tolist() == [0, 2, 3, -1]
    assert KLGroupDRO(2).groups(target).tolist() == [0, 0, 1, -1]
    loss = TwoLevelLoss(CrossEntropy(), KLGroupDRO(2, eta=0.1, num_classes=3))
    logits = torch.tensor([[2.0, 0, 0], [2.0, 0, 0], [2.0, 0, 0], [2.0, 0, 0]], requires_grad=True)
    loss(logits, target)
    weights = loss.explain(logits, target)[1]
    assert weights[1] > 0.7 and weights[0] < 0.01  # of one group, of two classes
    close(weights[3], 0.25)


# --- DAW-FDD with its authors' gradient ------------------------------------------------------------------------------


def test_hierarchical_cvar_has_the_published_gradient_at_the_same_value() -> None:
    for losses, group in stream(8, size=12, lowest_group=-1):
        losses.requires_grad_()
        exact, published = (HierarchicalCVaR(0.5, 0.9, gradient)(losses, group) for gradient in ("exact", "published"))
        close(published, exact, 1e-3)
        (gradient,) = torch.autograd.grad(published, losses)
        close(HierarchicalCVaR(0.5, 0.9, "published").weights(losses, group), gradient)
        close(gradient[group < 0], [1 / 12] * int((group < 0).sum()))
    assert (gradient[group >= 0] == 0).any()


# --- what holds for all ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", AGGREGATIONS)
def test_explaining_a_step_gives_its_weights_and_moves_nothing(name: str) -> None:
    aggregation = AGGREGATIONS[name]()
    loss = TwoLevelLoss(CrossEntropy(), aggregation)
    for seed, (_, group) in enumerate(stream(8, lowest_group=-1)):
        logits = torch.randn(6, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        logits.requires_grad_()
        target = {"label": torch.arange(6) % 4, "group": group}
        losses = loss.sample_loss(logits, target["label"])
        value = aggregation(losses, group)
        (step_weights,) = torch.autograd.grad(value, losses)
        state = state_of(loss)
        for _ in range(2):
            losses, weights = loss.explain(logits, target)
            close(weights, step_weights)
            assert not weights.requires_grad
        assert same_state(loss, state)
        if name != "running, published":  # its weights do not sum to the loss
            close(weights @ losses, value)


@pytest.mark.parametrize("name", REMEMBERING)
def test_the_memory_moves_in_training_steps_alone(name: str) -> None:
    aggregation = AGGREGATIONS[name]()
    (losses, group), (others, other_group) = stream(2)
    aggregation(losses, group)
    state = state_of(aggregation)
    assert state
    with torch.no_grad():
        unmoved = aggregation(others, other_group)
    aggregation.eval()
    close(aggregation(others, other_group), unmoved)
    aggregation.weights(others, other_group)
    assert same_state(aggregation, state)
    aggregation.train()
    aggregation(others, other_group)
    assert not same_state(aggregation, state)


@pytest.mark.parametrize("name", REMEMBERING)
def test_a_resumed_training_remembers(name: str) -> None:
    whole, first, second = (TwoLevelLoss(CrossEntropy(), AGGREGATIONS[name]()) for _ in range(3))
    batches = stream(10)
    expected = [whole.aggregation(*batch) for batch in batches]
    for batch in batches[:5]:
        first.aggregation(*batch)
    second.load_state_dict(first.state_dict())
    assert [second.aggregation(*batch) for batch in batches[5:]] == expected[5:]


@pytest.mark.parametrize("name", [name for name in AGGREGATIONS if name not in REMEMBERING])
def test_without_memory_there_is_no_state(name: str) -> None:
    assert AGGREGATIONS[name]().state_dict() == {}


@pytest.mark.parametrize("name", AGGREGATIONS)
@given(sample=batches())
def test_unknown_group_takes_part_as_in_a_plain_mean(name: str, sample: tuple[Tensor, Tensor]) -> None:
    losses, group = sample
    known = group >= 0
    aggregation = AGGREGATIONS[name]()
    value = aggregation(losses, group)
    weights = aggregation.weights(losses, group)
    close(weights[~known], torch.full_like(losses[~known], 1 / len(losses)))
    of_known = AGGREGATIONS[name]()(losses[known], group[known]) * known.sum() if known.any() else 0.0
    close(value, (of_known + losses[~known].sum()) / len(losses), 1e-7)


@pytest.mark.parametrize("name", AGGREGATIONS)
@given(sample=batches(lowest_group=0), random=st.randoms(use_true_random=False))
def test_the_order_of_samples_does_not_matter(name: str, sample: tuple[Tensor, Tensor], random: object) -> None:
    losses, group = sample
    order = list(range(len(losses)))
    random.shuffle(order)  # type: ignore[attr-defined]
    one, other = AGGREGATIONS[name](), AGGREGATIONS[name]()
    close(one(losses, group), other(losses[order], group[order]), 1e-7)


@pytest.mark.parametrize("name", [name for name in AGGREGATIONS if "published" not in name])
def test_the_gradient_agrees_with_finite_differences(name: str) -> None:
    aggregation = AGGREGATIONS[name]()
    for batch in stream(5):
        aggregation(*batch)
    losses = torch.tensor([3.0, 0.5, 1.1, 2.4, 0.2, 7.0], dtype=torch.float64, requires_grad=True)
    group = torch.tensor([0, 1, 2, 0, 2, -1])
    aggregation.eval()  # weights of what is remembered; a memory that moved with the differences would be no function
    assert torch.autograd.gradcheck(lambda values: aggregation(values, group), losses)


@pytest.mark.parametrize("name", AGGREGATIONS)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_broken_sample_is_not_hidden_and_not_remembered(name: str, bad: float) -> None:
    aggregation = AGGREGATIONS[name]()
    (losses, group), *_ = stream(1)
    aggregation(losses, group)
    for broken_group in ([0, 0, 1], [-1, 0, 1], [4, 3, 3]):
        assert not aggregation(torch.tensor([bad, 1.0, 5.0]), torch.tensor(broken_group)).isfinite()
    assert aggregation(losses, group).isfinite()


@pytest.mark.parametrize("name", AGGREGATIONS)
def test_a_step_never_reads_a_value_back(name: str) -> None:
    """On the meta device there are no values: .item(), bool() and shapes that depend on data raise."""
    loss = TwoLevelLoss(LogitAdjustedCrossEntropy([3, 2, 5, 1]), AGGREGATIONS[name]()).to("meta")
    logits = torch.empty(6, 4, device="meta", requires_grad=True)
    target = {key: torch.empty(6, dtype=torch.long, device="meta") for key in ("label", "group")}
    for _ in range(2):
        loss(logits, target).backward()
        loss.explain(logits, target)
    assert logits.grad is not None and logits.grad.shape == (6, 4)


@pytest.mark.parametrize("name", AGGREGATIONS)
def test_single_precision_and_small_integers(name: str) -> None:
    (losses, group), *_ = stream(1, lowest_group=-1)
    value = AGGREGATIONS[name]()(losses.float(), group.to(torch.int8))
    assert value.dtype == torch.float32
    close(value, AGGREGATIONS[name]()(losses, group), 1e-5)


def test_group_sums() -> None:
    sums, counts = group_sums(torch.tensor([1.0, 2.0, 4.0, 8.0]), torch.tensor([2, 0, 2, -1]), 4)
    assert sums.tolist() == [2, 0, 5, 0] and counts.tolist() == [1, 0, 2, 0]
    means = group_means(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([2, 0, 2]))
    assert means.losses[means.used].tolist() == [2.5, 2]


def test_the_mean_has_no_groups() -> None:
    for losses, group in stream(3, lowest_group=-1):
        close(MeanAggregation()(losses, group), losses.mean())


def test_a_group_that_is_left_out_takes_no_weight_from_the_others() -> None:
    dro, fewer = GroupDRO(3, eta=0.3, left_out=[1]), GroupDRO(2, eta=0.3)
    for losses, group in stream(4):
        group = group % 2
        close(dro(losses, 2 * group), fewer(losses, group))
    assert not dro.log_weights.exp()[1]
    dro(torch.ones(2), torch.tensor([0, 2]))
    close(GroupDRO(3, left_out=[1])(torch.ones(2), torch.tensor([0, 2])), torch.tensor(1.0))


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: GroupCVaR(estimator="running"), "estimator 'running' needs num_groups"),
        (lambda: GroupCVaR(estimator="moving"), "estimator must be 'batch' or 'running', got 'moving'"),
        (
            lambda: GroupCVaR(estimator="running", num_groups=0),
            "num_groups must be a whole number of at least 1, got 0",
        ),
        (lambda: RunningGroupLoss(2, momentum=1.0), r"momentum must be in \[0, 1\), got 1.0"),
        (lambda: RunningGroupLoss(2, momentum=math.nan), r"momentum must be in \[0, 1\), got nan"),
        (lambda: GroupDRO(2.5), "num_groups must be a whole number of at least 1, got 2.5"),
        (
            lambda: GroupDRO(2, left_out=[2]),
            r"left_out must be ids below num_groups = 2, and not all of them, got \[2\]",
        ),
        (lambda: GroupDRO(2, left_out=[0, 1]), r"and not all of them, got \[0, 1\]"),
        (lambda: GroupDRO(2, eta=0), "eta must be positive and finite, got 0"),
        (lambda: KLGroupDRO(2, eta=0), "eta must be positive and finite, got 0"),
        (lambda: KLGroupDRO(2, num_classes=0), "num_classes must be a whole number of at least 1, got 0"),
        (lambda: HierarchicalCVaR(gradient="x"), "gradient must be 'exact' or 'published', got 'x'"),
        (lambda: HierarchicalCVaR(alpha=0), r"alpha must be in \(0, 1\], got 0"),
        (lambda: HierarchicalCVaR(alpha_inner=1.5), r"alpha_inner must be in \(0, 1\], got 1.5"),
        (lambda: GroupTreeCVaR([0, -1]), r"parents must give .* got \[0, -1\]"),
        (lambda: GroupTreeCVaR([]), r"parents must give .* got \[\]"),
        (lambda: GroupTreeCVaR([0, 1], alpha_inner=0), r"alpha_inner must be in \(0, 1\], got 0"),
    ],
)
def test_values_out_of_range_are_named(make: Callable[[], Aggregation], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make()


@pytest.mark.parametrize("name", ["running", "dro", "tree"])
def test_a_group_beyond_the_number_is_an_error(name: str) -> None:
    with pytest.raises(IndexError):
        AGGREGATIONS[name]()(torch.ones(2), torch.tensor([0, GROUPS]))
