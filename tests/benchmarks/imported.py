"""Likelihoods of networks that another package trained: by schedule, prediction and ends.

    python -m tests.benchmarks.imported --tables docs/measured/data

The ``UNet2DModel`` of ``diffusers`` is trained on scikit-learn's digits by the loss of its own
schedulers, each for the same steps, and read by :mod:`pyro_mdm.imported`. Printed are bits per
dimension of the test images, with a decoder of 17 levels, its terms, the same under CLD with the
network's ends, and under VPSDE with an upper end that training images choose.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from models.digits import Digits
from pyro_mdm import CLD, VPSDE, Bound, DiffusionGuide, DiffusionModel, LinearDiffusion, bound
from pyro_mdm.imported import ImportedDenoiser, check_import, from_diffusers
from pyro_mdm.levels import DiscretizedGaussian
from tests.benchmarks.frame import Options, Row, Study, main, means
from tests.imported.test_imported import whole

SCHEDULES: dict[str, Callable[[Any], Any]] = {
    "linear, noise": lambda d: d.DDPMScheduler(),
    "linear, v": lambda d: d.DDPMScheduler(prediction_type="v_prediction"),
    "cosine, noise": lambda d: d.DDPMScheduler(beta_schedule="squaredcos_cap_v2"),
    "cosine, v": lambda d: d.DDPMScheduler(
        beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction"
    ),
    "straight line": lambda d: d.FlowMatchEulerDiscreteScheduler(),
}
Loss = Callable[[nn.Module, Tensor], Tensor]
"""The loss of a network and a batch."""
TERMS = ("reconstruction", "prior_kl", "diffusion")
ENDS = ("max_log_snr", "min_log_snr", "high")
STEPS, BATCH, RATE = 500, 128, 2e-3
HIGHS, LOW = (4.0, 5.0, 6.0, 7.0, 8.0), -10.0
"""Greatest log SNRs, one of which training images choose, and the least."""


def network_of(diffusers: Any) -> nn.Module:
    network: nn.Module = diffusers.UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        layers_per_block=2,
        block_out_channels=(32, 64),
        norm_num_groups=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )
    return network


def loss_of(scheduler: Any, network: nn.Module, x: Tensor) -> Tensor:
    """The loss of the scheduler's own training, of a batch."""
    noise = torch.randn_like(x)
    if hasattr(scheduler, "alphas_cumprod"):
        t = torch.randint(scheduler.config.num_train_timesteps, (len(x),))
        noisy = scheduler.add_noise(x, noise, t)
        is_noise = scheduler.config.prediction_type == "epsilon"
        target = noise if is_noise else scheduler.get_velocity(x, noise, t)
    else:
        share = torch.rand(len(x))
        sigma = share[:, None, None, None]
        noisy, target = (1 - sigma) * x + sigma * noise, noise - x
        t = scheduler.config.num_train_timesteps * share
    return (network(noisy, t).sample - target).square().mean()


def train(
    network: nn.Module, loss_of: Loss, x: Tensor, steps: int, batch: int = BATCH
) -> nn.Module:
    """The network with averaged weights, after training."""
    average = torch.optim.swa_utils.AveragedModel(
        network, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.99)
    )
    optimizer = torch.optim.Adam(network.parameters(), RATE)
    for step in range(steps):
        for group in optimizer.param_groups:  # it falls to nothing
            group["lr"] = RATE * min(1.0, 2 * (1 - step / steps))
        loss = loss_of(network, x[torch.randint(len(x), (batch,))])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        average.update_parameters(network)
    averaged: nn.Module = average.module.eval()
    return averaged


def measured(job: Row, options: Options) -> Row:
    import diffusers

    torch.manual_seed(job["seed"])
    problem = Digits()
    train_x, test_x = (problem.to_model_space(data) for data in (problem.train, problem.test))
    scheduler = SCHEDULES[job["schedule"]](diffusers)
    network = train(network_of(diffusers), functools.partial(loss_of, scheduler), train_x, STEPS)
    denoiser = from_diffusers(network, scheduler, train_x)
    print(check_import(denoiser, test_x))
    return bits_of(denoiser, train_x, test_x)


def bits_of(denoiser: ImportedDenoiser, train_x: Tensor, test_x: Tensor, draws: int = 16) -> Row:
    """Bits per dimension of test images, with their terms and ends."""

    def bits(diffusion: LinearDiffusion, x: Tensor) -> Bound:
        likelihood = DiscretizedGaussian(Digits.num_levels)
        shape = x.shape[1:]
        model = DiffusionModel(diffusion, denoiser, event_shape=shape, likelihood=likelihood)
        return bound(model, DiffusionGuide(diffusion), x, draws=draws)

    row: Row = {**whole(denoiser)}
    low = max(LOW, denoiser.trained_min.item())
    some = train_x[:: len(train_x) // len(test_x)]
    on_some = {
        high: bits(VPSDE(max_log_snr=high, min_log_snr=low), some).bits_per_dim.mean
        for high in HIGHS
        if high <= denoiser.trained_max.item()
    }
    high = min(on_some, key=lambda high: on_some[high])
    row |= {"high": high}
    narrow = VPSDE(max_log_snr=high, min_log_snr=low)
    diffusions = {"": VPSDE(**whole(denoiser)), "_cld": CLD(**whole(denoiser)), "_narrow": narrow}
    for name, diffusion in diffusions.items():
        found = bits(diffusion, test_x)
        row[f"bits{name}"] = found.bits_per_dim.mean
        if not name:
            row |= {term: found.in_bits()[term].mean for term in TERMS}
    return row


def table_of(rows: pd.DataFrame) -> pd.DataFrame:
    """Means over seeds, with errors of all but the ends."""
    return means(rows, [], ENDS)


STUDIES = {
    "imported-digits": Study(
        measured,
        [{"schedule": name} for name in SCHEDULES],
        table_of,
        seeds=3,
        unit="bits/dim",
        notes=["errors are over seeds"],
    )
}

if __name__ == "__main__":
    main("imported", __doc__, STUDIES)
