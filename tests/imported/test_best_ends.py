"""The ends of log SNR that data choose, for the bound of a network that is not exact."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pyro_mdm import CLD, VPSDE, Denoiser, DiffusionGuide, DiffusionModel, bound
from pyro_mdm.conditioning import Labels
from pyro_mdm.imported import ImportedDenoiser, NoiseSchedule, Prediction, best_ends
from pyro_mdm.levels import DiscretizedGaussian
from pyro_mdm.networks import MLP
from tests.imported.test_import_check import Trained
from tests.imported.test_imported import MIXTURE, SCHEDULES, imported, whole
from tests.problems import GaussianMixture, fixed

NARROW = GaussianMixture(
    [0.5, 0.5],
    torch.tensor([[0.6, -0.4], [-0.5, 0.7]]),
    0.05**2 * torch.eye(2).expand(2, 2, 2),
)


class Narrow(nn.Module):
    """The exact velocity of narrow data, with the error of a short training."""

    def forward(self, w: Tensor, t: Tensor) -> Tensor:
        t = t[:, None]
        log_snr = 2 * (t / (1 - t)).log()
        x = NARROW.x_hat(w / t, log_snr[:, 0])
        return (x - w) / (1 - t) + 0.5 * (7 * w + 3 * t).sin()


def measured(denoiser: Any, kind: Any, ends: dict[str, float], x: Tensor) -> float:
    diffusion = kind(**ends)
    model = DiffusionModel(diffusion, denoiser, event_shape=(2,))
    return bound(model, DiffusionGuide(diffusion), x, draws=16).elbo.mean


@pytest.mark.parametrize(
    ("name", "kind"),
    [("narrow", CLD), ("data at 1", VPSDE), ("ddpm", VPSDE), ("sigma", CLD)],
)
def test_the_chosen_ends_have_a_better_bound(name: str, kind: Any) -> None:
    """Nearly that of the best of many others; between its whole ends a flow loses a nat or more."""
    predicts: Prediction = "velocity" if name in ("narrow", "data at 1") else "noise"
    schedule = NoiseSchedule.flow() if name == "narrow" else SCHEDULES[name].schedule
    mixture = NARROW if name == "narrow" else MIXTURE
    network = Narrow() if name == "narrow" else Trained(name, predicts, 0.3, 1)
    train, test = mixture.sample(300, seed=1), mixture.sample(200, seed=2)
    denoiser = ImportedDenoiser.fit(network, train, schedule, predicts)
    ends = best_ends(denoiser, train)
    chosen = measured(denoiser, kind, ends, test)
    everywhere = measured(denoiser, kind, whole(denoiser), test)
    assert chosen > everywhere + (0.5 if predicts == "velocity" else 0.02)
    low = max(-10.0, denoiser.trained_min.item())
    others = [
        measured(denoiser, kind, {"max_log_snr": high, "min_log_snr": low}, test)
        for high in (4.0, 6.0, 8.0)
    ]
    assert chosen > max(others) - 0.1


def test_an_exact_network_is_used_as_far_as_it_gains() -> None:
    denoiser = imported(SCHEDULES["cosine"], "v")
    ends = best_ends(denoiser, MIXTURE.sample(500, seed=1))
    assert ends["max_log_snr"] > 2 and ends["min_log_snr"] < -3
    found = measured(denoiser, VPSDE, ends, x := MIXTURE.sample(200, seed=2))
    assert found == pytest.approx(float(MIXTURE.log_prob(x).mean()), abs=0.05)


def test_a_decoder_of_levels_takes_over_sooner() -> None:
    """17 levels are told apart at log SNR 7, where a density would still be refined."""
    levels = fixed(1, 400, 1, 1, 2).mul(3).round().clamp(-8, 8) / 8

    class Levels(nn.Module):
        def forward(self, w: Tensor, t: Tensor) -> Tensor:
            t = t[:, None, None, None]
            values = torch.linspace(-1, 1, 17, dtype=torch.float64)
            squares = (w[..., None] - t[..., None] * values).square() / (1 - t[..., None]) ** 2
            x = ((-squares / 2 - (values * 8 / 3) ** 2 / 2).softmax(-1) * values).sum(-1)
            return (x - w) / (1 - t) + 0.3 * (7 * w).sin()

    denoiser = ImportedDenoiser.fit(Levels(), levels, NoiseSchedule.flow(), "velocity")
    density = best_ends(denoiser, levels)["max_log_snr"]
    discrete = best_ends(denoiser, levels, likelihood=DiscretizedGaussian(17))["max_log_snr"]
    assert 3.5 < discrete < 7 < density


def test_a_context_is_given_and_a_range_needed() -> None:
    class Shifted(nn.Module):
        def forward(self, w: Tensor, t: Tensor, context: Tensor) -> Tensor:
            return context

    x = torch.eye(2).double()[torch.arange(50) % 2] + 0.1 * fixed(2, 50, 2)
    denoiser = ImportedDenoiser.fit(
        Shifted(), x, NoiseSchedule.flow(), "data", context_size=Labels(2).size
    )
    context = torch.eye(2).double()[torch.arange(50) % 2]
    high = best_ends(denoiser, x, context=context)["max_log_snr"]
    assert 3 < high < 6 and best_ends(denoiser.given_context(context), x)["max_log_snr"] == high
    with pytest.raises(ValueError, match="are -inf to inf, expected finite ones"):
        best_ends(Denoiser(MLP(2)), x)
