"""The cost of a training step beside its network; run by hand.

    python tests/benchmarks/training_step.py [--size mnist|digits] [--batch 128] [--repeat 15]
    python tests/benchmarks/training_step.py --diffusions

For a U-Net and a batch of images, in turns within one run and with medians and quartiles of the
ratios turn by turn:

* a step (loss and gradients) through ``MDM_ELBO`` under a fixed and a learned diffusion,
* the same loss for the fixed diffusion, written in plain PyTorch,
* the network's forward and backward pass alone,

for ``Denoiser``, and for ``DiscreteDenoiser`` with two tilts of 256 levels.

``--diffusions``: processor time of 200 such steps of a network of one weight, some way into a
training, medians: what learned diffusions cost is what they take more than a fixed one.
"""

from __future__ import annotations

import argparse
import math
import platform
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

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


def timed(runs: dict[str, Callable[[], Tensor]], repeat: int) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(repeat + 2):
        for name, run in runs.items():
            began = time.perf_counter()
            run().backward()
            if turn >= 2:
                times[name].append(1e3 * (time.perf_counter() - began))
    return times


def report(title: str, times: dict[str, list[float]], network: str) -> None:
    print(title)
    for name, values in times.items():
        ratio = [a / b for a, b in zip(values, times[network], strict=True)]
        low, middle, high = statistics.quantiles(ratio, n=4)
        print(
            f"  {name:34s} {statistics.median(values):8.1f} ms   "
            f"{middle:.3f} of {network} (quartiles {low:.3f} to {high:.3f})"
        )


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


def diffusions() -> None:
    fixed = VPSDE(max_log_snr=9.0, min_log_snr=-10.0)
    for K in (2, 4):
        base = milliseconds(fixed)
        for name, low in (("the clock's own λ(T)", None), ("λ(T) = -10", -10.0)):
            learned = LearnedDiffusion(K, max_log_snr=9.0, min_log_snr=low, seed=0)
            found = milliseconds(learned)
            print(f"  K = {K}, {name:22s} {found:.1f} ms, {found - base:.1f} more than VPSDE")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=SIZES, default="mnist")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--repeat", type=int, default=15)
    parser.add_argument("--diffusions", action="store_true", help="what learned ones cost alone")
    options = parser.parse_args()
    if options.diffusions:
        diffusions()
        return
    side, arguments = SIZES[options.size]
    torch.manual_seed(0)
    x = torch.linspace(-1, 1, 256)[torch.randint(256, (options.batch, 1, side, side))]
    print(f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}")

    def network(outputs: int) -> UNet:
        return UNet(1, outputs, lean=True, **arguments)

    fixed, learned = CLD(), LearnedDiffusion(2, min_log_snr=-10.0)
    shared, tilts = network(1), network(2)
    scores = {
        "Denoiser": (Denoiser(shared, torch.zeros(1, side, side)), shared),
        "DiscreteDenoiser, 256 levels": (DiscreteDenoiser.fit(tilts, x, 256, "tilt"), tilts),
    }
    for title, (score, net) in scores.items():
        lam = torch.linspace(-10, 13, options.batch)

        def alone(net: nn.Module = net, lam: Tensor = lam) -> Tensor:
            out: Tensor = net(x, lam)
            return out.square().sum()

        runs: dict[str, Callable[[], Tensor]] = {"network alone": alone}
        if title == "Denoiser":
            runs["plain PyTorch, CLD"] = lambda: plain_loss(shared, fixed, x)
        for name, diffusion in (("MDM_ELBO, CLD", fixed), ("MDM_ELBO, learned", learned)):
            model = DiffusionModel(diffusion, score, event_shape=(1, side, side))
            elbo = MDM_ELBO()(model, DiffusionGuide(diffusion))
            runs[name] = lambda elbo=elbo: elbo(x)
        times = timed(runs, options.repeat)
        size = sum(p.numel() for p in net.parameters())
        report(f"{title}, {size:,} parameters, batch {options.batch}", times, "network alone")
        if "plain PyTorch, CLD" in times:
            pairs = zip(times["MDM_ELBO, CLD"], times["plain PyTorch, CLD"], strict=True)
            quartiles = statistics.quantiles([a / b for a, b in pairs], n=4)
            print("  MDM_ELBO over plain PyTorch: " + " / ".join(f"{q:.3f}" for q in quartiles))


if __name__ == "__main__":
    main()
