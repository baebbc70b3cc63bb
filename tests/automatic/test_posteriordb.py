"""Programs of posteriordb, by a folder like its own whose posterior is known in closed form."""

from __future__ import annotations

import json
import math
import zipfile
from pathlib import Path
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from tests.benchmarks.densities.scores import Reference
from tests.benchmarks.posteriordb.base import Folder
from tests.benchmarks.posteriordb.equations import solved
from tests.benchmarks.posteriordb.series import two_states
from tests.benchmarks.posteriordb.targets import Loaded, worst_identity
from tests.benchmarks.posteriordb.truths import noise, truths

NAME = "earnings-earn_height"


@pytest.fixture(autouse=True)
def _dtype() -> Any:
    before = torch.get_default_dtype()
    yield
    torch.set_default_dtype(before)


def zipped(file: Path, value: object) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(file.name.removesuffix(".zip"), json.dumps(value))


def exact_draws(X: Tensor, y: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Of a regression with flat coefficients and a flat deviation, β (n, K) and σ (n,)."""
    N, K = X.shape
    middle = torch.linalg.lstsq(X, y[:, None]).solution[:, 0]
    rest = (y - X @ middle).square().sum()
    # p(σ | y) ∝ σ^{K - N} exp(-rest / 2σ²), so 1/σ² is of a Gamma distribution
    sigma = dist.Gamma((N - K - 1) / 2, rest / 2).sample((n,)).rsqrt()
    root = torch.linalg.cholesky(torch.linalg.inv(X.mT @ X))
    return middle + sigma[:, None] * (torch.randn(n, K).double() @ root.mT), sigma


def folder(path: Path, wrong: float = 1.0) -> Folder:
    torch.manual_seed(0)
    height = 66 + 4 * torch.randn(40).double()
    earn = 3 * height + 30 * torch.randn(40).double()
    beta, sigma = exact_draws(torch.stack([torch.ones(40).double(), height], 1), earn, 8_000)
    columns = {"beta[1]": beta[:, 0], "beta[2]": beta[:, 1], "sigma": wrong * sigma}
    chains = [{name: values[k::2].tolist() for name, values in columns.items()} for k in range(2)]
    inside = path / "posterior_database"
    zipped(inside / "reference_posteriors" / "draws" / "draws" / f"{NAME}.json.zip", chains)
    data = {"N": 40, "earn": earn.tolist(), "height": height.tolist()}
    zipped(inside / "data" / "data" / "earnings.json.zip", data)
    about = {"data_name": "earnings", "model_name": "earn_height"}
    (inside / "posteriors").mkdir()
    (inside / "posteriors" / f"{NAME}.json").write_text(json.dumps(about))
    return Folder(path)


def test_a_program_is_that_of_exact_draws(tmp_path: Path) -> None:
    loaded = Loaded(NAME, folder(tmp_path))
    assert loaded.draws.shape == (8_000, 3) and loaded.target.dim == 3
    assert worst_identity(loaded) < 5


def test_a_program_is_not_that_of_other_draws(tmp_path: Path) -> None:
    assert worst_identity(Loaded(NAME, folder(tmp_path, wrong=1.1))) > 5


def test_hidden_states_are_summed_over() -> None:
    theta = dist.Dirichlet(torch.ones(2)).sample((2,))
    log_emission = torch.randn(3, 2)
    total = torch.tensor(0.0)
    for a in range(2):
        for b in range(2):
            for c in range(2):
                emitted = log_emission[0, a] + log_emission[1, b] + log_emission[2, c]
                total = total + theta[a, b] * theta[b, c] * emitted.exp()
    torch.testing.assert_close(two_states(*theta, log_emission), total.log())


def test_steps_of_an_equation_are_of_the_fourth_order() -> None:
    rates, times = torch.tensor([[0.5], [2.0]]).double(), torch.tensor([0.5, 2.0]).double()

    def error(steps: int) -> float:
        # y' = r (y + t) from 1 at 0
        made = solved(lambda t, y: rates * (y + t), torch.ones(2, 1).double(), 0.0, times, steps)
        exact = (1 + 1 / rates) * (rates * times).exp() - times - 1 / rates
        assert made.shape == (2, 2, 1)
        return float((made[..., 0] - exact).abs().max())

    assert 14 < error(20) / error(40) < 17  # 2⁴, up to the next order


def test_the_evidence_of_exact_draws_is_that_of_a_flat_regression(tmp_path: Path) -> None:
    loaded = Loaded(NAME, folder(tmp_path))
    data = Folder(tmp_path).data(NAME)
    X, y = torch.stack([torch.ones(40).double(), data["height"]], 1), data["earn"]
    rest = (y - X @ torch.linalg.lstsq(X, y[:, None]).solution[:, 0]).square().sum()
    # ∫ dσ of (2πσ²)^{-(N - K)/2} |XᵀX|^{-1/2} exp(-rest / 2σ²), of 38 - 1 degrees of freedom
    exact = -19 * math.log(2 * math.pi) - torch.linalg.slogdet(X.mT @ X).logabsdet / 2
    exact += math.lgamma(37 / 2) - 37 / 2 * torch.log(rest / 2) - math.log(2)
    made = truths(loaded, 2_000)
    assert abs(made["log_z"] - float(exact)) < 5 * made["log_z_se"]
    assert made["log_z_se"] < 0.01


def test_noise_is_what_one_of_a_hundred_perfect_sets_of_draws_exceeds() -> None:
    x = torch.randn(1_000, 2).double()
    limit = noise(x, 400, seed=0)
    distances = torch.tensor(
        [Reference(torch.randn(1_000, 2), None).energy(torch.randn(400, 2)) for _ in range(200)]
    )
    assert float((distances > limit).double().mean()) < 0.05
    assert limit < 6 * float(distances.std())
