"""Likelihoods of networks that other packages trained, each with its own loss.

    python -m tests.benchmarks.imported_packages --tables docs/measured/data

One small ``UNet2DModel`` is trained on scikit-learn's digits for the same steps by each package,
and read by its door in :mod:`pyro_mdm.imported`. Printed are bits per dimension of the test images
as in :mod:`tests.benchmarks.imported`, and, where the package has a likelihood, that of the package
(``theirs``) beside ours of the same quantity (``ours``): of a learned variance, its variational
bound for images of 256 levels; of a flow, the density by its ODE of images with uniform noise.

Both are also given the exact network of a mixture of Gaussians, whose log density is known. The
program runs in an environment of its own, in ``data/imported``, which is made once.
"""

from __future__ import annotations

import functools
import importlib.util
import math
import subprocess
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models.digits import Digits
from pyro_mdm import VPSDE, DiffusionGuide, DiffusionModel, bound
from pyro_mdm.evaluation import probability_flow
from pyro_mdm.imported import (
    ImportedDenoiser,
    check_import,
    from_azula,
    from_denoising_diffusion,
    from_diffusers,
    from_sigma_denoiser,
    from_velocity,
)
from pyro_mdm.levels import DiscretizedGaussian
from pyro_mdm.likelihoods.base import bits_per_dim
from pyro_mdm.paths.flow import Solver
from tests.benchmarks.environments import install, install_apart, python_of
from tests.benchmarks.frame import Options, Row, Study, main
from tests.benchmarks.imported import STEPS, Loss, bits_of, loss_of, table_of, train
from tests.imported.test_imported import whole
from tests.problems import GaussianMixture

ENVIRONMENT = Path("data/imported")
ROOT = Path(__file__).parents[2]
MODULE = "tests.benchmarks.imported_packages"
PACKAGES = (
    "azula==0.11.1",
    "deepinv==0.5.0",
    "denoising-diffusion-pytorch==2.3.4",
    "diffusers==0.42.1",
    "pot==0.9.7.post1",
    "torch==2.13.0",
    "torchdiffeq==0.2.5",
    "torchsde==0.2.6",
    "torchvision==0.28.0",
)
APART = (
    "dctorch==0.1.2",
    "flow-matching==1.0.10",
    "k-diffusion==0.1.1.post1",
    "torchcfm==1.0.7",
)
"""Without what they require, which is not used here, and away from this package ``tests``."""
BATCH = 64
DATA = 500
"""Data of the mixture for each seed."""
SIGMAS = (0.002, 80.0)
"""Those of k-diffusion's configurations."""


def enter(environment: Path) -> None:
    """Go on in the environment, which is made if it is not there."""
    if Path(sys.prefix) != environment.absolute():
        install(environment, [*PACKAGES, "--editable", str(ROOT)])
        for package in APART:
            install_apart(environment, package)
        command = [python_of(environment), "-m", MODULE, *sys.argv[1:]]
        sys.exit(subprocess.run(command).returncode)
    sys.path += [str(environment / package.partition("==")[0]) for package in APART]


class Network(nn.Module):
    """One network for all packages, called as theirs are.

    Args:
        clock: what a package says of the time, as a number near 0 to 1000.
        time_first: whether it is called with the time first.
        outputs: channels of the output.
    """

    channels, self_condition = 1, False

    def __init__(
        self, clock: Callable[[Tensor], Tensor], *, time_first: bool = False, outputs: int = 1
    ) -> None:
        super().__init__()
        import diffusers

        self.clock, self.time_first, self.out_dim = clock, time_first, outputs
        self.network = diffusers.UNet2DModel(
            sample_size=8,
            in_channels=1,
            out_channels=outputs,
            layers_per_block=1,
            block_out_channels=(16, 32),
            norm_num_groups=8,
            down_block_types=("DownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "UpBlock2D"),
        )

    def forward(self, *inputs: Any, x: Any = None, t: Any = None) -> Tensor:
        w, time = (x, t) if not inputs else inputs[1::-1] if self.time_first else inputs[:2]
        output: Tensor = self.network(w, self.clock(time).reshape(-1).expand(len(w))).sample
        return output


def number(time: Tensor) -> Tensor:
    return time


def share(time: Tensor) -> Tensor:
    return 1000 * time


def log_sigma(time: Tensor) -> Tensor:
    return 500 + 60 * time


def sigma(time: Tensor) -> Tensor:
    return log_sigma(time.log())


@dataclass
class Training:
    """How a package trains a network, and how it is read.

    Attributes:
        module: what is trained.
        loss: the package's loss of the module and a batch from -1 to 1.
        read: the denoiser of the module, for these data.
        likelihoods: the package's likelihood of test images and ours, bits/dim; None: it has none.
    """

    module: nn.Module
    loss: Loss
    read: Callable[[nn.Module, Tensor], ImportedDenoiser]
    likelihoods: Callable[[Any, ImportedDenoiser, Tensor], tuple[float, float]] | None = None


def of_diffusers() -> Training:
    from diffusers import DDPMScheduler

    scheduler = DDPMScheduler()
    return Training(
        Network(number).network,
        functools.partial(loss_of, scheduler),
        lambda network, x: from_diffusers(network, scheduler, x),
    )


def of_denoising_diffusion(objective: str) -> Training:
    from denoising_diffusion_pytorch import GaussianDiffusion

    process = GaussianDiffusion(
        Network(number), image_size=8, objective=objective, auto_normalize=False
    )
    return Training(process, lambda process, x: process(x), from_denoising_diffusion)


def of_learned_variance() -> Training:
    from denoising_diffusion_pytorch import LearnedGaussianDiffusion

    process = LearnedGaussianDiffusion(
        Network(number, outputs=2), image_size=8, auto_normalize=False
    )
    return Training(
        process,
        lambda process, x: process(x),
        from_denoising_diffusion,
        variational_bounds,
    )


def of_azula(denoiser: str, schedule: str) -> Training:
    from azula import denoise, noise

    kind, law = getattr(denoise, denoiser), getattr(noise, schedule)
    return Training(
        kind(Network(log_sigma), law()),
        lambda denoiser, x: denoiser.loss(x, torch.rand(len(x))),
        from_azula,
    )


def of_torchcfm() -> Training:
    from torchcfm import ConditionalFlowMatcher

    matcher = ConditionalFlowMatcher(sigma=0.0)

    def loss(network: nn.Module, x: Tensor) -> Tensor:
        t, w, velocity = matcher.sample_location_and_conditional_flow(torch.randn_like(x), x)
        return (network(t, w) - velocity).square().mean()

    return Training(
        Network(share, time_first=True),
        loss,
        functools.partial(from_velocity, time="first"),
    )


def of_flow_matching(dequantized: bool) -> Training:
    from flow_matching.path import AffineProbPath
    from flow_matching.path.scheduler import CondOTScheduler

    path = AffineProbPath(scheduler=CondOTScheduler())

    def loss(network: nn.Module, x: Tensor) -> Tensor:
        x = dequantize(x) if dequantized else x
        sample = path.sample(t=torch.rand(len(x)), x_0=torch.randn_like(x), x_1=x)
        return (network(x=sample.x_t, t=sample.t) - sample.dx_t).square().mean()

    return Training(Network(share), loss, from_velocity, flow_densities if dequantized else None)


def of_deepinv() -> Training:
    from deepinv.loss import SupLoss
    from deepinv.models import ArtifactRemoval
    from deepinv.physics import Denoising, GaussianNoise
    from deepinv.physics.generator import SigmaGenerator

    physics, generator, supervised = Denoising(GaussianNoise()), SigmaGenerator(), SupLoss()

    def loss(model: nn.Module, x: Tensor) -> Tensor:
        y = physics(x, **generator.step(batch_size=len(x)))
        loss: Tensor = supervised(x_net=model(y, physics), x=x, y=y, physics=physics, model=model)
        return loss.mean()

    def read(model: Any, x: Tensor) -> ImportedDenoiser:
        return from_sigma_denoiser(model.backbone_net, x, generator.sigma_min, generator.sigma_max)

    return Training(ArtifactRemoval(Network(sigma), mode="direct"), loss, read)


def of_k_diffusion() -> Training:
    if "k_diffusion" not in sys.modules:
        place = importlib.util.find_spec("k_diffusion")
        assert place is not None and place.submodule_search_locations is not None
        package = types.ModuleType("k_diffusion")  # itself it imports metrics, and what they need
        package.__path__ = list(place.submodule_search_locations)
        sys.modules["k_diffusion"] = package
    from k_diffusion import layers, utils

    def loss(denoiser: Any, x: Tensor) -> Tensor:
        sigma = utils.rand_log_normal((len(x),), loc=-1.2, scale=1.2)
        loss: Tensor = denoiser.loss(x, torch.randn_like(x), sigma)
        return loss.mean()

    return Training(
        layers.Denoiser(Network(sigma), sigma_data=0.75),
        loss,
        lambda denoiser, x: from_sigma_denoiser(denoiser, x, *SIGMAS),
    )


TRAININGS: dict[str, Callable[[], Training]] = {
    "diffusers: DDPM, noise": of_diffusers,
    **{
        f"denoising_diffusion_pytorch: {name}": functools.partial(of_denoising_diffusion, objective)
        for objective, name in (("pred_noise", "noise"), ("pred_x0", "data"), ("pred_v", "v"))
    },
    "denoising_diffusion_pytorch: learned variance": of_learned_variance,
    "azula: Karras, VP": functools.partial(of_azula, "KarrasDenoiser", "VPSchedule"),
    "azula: simple, VE": functools.partial(of_azula, "SimpleDenoiser", "VESchedule"),
    "torchcfm": of_torchcfm,
    "flow_matching": functools.partial(of_flow_matching, False),
    "flow_matching: noise within levels": functools.partial(of_flow_matching, True),
    "deepinv": of_deepinv,
    "k-diffusion": of_k_diffusion,
}


# -- the packages' likelihoods ---------------------------------------------------------------------


def dequantize(x: Tensor, levels: int = Digits.num_levels) -> Tensor:
    """x with uniform noise within its level."""
    return x + (2 * torch.rand_like(x) - 1) / (levels - 1)


def of_a_byte(x: Tensor) -> Tensor:
    """x from -1 to 1 at the nearest of 256 levels, for which the package's bound is written."""
    return (127.5 * (x + 1)).round() / 127.5 - 1


@torch.no_grad()
def their_bound(process: Any, x: Tensor, some: int) -> float:
    """The terms of ``LearnedGaussianDiffusion``, summed over its times, bits/dim.

    Its loss of a datum at a time is that of the noise and ``vb_loss_weight`` times a term of the
    bound; a weight of 1e9 leaves the term. Later times see ``some`` images, drawn anew each.
    """
    weight, process.vb_loss_weight = process.vb_loss_weight, 1e9
    total = 0.0
    for time in range(process.num_timesteps):
        batch = x if time < 10 else x[torch.randint(len(x), (some,))]
        losses = process.p_losses(batch, torch.full((len(batch),), time), loss_reduction="none")
        total += float(losses.double().mean()) / 1e9
    process.vb_loss_weight = weight
    return total


def variational_bounds(
    process: Any, denoiser: ImportedDenoiser, x: Tensor, some: int = 48
) -> tuple[float, float]:
    """Theirs and ours of images of 256 levels, between the ends of the schedule."""
    x, diffusion = of_a_byte(x), VPSDE(**whole(denoiser))
    likelihood = DiscretizedGaussian(256)
    model = DiffusionModel(diffusion, denoiser, event_shape=x.shape[1:], likelihood=likelihood)
    ours = bound(model, DiffusionGuide(diffusion), x, draws=64)
    return their_bound(process, x, some), ours.bits_per_dim.mean


def their_density(network: nn.Module, x: Tensor, **options: Any) -> Tensor:
    """log p(x) (n,) by the ODE of ``flow_matching``, by its adaptive solver."""
    from flow_matching.solver import ODESolver

    def log_normal(x: Tensor) -> Tensor:
        return torch.distributions.Normal(0.0, 1.0).log_prob(x).flatten(1).sum(1)

    _, log_prob = ODESolver(velocity_model=network).compute_likelihood(
        x, log_normal, **{"step_size": None, "method": "dopri5"} | options
    )
    density: Tensor = log_prob.detach()
    return density


def flow_densities(
    network: nn.Module, denoiser: ImportedDenoiser, x: Tensor
) -> tuple[float, float]:
    """Theirs and ours of every third image with uniform noise, by one solver and one probe."""
    x, size = dequantize(x[::3]), 2 / (Digits.num_levels - 1)
    diffusion = VPSDE(**whole(denoiser))
    model = DiffusionModel(diffusion, denoiser, event_shape=x.shape[1:])
    ours = probability_flow(model, DiffusionGuide(diffusion), x, solver=Solver(probes=1)).mean
    theirs = float(their_density(network, x).mean())
    num_dims = x[0].numel()
    return (
        bits_per_dim(theirs, num_dims) - math.log2(size),
        bits_per_dim(ours, num_dims) - math.log2(size),
    )


# -- an exact network ------------------------------------------------------------------------------


MIXTURE = GaussianMixture(
    [0.5, 0.3, 0.2],
    torch.tensor([[-0.5, 0.4, 0.0, 0.2], [0.4, -0.3, 0.3, -0.4], [0.1, 0.5, -0.6, 0.0]]),
    torch.diag_embed(
        torch.tensor([[0.02, 0.01, 0.03, 0.02], [0.01, 0.04, 0.02, 0.01], [0.03] * 4])
    ),
)


class ExactNoise(nn.Module):
    """The noise in images (n, 1, 2, 2) of the mixture, and the best variance of a step."""

    channels, out_dim, self_condition = 1, 2, False

    def __init__(self) -> None:
        super().__init__()
        self.process: Any = None

    def forward(self, w: Tensor, t: Tensor) -> Tensor:
        kept = (-self.process.betas.double()).log1p().cumsum(0).exp()[t, None]
        alpha, v = kept.sqrt(), (1 - kept) / kept
        with torch.enable_grad():
            z = (w.detach().flatten(1).double() / alpha).requires_grad_()
            x = MIXTURE.x_hat(z, -v[:, 0].log())
            slopes = [
                torch.autograd.grad(x[:, i].sum(), z, retain_graph=True)[0][:, i] for i in range(4)
            ]
        noise = ((z - x) / v.sqrt()).detach()
        variance = v * torch.stack(slopes, 1)  # of x given w
        step = self.process.posterior_variance.double()[t, None]
        log_variance = (
            step + self.process.posterior_mean_coef1.double()[t, None] ** 2 * variance
        ).log()
        low, high = (
            bound.double()[t, None]
            for bound in (self.process.posterior_log_variance_clipped, self.process.betas.log())
        )
        between = 2 * (log_variance - low) / (high - low) - 1
        return torch.stack([noise, between], 1).reshape(len(w), 2, 2, 2).to(w.dtype)


def of_exact_noise(x: Tensor) -> Row:
    """Images of 256 levels."""
    from denoising_diffusion_pytorch import LearnedGaussianDiffusion

    network = ExactNoise()
    process = LearnedGaussianDiffusion(network, image_size=2, auto_normalize=False)
    object.__setattr__(network, "process", process)  # which is no module of the network
    x = of_a_byte(x.clamp(-1, 1)).float()
    edges = torch.linspace(-1, 1, 256, dtype=torch.float64)
    low, high = (x.double() - 1 / 255, x.double() + 1 / 255)
    low, high = low.where(x > edges[0], -math.inf), high.where(x < edges[-1], math.inf)
    laws = torch.distributions.Normal(
        MIXTURE.means, MIXTURE.covariances.diagonal(dim1=-2, dim2=-1).sqrt()
    )
    mass = (laws.cdf(high[:, None]) - laws.cdf(low[:, None])).log().sum(-1)
    log_prob = (MIXTURE.log_weights + mass).logsumexp(-1)
    images = x.reshape(-1, 1, 2, 2)
    denoiser = from_denoising_diffusion(process, images)
    theirs, ours = variational_bounds(process, denoiser, images, len(x))
    return {"exact": bits_per_dim(float(log_prob.mean()), 4), "theirs": theirs, "ours": ours}


class ExactVelocity(nn.Module):
    """The velocity of vectors of the mixture, on straight lines from noise."""

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        alpha = t.double().clamp(1e-4, 1 - 1e-4).reshape(-1, 1).expand(len(x), 1)
        sigma = 1 - alpha
        data = MIXTURE.x_hat(x.double() / alpha, 2 * (alpha / sigma).log()[:, 0])
        return data - (x - alpha * data) / sigma


def of_exact_velocity(x: Tensor, **options: Any) -> Row:
    denoiser = from_velocity(ExactVelocity(), x)
    diffusion = VPSDE(**whole(denoiser))
    model = DiffusionModel(diffusion, denoiser, event_shape=(4,))
    log_probs = {
        "exact": float(MIXTURE.log_prob(x).mean()),
        "theirs": float(
            their_density(denoiser.network.network, x, exact_divergence=True, **options).mean()
        ),
        "ours": probability_flow(model, DiffusionGuide(diffusion), x).mean,
    }
    return {name: bits_per_dim(log_prob, 4) for name, log_prob in log_probs.items()}


EXACT: dict[str, Callable[[Tensor], Row]] = {
    "denoising_diffusion_pytorch: learned variance": of_exact_noise,
    "flow_matching: dopri5": of_exact_velocity,
    "flow_matching: Euler, 20 steps": functools.partial(
        of_exact_velocity, method="euler", step_size=0.05
    ),
}


def exactly(job: Row, options: Options) -> Row:
    torch.manual_seed(job["seed"])
    row = EXACT[job["package"]](MIXTURE.sample(DATA, seed=job["seed"]))
    less = {f"{whose}_less_exact": row[whose] - row["exact"] for whose in ("theirs", "ours")}
    return row | less


def measured(job: Row, options: Options) -> Row:
    torch.manual_seed(job["seed"])
    problem = Digits()
    train_x, test_x = (problem.to_model_space(data) for data in (problem.train, problem.test))
    training = TRAININGS[job["package"]]()
    module = train(training.module, training.loss, train_x, 2 if options.small else STEPS, BATCH)
    denoiser = training.read(module, train_x)
    print(check_import(denoiser, test_x))
    row = bits_of(denoiser, train_x, test_x, draws=8)
    if training.likelihoods is not None:
        theirs, ours = training.likelihoods(module, denoiser, test_x)
        row |= {"theirs": theirs, "ours": ours}
    return row


def without_likelihoods(job: Row, options: Options) -> Row:
    row = measured(job, options)
    return {name: value for name, value in row.items() if name not in ("theirs", "ours")}


OF_BOTH = ("denoising_diffusion_pytorch: learned variance", "flow_matching: noise within levels")
"""Trainings whose packages have a likelihood."""
FACTS: dict[str, Any] = {
    "seeds": 3,
    "unit": "bits/dim",
    "notes": ["errors are over seeds"],
    "digits": 4,
}
STUDIES = {
    "imported-packages": Study(
        without_likelihoods, [{"package": name} for name in TRAININGS], table_of, **FACTS
    ),
    "imported-likelihoods": Study(
        measured, [{"package": name} for name in OF_BOTH], table_of, **FACTS
    ),
    "imported-exact": Study(exactly, [{"package": name} for name in EXACT], **FACTS),
}

if __name__ == "__main__":
    enter(ENVIRONMENT)
    main("imported_packages", __doc__, STUDIES)
