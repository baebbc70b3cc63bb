"""Standard targets of the literature on samplers, in closed form where they have one."""

from __future__ import annotations

import math
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributions as dist
from scipy import special

from tests.benchmarks.densities import standards


@pytest.mark.parametrize("dim", [1, 10])
def test_a_phase_transition_has_the_evidence_and_the_draws_that_it_says(dim: int) -> None:
    torch.manual_seed(0)
    target = standards.phase_transition(dim, narrow=0.2, share=0.8)
    assert target.exact is not None and target.log_z is not None and target.modes is not None
    u = target.exact(4_000, 0).double()
    x = 10 * u.sigmoid() - 5
    parts = [dist.Normal(0.0, scale).log_prob(x).sum(1) for scale in (0.2, 1.0)]
    mixed = torch.stack([math.log(0.8) + parts[0], math.log(0.2) + parts[1]]).logsumexp(0)
    mixed = mixed + (10 * u.sigmoid() * (-u).sigmoid()).log().sum(1)
    # densities of the draws' own distribution, which is the posterior
    torch.testing.assert_close(
        target.log_density(u.float()).double(), mixed + target.log_z, atol=1e-4, rtol=1e-4
    )
    if dim > 1:
        share = float((target.modes.of(u.float()) == 0).double().mean())
        assert abs(share - 0.8) < 5 * math.sqrt(0.16 / 4_000)


def test_seeds_are_binomial_with_effects_of_plates() -> None:
    target = standards.seeds()
    a, b, log_tau = [-0.5, 0.1, 1.3, -0.8], np.linspace(-0.4, 0.4, 21), 1.2
    r, n = (np.array(t.split(), float) for t in (standards.GERMINATED, standards.OF_SEEDS))
    kind = np.array([0] * 11 + [1] * 10)
    extract = np.array([0] * 5 + [1] * 6 + [0] * 5 + [1] * 5)
    p = special.expit(a[0] + a[1] * kind + a[2] * extract + a[3] * kind * extract + b)
    tau = math.exp(log_tau)
    value = (special.gammaln(n + 1) - special.gammaln(r + 1) - special.gammaln(n - r + 1)).sum()
    value += (r * np.log(p) + (n - r) * np.log1p(-p)).sum()
    value += (np.log(tau) / 2 - np.log(2 * np.pi) / 2 - tau * b**2 / 2).sum()
    value += sum(-(w**2) / 200 - math.log(10) - math.log(2 * math.pi) / 2 for w in a)
    # of log τ, whose Jacobian is τ
    value += 0.01 * log_tau - 0.01 * tau + 0.01 * math.log(0.01) - math.lgamma(0.01)
    x = torch.tensor([[log_tau, *a, *b]]).float()
    assert float(target.log_density(x)) == pytest.approx(value, abs=1e-3)


def table(folder: Path, name: str, value: object) -> None:
    file = folder / "targets" / "data" / standards.TABLES[name]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(pickle.dumps(value))


def test_a_table_of_more_than_arrays_is_refused(tmp_path: Path) -> None:
    table(tmp_path, "sonar", Path("x"))
    with pytest.raises(pickle.UnpicklingError, match="expected arrays only"):
        standards.regression("sonar", tmp_path)


def test_german_credit_has_its_prior_and_its_scales(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(3.0, 2.0, (30, 3))
    rows[:, -1] = [1, 2] * 15
    file = tmp_path / "targets" / "data" / standards.TABLES["german_credit"]
    file.parent.mkdir(parents=True)
    np.savetxt(file, rows)
    target = standards.regression("german_credit", tmp_path)
    weights = np.array([0.3, -0.2, 0.5])
    logits = weights[0] + rows[:, :2] / rows[:, :2].std(0) @ weights[1:]
    signs = np.where(rows[:, -1] == 2, 1, -1)
    value = -np.log1p(np.exp(-signs * logits)).sum()
    value += (-(weights**2) / 200 - math.log(10) - math.log(2 * math.pi) / 2).sum()
    x = torch.tensor(weights).float()[None]
    assert float(target.log_density(x)) == pytest.approx(value, abs=1e-3)
