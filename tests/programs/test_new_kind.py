"""A kind of diffusion in one file (``tests/new_kind.py``) meets samplers and programs.

Bounds, decoders and conditionals it meets in ``test_truths``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from inference.evaluate import evaluate
from inference.folders.loading import load_trained
from inference.inspect import inspect
from inference.sample import sample
from inference.train import train
from pyro_mdm import CLD, Denoiser, DiffusionModel, samplers
from pyro_mdm.by_dimension import Frequencies
from pyro_mdm.diffusions.base import coordinates
from tests.brief import SHORT
from tests.new_kind import TurnedDiffusion
from tests.problems import Silent

ENDS = {"max_log_snr": 7.0, "min_log_snr": -9.0}
SAMPLERS = [
    samplers.Ancestral(240),  # of first order: its variance is an eighth too low at 60
    samplers.EulerMaruyama(300),
    samplers.ExponentialIntegrator(20),
    samplers.StochasticExponentialIntegrator(30),
    samplers.Splitting(120),
    samplers.ProbabilityFlow(100),
]


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda sampler: type(sampler).__name__)
@torch.no_grad()
def test_samplers_draw_the_data(sampler: samplers.Sampler) -> None:
    """Of a denoiser that is exact for N(μ, I): mean and covariance, within 5 errors and 5%."""
    diffusion = TurnedDiffusion(CLD(**ENDS), Frequencies(1))
    mean = torch.tensor([3.0, -1.0, 0.5])
    score = Denoiser(Silent(3), coordinates(diffusion, mean), torch.ones(3))
    torch.manual_seed(0)
    x = DiffusionModel(diffusion, score, event_shape=(3,), sampler=sampler)(batch_size=4000)
    assert float((x.mean(0) - mean).abs().max()) < 5 / 4000**0.5 + 0.05
    assert float((x.mT.cov() - torch.eye(3)).abs().max()) < 5 * (2 / 4000) ** 0.5 + 0.05


@pytest.mark.slow
@pytest.mark.usefixtures("few_pictures")
def test_programs_serve_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    guide = f"{Path(__file__).parents[1] / 'new_kind.py'}:turned"
    run = tmp_path / "run"
    whole = train(**SHORT, guide=guide, score="denoiser", run=run)
    again = train(resume=run).bits_per_dim  # of the same weights and noise
    assert again == pytest.approx(whole.bits_per_dim, rel=1e-4)
    assert type(load_trained(run)[1].model.diffusion).__name__ == "TurnedDiffusion"
    evaluate(run, draws=1)
    assert capsys.readouterr().out.splitlines()[-1].startswith("bits/dim ")
    sample(run, num_samples=4, steps=4, out=tmp_path / "x.npy")
    inspect(guide, out=tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 0


@torch.no_grad()
def test_a_denoiser_of_ones_own_is_heard_by_samplers() -> None:
    """Whether it defines ``x_hat`` or ``denoise_at``."""

    class Constant(Denoiser):
        def denoise_at(self, diffusion: Any, y: Tensor, at: Any, noise: float = 1.0) -> Tensor:
            return torch.full_like(y[:, 0], 7.0)

    score = Constant(Silent(3), torch.zeros(3), torch.ones(3))
    model = DiffusionModel(CLD(**ENDS), score, event_shape=(3,), sampler=SAMPLERS[2])
    assert float(model(batch_size=200).mean()) == pytest.approx(7.0, abs=0.1)
