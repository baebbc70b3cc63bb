"""The cost of a training step beside its network, and of its diffusion and conditions.

    python -m tests.benchmarks.training_step --tables docs/measured/data

- *step*: for a U-Net and 128 images of 28×28 pixels, in turns and with quartiles of the ratios turn
  by turn, a loss and its gradients through ``MDM_ELBO`` under a fixed and a learned diffusion, the
  same loss for the fixed one in plain PyTorch, and the network's forward and backward pass alone,
  for ``Denoiser``, and for ``DiscreteDenoiser`` with two tilts of 256 levels.
- *diffusions*: 200 such steps of a network of one weight, some way into a training: what learned
  diffusions take more than a fixed one.
- *linear-diffusions-steps*, *conditioning-steps*: steps of ``inference.train`` under each diffusion
  of the experiment ``linear``, and at random maps of log SNR and with labels.

All are of the processor, on one thread.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from inference.measuring.experiment_tables import TABLES
from inference.settings.options import Training
from inference.settings.plan import build
from pyro_mdm import (
    CLD,
    MDM_ELBO,
    VPSDE,
    Denoiser,
    DiffusionGuide,
    DiffusionModel,
    DiscreteDenoiser,
    LearnedDiffusion,
    LinearDiffusion,
)
from pyro_mdm.networks import UNet
from tests.benchmarks.frame import Options, Row, Study, in_turns, main, quartiles

PLAIN = "the same loss in plain PyTorch"
SIZES = {"mnist": (28, {"base": 32, "multipliers": (1, 2, 3), "patch": 2}), "digits": (8, {})}


def plain_loss(network: nn.Module, diffusion: LinearDiffusion, x: Tensor) -> Tensor:
    """-ELBO of a Denoiser with unit variance data, with nothing of the library but constants."""
    low, high = float(diffusion.terminal_log_snr), diffusion.max_log_snr
    start, end = diffusion.start, diffusion.terminal
    n, d, K = len(x), x[0].numel(), diffusion.num_variables
    noise = torch.randn(n, K, *x.shape[1:])
    y = start.mean.float().reshape(-1, 1, 1, 1) * x.unsqueeze(1)
    y = y + (start.scale_tril.float() @ noise.flatten(2)).reshape(noise.shape)
    z = (y.double().movedim(1, -1) @ start.readout).float()
    v = math.exp(-high)
    mean, scale = z / (1 + v), math.sqrt(v / (1 + v))
    reconstruction = -0.5 * ((x - mean) / scale).square().flatten(1).sum(1)
    reconstruction = reconstruction - d * math.log(scale * math.sqrt(2 * math.pi))
    Sigma = end.covariance
    constant = 0.5 * d * float(Sigma.trace() - K - torch.logdet(Sigma))
    prior = constant + 0.5 * float(end.mean @ end.mean) * x.square().flatten(1).sum(1)
    lam = low + (high - low) * ((torch.rand(()) + torch.arange(n) / n) % 1)
    v = torch.exp(-lam).reshape(-1, 1, 1, 1)
    z = x + v.sqrt() * torch.randn_like(x)
    F = network(z / (1 + v).sqrt(), lam)
    x_hat = z / (1 + v) + (v / (1 + v)).sqrt() * F
    error = (x - x_hat).square().flatten(1).sum(1)
    return (0.5 * (high - low) * lam.exp() * error + prior - reconstruction).sum()


class Weight(nn.Module):
    """The least of networks."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, log_snr: Tensor) -> Tensor:
        return self.weight * x


def milliseconds(diffusion: LinearDiffusion, steps: int = 200) -> float:
    """Processor time of a step, Adam's own left out; parameters begin away from their start."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in diffusion.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    model = DiffusionModel(diffusion, Denoiser(Weight()), event_shape=(1, 2, 2))
    loss, x = MDM_ELBO()(model, DiffusionGuide(diffusion)), torch.randn(64, 1, 2, 2)
    adam, times = torch.optim.Adam(model.parameters(), 3e-4), []
    for _ in range(steps):
        began = time.process_time()
        adam.zero_grad()
        loss(x).backward()
        times.append(1e3 * (time.process_time() - began))
        adam.step()
    return statistics.median(times)


def learned(job: Row, options: Options) -> Row:
    """What a learned diffusion takes more than a fixed one, in milliseconds."""
    base = milliseconds(VPSDE(max_log_snr=9.0, min_log_snr=-10.0))
    low = -10.0 if job["diffusion"].endswith("-10") else None
    K = int(job["diffusion"][4])
    diffusion = LearnedDiffusion(K, max_log_snr=9.0, min_log_snr=low, seed=0)
    return {"milliseconds": milliseconds(diffusion) - base}


def losses(job: Row, options: Options) -> list[Row]:
    """Losses with their gradients, in turns with the network alone."""
    side, arguments = SIZES["digits" if options.small else "mnist"]
    torch.manual_seed(0)
    x = torch.linspace(-1, 1, 256)[torch.randint(256, (128, 1, side, side))]
    fixed, learned = CLD(), LearnedDiffusion(2, min_log_snr=-10.0)
    shared, tilts = (UNet(1, outputs, lean=True, **arguments) for outputs in (1, 2))
    name, network = job["score"], shared
    score: Any = Denoiser(shared, torch.zeros(1, side, side))
    if name != "Denoiser":
        score, network = DiscreteDenoiser.fit(tilts, x, 256, "tilt"), tilts
    lam = torch.linspace(-10, 13, 128)
    works: dict[str, Callable[[], object]] = {
        "alone": lambda: network(x, lam).square().sum().backward()
    }
    if name == "Denoiser":
        works[PLAIN] = lambda: plain_loss(shared, fixed, x).backward()
    for kind, diffusion in (("CLD", fixed), ("learned K = 2", learned)):
        model = DiffusionModel(diffusion, score, event_shape=(1, side, side))
        elbo = MDM_ELBO()(model, DiffusionGuide(diffusion))
        works[f"MDM_ELBO, {name}, {kind}"] = lambda elbo=elbo: elbo(x).backward()
    times = in_turns(works, 2 if options.small else 15)
    ratios = {label: times[label] / times.alone for label in works if label != "alone"}
    if PLAIN in works:
        ratios["MDM_ELBO over plain PyTorch"] = times["MDM_ELBO, Denoiser, CLD"] / times[PLAIN]
    return [{"loss": label} | quartiles("ratio", values) for label, values in ratios.items()]


# -- steps of the programs -------------------------------------------------------------------------


def step_of(options: dict[str, Any]) -> Callable[[], object]:
    """A function that takes a step of a training by options of ``inference.train``."""
    problem, model, guide = build(Training(**options))
    loss = MDM_ELBO()(model, guide)
    batch = problem.part("train")[:64]
    x = problem.to_model_space(batch.data)
    given = [] if batch.context is None else [batch.context]
    return lambda: loss(x, *given).backward()


def linear(job: Row, options: Options) -> list[Row]:
    """The cost of each diffusion of the experiment ``linear``, relative to VPSDE's."""
    table = TABLES["linear"]
    shared = table.options | {"score": job["score"], "model": options.model}
    guides = table.guides_of(job["score"]).items()
    times = in_turns({name: step_of(shared | opts) for name, opts in guides}, 7).median()
    return [{"diffusion": name, "step_cost": t / times.vpsde} for name, t in times.items()]


CONDITIONS: dict[str, dict[str, Any]] = {
    "one log SNR": {},
    "maps, levels": {"maps": "levels"},
    "maps, subsets": {"maps": "subsets"},
    "maps, mixed": {"maps": "mixed"},
    "labels": {"condition": "labels"},
}


def conditions(job: Row, options: Options) -> list[Row]:
    """The cost of random maps of log SNR and of labels, relative to one log SNR."""
    shared = {"model": options.model, "guide": "vpsde"}
    works = {name: step_of(shared | more) for name, more in CONDITIONS.items()}
    times = in_turns(works, 2 if options.small else 21).median()
    names = [*CONDITIONS][1:]
    return [{"conditioning": n, options.model: times[n] / times["one log SNR"]} for n in names]


STUDIES = {
    "speed-step": Study(
        losses,
        [{"score": "Denoiser"}, {"score": "DiscreteDenoiser of 256 levels"}],
        lambda rows: rows.drop(columns=["seed", "score"]),
        unit="relative time",
    ),
    "speed-diffusions": Study(
        learned,
        [{"diffusion": f"K = {K}, {end}"} for K in (2, 4) for end in ("own end", "end at -10")],
        unit="milliseconds",
    ),
    "linear-diffusions-steps": Study(
        linear, [{"score": score} for score in ("discrete", "denoiser", "noise")]
    ),
    "conditioning-steps": Study(conditions, unit="relative time"),
}


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="fashion_mnist", help="data of the programs' steps")


if __name__ == "__main__":
    main("training_step", __doc__, STUDIES, arguments)
