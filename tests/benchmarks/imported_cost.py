"""The cost of an imported network, and whether times between those of its table help.

    python -m tests.benchmarks.imported_cost --tables docs/measured/data

The first table has the processor's time of a call of ``UNet2DModel``, alone and as a denoiser, in
turns. The second trains it on digits by the loss of a ``DDPMScheduler``, whose times are whole, and
reads it at the nearest of these and at times between them.
"""

from __future__ import annotations

import statistics
from functools import partial
from typing import Any

import diffusers
import torch
from torch import Tensor, nn

from models.digits import Digits
from pyro_mdm import VPSDE, DiffusionGuide, DiffusionModel, bound
from pyro_mdm.imported import from_diffusers
from pyro_mdm.levels import DiscretizedGaussian
from tests.benchmarks.frame import Options, Row, Study, in_turns, main
from tests.benchmarks.imported import STEPS, loss_of, network_of, train

CALLS = 40
"""Calls of each kind, in turns, in three rounds."""
SIZES = {
    "8×8, one image": (8, (32, 64), 1),
    "8×8, 64 images": (8, (32, 64), 64),
    "32×32, 16 images": (32, (32, 64), 16),
    "32×32, wider, 16 images": (32, (64, 128), 16),
}
"""Pixels on a side, channels, and the number of images."""


@torch.no_grad()
def cost(job: Row, options: Options) -> Row:
    """The median milliseconds of the network alone, and the median ratio of the denoiser to it."""
    size, channels, batch = SIZES[job["call"]]
    blocks: dict[str, Any] = {
        "down_block_types": ("DownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "UpBlock2D"),
    }
    network: nn.Module = diffusers.UNet2DModel(
        sample_size=size,
        in_channels=1,
        out_channels=1,
        layers_per_block=2,
        block_out_channels=channels,
        norm_num_groups=8,
        **blocks,
    ).eval()
    x, lam = torch.randn(batch, 1, size, size), torch.linspace(-8, 8, batch)
    denoiser = from_diffusers(network, diffusers.DDPMScheduler(), torch.randn(20, 1, size, size))
    number = denoiser.schedule.at(lam.double()).time.long()
    works = {"network": lambda: network(x, number), "denoiser": lambda: denoiser.x_hat(x, lam)}
    rounds = [in_turns(works, 2 if options.small else CALLS).median() for _ in range(3)]
    return {
        "network_ms": statistics.median(one.network for one in rounds),
        "ratio": statistics.median(one.denoiser / one.network for one in rounds),
    }


def bits(denoiser: nn.Module, problem: Digits, x: Tensor) -> float:
    diffusion = VPSDE(max_log_snr=6.0, min_log_snr=-10.0)
    likelihood = DiscretizedGaussian(problem.num_levels)
    model = DiffusionModel(
        diffusion, denoiser, event_shape=problem.event_shape, likelihood=likelihood
    )
    torch.manual_seed(0)  # the same noise
    return bound(model, DiffusionGuide(diffusion), x, draws=16).bits_per_dim.mean


def between(job: Row, options: Options) -> Row:
    """Bits per dimension at the nearest of whole times, and at times between them."""
    torch.manual_seed(job["seed"])
    problem, scheduler = Digits(), diffusers.DDPMScheduler()
    train_x, test_x = (problem.to_model_space(data) for data in (problem.train, problem.test))
    network = train(
        network_of(diffusers), partial(loss_of, scheduler), train_x, 2 if options.small else STEPS
    )
    found = {
        name: bits(from_diffusers(network, scheduler, train_x, interpolated=real), problem, test_x)
        for name, real in (("nearest", False), ("between", True))
    }
    return found | {"between_less_nearest": found["between"] - found["nearest"]}


STUDIES = {
    "imported-cost": Study(
        cost,
        [{"call": name} for name in SIZES],
        notes=["processor time of one thread; medians of three rounds of 40 calls in turns"],
    ),
    "imported-times": Study(
        between,
        [{"times": "all"}],
        seeds=3,
        unit="bits/dim",
        notes=["errors are over seeds; both readings of a network have the same noise"],
        digits=4,
    ),
}

if __name__ == "__main__":
    main("imported_cost", __doc__, STUDIES)
