"""The benchmark of the objective, on a small made-up table: folds, resumption, and what alpha does to a gradient."""

from __future__ import annotations

import copy
import importlib
import itertools
import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from fairlung.pipeline.common.names import SEXES

sys.path.insert(0, str(Path(__file__).parents[3] / "benchmarks" / "objective"))
evidence, tabular, thyroid = (importlib.import_module(name) for name in ("evidence", "tabular", "thyroid"))


@pytest.fixture(scope="module")
def table_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table like UCI's: 10 patients a class and sex, of whom the laboratory values tell the class; some left out."""
    rng = np.random.default_rng(0)
    rows = []
    for code, sex, number in [
        (c, s, n) for c in ("A", "GK", "C|I", "K", "M", "R", "-") for s in "MF" for n in range(10)
    ]:
        laboratory = rng.normal(5, 0.3, len(thyroid.LABORATORY))
        index = thyroid.diagnosis(code)
        assert index is not None
        laboratory[index % len(laboratory)] += 3
        rows.append({"sex": sex, "target": code, **dict(zip(thyroid.LABORATORY, laboratory, strict=True))})
        rows[-1] |= {"TBG": np.nan, "age": 65526 if number == 0 else 50}
    rows += [{"sex": "F", "target": "S"}, {"sex": None, "target": "A"}]
    table = pd.DataFrame(rows).assign(referral_source="SVI", patient_id=range(len(rows)))
    table[list(thyroid.FLAGS)] = "f"
    table.loc[1, [*thyroid.LABORATORY, "age"]] = table.loc[2, [*thyroid.LABORATORY, "age"]].to_numpy()  # rows alike
    path = tmp_path_factory.mktemp("table") / "thyroid.csv"
    table.to_csv(path, index=False)
    return path


@pytest.mark.parametrize(
    "code, expected",
    [("A", "hyperthyroid"), ("AK", "hyperthyroid"), ("GKJ", "hypothyroid"), ("C|I", "binding protein"),
     ("H|K", "general health"), ("D|R", "discordant results"), ("-", "no condition"), ("S", None), ("OI", None)],
)  # fmt: skip
def test_letters_are_classes(code: str, expected: str | None) -> None:
    index = thyroid.diagnosis(code)
    assert (None if index is None else thyroid.CLASSES[index]) == expected


def test_an_unknown_letter_or_a_missing_column_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(thyroid.TableError, match="'Z'"):
        thyroid.diagnosis("Z")
    (tmp_path / "other.csv").write_text("age,sex\n50,F\n")
    with pytest.raises(thyroid.TableError, match=r"other\.csv: no column target, patient_id, TSH"):
        thyroid.read_table(tmp_path / "other.csv")


def test_folds_are_stratified_and_keep_records_alike_together(table_path: Path) -> None:
    table = thyroid.read_table(table_path)
    assert len(table.label) == 140  # without the left-out class and the unknown sex
    assert table.inputs[0, 0].isnan() and table.inputs[3, 0] == 50  # an impossible age is missing
    assert table.patient[1] == table.patient[2] and len(set(table.patient)) == 139
    fold = thyroid.fold_of(table, 5, seed=3)
    assert fold[1] == fold[2]
    cells = np.bincount((fold * len(thyroid.CLASSES) + table.label.numpy()) * 2 + table.group.numpy())
    assert cells.min() >= 1 and cells.max() <= 3
    part = tabular.parts(fold, 4)
    assert sorted(torch.cat(part).tolist()) == list(range(140))
    inputs = thyroid.standardised(table.inputs, part.train)
    assert not inputs.isnan().any()
    torch.testing.assert_close(inputs[part.train, 1].mean(), torch.tensor(0.0), atol=1e-5, rtol=0)


def test_a_balanced_order_holds_every_sex_equally_and_the_prior_is_what_it_draws() -> None:
    rng = np.random.default_rng(0)
    group, label = torch.tensor([0] * 30 + [1] * 10), torch.tensor([0] * 15 + [1] * 15 + [2] * 10)
    rows = torch.arange(40)
    drawn = tabular.order(rows, group, 4, 60, "balanced", rng)
    assert (group[drawn].sum(1) == 2).all()
    often = torch.bincount(drawn.flatten(), minlength=40)
    assert often[:30].eq(4).all() and often[30:].eq(12).all()
    counts = np.array(tabular.class_counts(label, group, "balanced"))
    np.testing.assert_allclose(counts[:3] / counts.sum(), torch.bincount(label[drawn].flatten()) / drawn.numel())
    assert tabular.class_counts(label, group, "shuffled")[:3] == [15, 15, 10]
    shuffled = tabular.order(rows, group, 4, 10, "shuffled", rng)
    assert sorted(shuffled.flatten().tolist()) == list(range(40))
    with pytest.raises(ValueError, match="got 3"):
        tabular.order(rows, group, 3, 2, "balanced", rng)


@pytest.mark.parametrize(
    "setting",
    [
        tabular.Setting("LA", 4),
        tabular.Setting("LA+CVaR", 4, alpha=0.7, gradient="exact", estimator="running"),
        tabular.Setting("CVaR", 4, alpha=0.6, gradient="published", estimator="batch"),
    ],
    ids=lambda setting: setting.system,
)
def test_runs_trained_together_are_those_trained_alone(setting: tabular.Setting) -> None:
    generator = torch.Generator().manual_seed(0)
    networks = [tabular.network(5, seed) for seed in range(3)]
    losses = [setting.loss([float(n + r) for n in range(1, 8)]) for r in range(3)]
    stack = tabular.Stack(copy.deepcopy(networks), copy.deepcopy(losses))
    for _ in range(4):  # a running estimate has moved
        x = torch.randn(3, 4, 5, generator=generator)
        y, g = (torch.randint(0, high, (3, 4), generator=generator) for high in (7, 2))
        for parameter in stack.parameters.values():
            parameter.grad = None
        together = stack.losses(x, y, g)
        together.sum().backward()
        for r, (net, loss) in enumerate(zip(networks, losses, strict=True)):
            net.zero_grad()
            alone = loss(net(x[r]), {"label": y[r], "group": g[r]})
            alone.backward()
            torch.testing.assert_close(together[r], alone)
            for name, parameter in net.named_parameters():
                gradient = stack.parameters[name].grad
                assert gradient is not None and parameter.grad is not None
                torch.testing.assert_close(gradient[r], parameter.grad)


def gradient(alpha: float, kind: str, label: Tensor, group: Tensor) -> Tensor:
    """Of a setting's loss by the parameters of one small network, all in one vector."""
    setting = tabular.Setting("CVaR", len(label), alpha=alpha, gradient=kind, estimator="batch")
    net = tabular.network(5, seed=1)
    inputs = torch.randn(len(label), 5, generator=torch.Generator().manual_seed(2))
    setting.loss([1.0] * 7)(net(inputs), {"label": label, "group": group}).backward()
    return torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])


def test_alpha_turns_the_exact_gradient_and_only_stretches_the_published_one() -> None:
    label, group = torch.tensor([0, 1, 2, 3, 4, 5]), torch.tensor([0, 0, 0, 1, 1, 1])
    alphas = (0.6, 0.7, 0.8, 0.9)
    cosine = torch.nn.functional.cosine_similarity
    published = [gradient(alpha, "published", label, group) for alpha in alphas]
    for alpha, found in zip(alphas, published, strict=True):
        torch.testing.assert_close(found * alpha, published[0] * alphas[0])
    exact = [gradient(alpha, "exact", label, group) for alpha in alphas]
    for first, second in itertools.pairwise(exact):
        assert cosine(first, second, dim=0) < 0.9999
    # the exact one goes from the worse sex alone to the mean of the sexes, and the published one is the former
    worst, mean = gradient(0.5, "exact", label, group), gradient(1.0, "exact", label, group)
    torch.testing.assert_close(published[0] * alphas[0] * 2, worst)
    for alpha, found in zip(alphas, exact, strict=True):
        share = 1 / alpha - 1  # of the worse sex's gradient: its weight 1 / (2 alpha) is share + (1 - share) / 2
        torch.testing.assert_close(found, share * worst + (1 - share) * mean)


def test_a_batch_of_one_sex_has_no_alpha() -> None:
    label, group = torch.tensor([0, 1]), torch.tensor([1, 1])
    for kind in ("exact", "published"):
        torch.testing.assert_close(gradient(0.6, kind, label, group), gradient(0.9, kind, label, group))


def test_what_is_done_is_not_done_again(table_path: Path, tmp_path: Path) -> None:
    table, path = thyroid.read_table(table_path), tmp_path / "runs.jsonl"
    todo = [tabular.Setting("CE", 4), tabular.Setting("LA+CVaR", 4, alpha=0.7, gradient="exact", estimator="running")]

    def run(seeds: int) -> tuple[list[str], list[dict]]:
        said = list(tabular.run_grid(table, todo, range(seeds), 3, {4: tabular.Budget(6, 1e-2)}, path))
        return said, tabular.read_records(path)

    said, first = run(1)
    assert len(said) == 2 and len(first) == 6
    path.write_text(path.read_text()[:-40])  # killed while it wrote the last line
    said, second = run(2)
    assert [line.split("): ")[1].split(",")[0] for line in said] == ["3 runs", "4 runs"]
    assert len({tabular.key(record) for record in second}) == len(second) == 12
    assert second[:5] == first[:5]
    again = next(record for record in second if tabular.key(record) == tabular.key(first[-1]))
    assert again["confusion"] == first[-1]["confusion"]
    before = path.read_text()
    assert run(2)[0] == [] and path.read_text() == before


@pytest.mark.slow
def test_the_summary_counts_every_patient_once_a_seed(table_path: Path, tmp_path: Path) -> None:
    arguments = ["--table", str(table_path), "--out", str(tmp_path), "--systems", "CE", "CVaR", "--batches", "4"]
    tabular.main([*arguments, "--seeds", "2", "--folds", "3", "--steps", "3"])
    records = tabular.read_records(tmp_path / "runs.jsonl")
    seeds = evidence.by_seed(records)
    assert all(np.sum(confusion) == 140 for confusion in seeds["confusion"])
    row = seeds.iloc[0]
    assert row["score"] == pytest.approx((row["f1_male"] + row["f1_female"]) / 2)
    assert row["gap"] == pytest.approx(row["f1_male"] - row["f1_female"])
    incomplete = evidence.by_seed(records[1:])
    assert len(incomplete) == len(seeds) - 1

    summary = json.loads((tmp_path / "summary.json").read_text())
    estimate = next(e for e in summary["estimates"] if e["system"] == "CE" and e["sampler"] == "shuffled")
    values = seeds[(seeds["system"] == "CE") & (seeds["sampler"] == "shuffled")]["score"]
    half = 12.706204736432095 * values.std(ddof=1) / np.sqrt(2)  # t of 1 degree of freedom
    assert estimate["score"]["value"] == pytest.approx(values.mean())
    assert estimate["score"]["high"] - values.mean() == pytest.approx(half)
    kinds = {(e["sampler"], e["estimator"], e["gradient"]) for e in summary["alpha_effects"]}
    assert kinds == {
        ("shuffled", "batch", "exact"), ("shuffled", "batch", "published"), ("shuffled", "running", "exact"),
        ("balanced", "batch", "exact"),
    }  # fmt: skip
    for effect in summary["alpha_effects"]:
        for number in ("score", "gap"):
            assert effect[number]["p"] <= effect[number]["p_holm"] <= 1
    text = (tmp_path / "tabular.md").read_text()
    assert "## Batch 4, balanced: both sexes in 100.0% of the batches" in text and f"gap, {SEXES[0]}" not in text
    assert (tmp_path / "tabular.png").stat().st_size > 10_000
