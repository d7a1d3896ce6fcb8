"""The experiments with quick settings: each runs, confirms its claim, saves its files; the report is self-
contained."""

from __future__ import annotations

import csv
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")
pytest.importorskip("tqdm")

from torch_ssam import experiments, theory
from torch_ssam.experiments import correlated, deep_linear, pac_bayes
from torch_ssam.experiments.__main__ import main

FAST = ("landscape", "starts", "signatures", "stationary", "correlated", "geometry")


@pytest.mark.parametrize("name", FAST)
def test_quick_experiment_confirms_its_claim_and_saves_its_files(name: str, tmp_path: Path) -> None:
    result = experiments.run(name, quick=True, out=tmp_path)
    assert result.confirmed, result.text()
    assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    with (tmp_path / f"{name}.csv").open() as file:
        assert len(list(csv.DictReader(file))) == len(result.rows) > 1
    for part in ("Claim:", "Theory:", "Measured:", "Verdict:  CONFIRMED"):
        assert part in result.text()


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(experiments.NAMES) - set(FAST)))
def test_longer_experiment_confirms_its_claim(name: str, tmp_path: Path) -> None:
    result = experiments.run(name, quick=True, out=tmp_path)
    # Networks confirm in part: flatter always, better balanced with the squared loss only.
    assert result.confirmed or (name == "networks" and result.partly), result.text()


def test_results_depend_on_the_seed_alone() -> None:
    first, again, other = (experiments.run("starts", quick=True, seed=s) for s in (3, 3, 4))
    assert repr(first.rows) == repr(again.rows) != repr(other.rows)
    assert first.confirmed
    assert other.confirmed


def test_command_prints_and_saves(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["signatures", "--quick", "--out", str(tmp_path)]) == 0
    assert "Verdict:" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["signatures.csv", "signatures.png"]


def test_command_refuses_unknown_names() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "torch_ssam.experiments", "nonsense"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "landscape" in done.stderr
    with pytest.raises(ValueError, match="unknown experiment 'nonsense'; expected one of landscape"):
        experiments.run("nonsense")


def test_report_is_one_file_that_needs_no_other(tmp_path: Path) -> None:
    results = {name: experiments.run(name, quick=True) for name in ("signatures", "starts")}
    path = tmp_path / "deep" / "report.html"
    experiments.write_report(results, path, quick=True, seed=0)
    page = path.read_text()
    assert page.count("data:image/png;base64,") == 2
    assert not re.search(r'(src|href)="(?!data:|#)', page)
    assert page.count("<section") == page.count("</section>") == 2
    assert "Quick settings" in page
    for result in results.values():
        assert result.verdict.split(",")[0] in page


def test_a_missing_package_is_named_with_its_extra() -> None:
    code = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "from torch_ssam.experiments.__main__ import main; sys.exit(main(['signatures', '--quick']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "experiments needs matplotlib" in done.stderr
    assert "pip install 'torch_ssam[experiments]'" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("correlation", correlated.CORRELATIONS)
def test_fixed_point_map_is_the_lasso_of_scikit_learn(correlation: float) -> None:
    sigma = correlated.design(correlation)
    limit = theory.limit_product(correlated.TARGET, correlated.ETA, 2, sigma)
    np.testing.assert_allclose(limit, correlated.lasso(sigma), atol=1e-9)


@pytest.mark.parametrize("depth", [2, 3])
def test_regularized_loss_of_aligned_matrices_is_the_mean_loss_under_noise(depth: int) -> None:
    # All signs of 2 x 2 layers: exact expectations, since only mean, variance and independence of the noise
    # enter.
    import itertools

    import torch

    torch.manual_seed(depth)
    values = torch.rand(depth, 2, dtype=torch.float64)
    singular = torch.tensor([1.5, 0.4], dtype=torch.float64)
    layers, eta, total = [torch.diag(row) for row in values], 0.3, 0.0
    for signs in itertools.product((-eta, eta), repeat=4 * depth):
        product = torch.eye(2, dtype=torch.float64)
        for layer, noise in zip(
            layers, torch.tensor(signs, dtype=torch.float64).view(depth, 2, 2), strict=True
        ):
            product = (layer + noise) @ product
        total += float((torch.diag(singular) - product).square().sum()) / 2 ** (4 * depth)
    assert float(deep_linear.aligned_loss(values, singular, eta)) == pytest.approx(total, rel=1e-12)


@pytest.mark.parametrize("depth", [2, 3])
def test_layers_of_full_matrices_tend_to_the_imbalance_that_scipy_finds(depth: int) -> None:
    import torch
    from scipy.optimize import minimize

    singular = torch.tensor(deep_linear.SINGULAR[depth], dtype=torch.float64)

    def objective(x: np.ndarray) -> float:
        return float(
            deep_linear.aligned_loss(torch.tensor(x).view(depth, -1), singular, deep_linear.ETA[depth])
        )

    start = np.random.default_rng(depth).uniform(0.3, 1.5, depth * len(singular))
    end = minimize(objective, start, method="BFGS", options={"gtol": 1e-7}).x.reshape(depth, -1)
    products, gap = deep_linear.predicted(depth)
    np.testing.assert_allclose(np.abs(end.prod(axis=0)), products, atol=1e-4)
    assert np.linalg.norm(end[1] ** 2 - end[0] ** 2) == pytest.approx(gap, abs=1e-3)
    assert gap < 1e-6 if depth == 2 else gap > 1


def test_the_risk_of_the_best_constant_is_the_variance_or_the_rarer_class() -> None:
    rng = np.random.default_rng(0)
    y = rng.uniform(-0.4, 0.4, 500)  # no loss is clipped: the mean is best, and the grid has steps of 0.01
    assert y.var() <= pac_bayes.constant_risk(y, classes=False) <= y.var() + 0.005**2
    labels = np.where(rng.random(500) < 0.3, 1.0, -1.0)
    assert pac_bayes.constant_risk(labels, classes=True) == (labels == 1).mean()
