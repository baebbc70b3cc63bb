"""Models that a user may train instead of a diffusion, on images of discrete levels.

Each :class:`Peer` is of codes k = 0 … levels - 1, int64 (n, C, H, W), and tells its log-probability
or a lower bound on it. All but the histogram and the Gaussian mixture are trained by gradients of
``loss``, in :mod:`tests.benchmarks.peers`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import pyro
import pyro.distributions as dist
import torch
import torch.nn.functional as F
from pyro import poutine
from pyro.distributions import TorchDistribution
from pyro.infer import Trace_ELBO
from sklearn.mixture import GaussianMixture
from torch import Tensor, nn

from models.base import ImageProblem
from pyro_mdm import Diffusion, NoisePrediction
from pyro_mdm.levels.discrete import smoothed_histogram

__all__ = [
    "VAE",
    "DiscretizedLogistics",
    "Flow",
    "FourierFeatures",
    "Histogram",
    "Mixture",
    "Peer",
    "PixelCNN",
    "dequantized_log_prob",
    "log_histogram",
    "variational_diffusion",
    "zuko_flows",
]

FEW_LEVELS = 32
"""Up to so many a PixelCNN has a probability for each; beyond, a mixture of logistics."""
ZUKO = "zuko>=1.3"


class Peer(nn.Module, ABC):
    """A model of codes (n, C, H, W).

    Attributes:
        tells: what ``log_prob`` is, in the table.
        draws: random numbers to each image for the test data, where it is a bound.
    """

    tells = "exact"
    draws = 1
    batch_size = 64
    learning_rate = 1e-3
    weight_decay = 0.0

    def __init__(self, event_shape: tuple[int, ...], levels: int) -> None:
        super().__init__()
        self.event_shape, self.levels = tuple(event_shape), levels

    def loss(self, codes: Tensor) -> Tensor:
        """What training makes small, nats per dimension."""
        return -self.log_prob(codes).sum() / codes.numel()

    @abstractmethod
    def log_prob(self, codes: Tensor, draws: int = 1) -> Tensor:
        """Of each image, (n,), nats; or a bound on it, the tighter the more draws."""

    @abstractmethod
    def sample(self, n: int) -> Tensor:
        """Codes of n images."""

    def scaled(self, codes: Tensor) -> Tensor:
        """Codes as numbers from -1 to 1."""
        return codes.float() * (2 / (self.levels - 1)) - 1


def log_histogram(codes: Tensor, levels: int) -> Tensor:
    """log π (C, H, W, levels), float32: the smoothed histogram of every pixel."""
    return smoothed_histogram(codes.double(), torch.arange(levels, dtype=torch.float64)).float()


class DiscretizedLogistics(TorchDistribution):
    """Codes by mixtures of logistic laws on [-1, 1], whose mass next to each level is the level's.

    Source: Salimans et al., "PixelCNN++", ICLR 2017, section 2.1; without its dependence between
    channels.

    Args:
        parameters: (n, 3 M, C, H, W): log-weights, locations and log-scales of M components.
        levels: their number; the outermost ones have the tails too.
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012  # as torch has it

    def __init__(self, parameters: Tensor, levels: int) -> None:
        self.levels = levels
        logits, self.loc, log_scale = parameters.unflatten(1, (3, -1)).unbind(1)
        self.log_weights = logits.log_softmax(1)
        self.scale = log_scale.clamp_min(-7.0).exp()
        super().__init__(self.loc[:, 0].shape, validate_args=False)

    def log_prob(self, codes: Tensor) -> Tensor:
        """(n, C, H, W), nats."""
        codes, half_gap = codes.unsqueeze(1), 1 / (self.levels - 1)
        centred = 2 * half_gap * codes - 1 - self.loc
        upper, lower = (centred + half_gap) / self.scale, (centred - half_gap) / self.scale
        # σ(a) - σ(b) = σ(a) σ(-b) (1 - e^{b-a}), without a difference of what is nearly equal
        first, last = F.logsigmoid(upper), F.logsigmoid(-lower)
        inner = first + last + torch.log(-torch.expm1(-2 * half_gap / self.scale))
        terms = torch.where(codes == 0, first, torch.where(codes == self.levels - 1, last, inner))
        return (self.log_weights + terms).logsumexp(1)

    @torch.no_grad()
    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        """Codes (n, C, H, W); ``sample_shape`` must be empty."""
        chosen = dist.Categorical(logits=self.log_weights.movedim(1, -1)).sample().unsqueeze(1)
        loc, scale = (t.gather(1, chosen).squeeze(1) for t in (self.loc, self.scale))
        x = loc + scale * torch.logit(torch.rand_like(loc).clamp(1e-6, 1 - 1e-6))
        return ((x + 1) / 2 * (self.levels - 1)).round().clamp(0, self.levels - 1).long()


# -- autoregression --------------------------------------------------------------------------------


class PixelCNN(Peer):
    """Gated PixelCNN of grey images with a vertical and a horizontal stack and no blind spot.

    The vertical stack of a pixel sees the rows above it, the horizontal one what is to its left and
    the vertical stack. Inputs are shifted down and to the right once, so that every convolution may
    see its own place. Pixels are told where they are, and logits start at the pixel's histogram.

    Source: van den Oord et al., "Conditional Image Generation with PixelCNN Decoders", NeurIPS
    2016; residual blocks, dropout and mixtures of logistics as in PixelCNN++.

    Args:
        prior: log π (1, H, W, levels), see :func:`log_histogram`.
        kernel: side of the square that masks are cut from, odd.
    """

    batch_size = 32
    learning_rate = 1e-2

    def __init__(
        self, prior: Tensor, width: int = 32, depth: int = 4, dropout: float = 0.3, kernel: int = 3
    ) -> None:
        super().__init__(tuple(prior.shape[:-1]), prior.shape[-1])
        if self.event_shape[0] != 1:
            raise ValueError(
                f"the PixelCNN here is of grey images, and these have {self.event_shape[0]} "
                "channels; leave it out with --only"
            )
        few = self.levels <= FEW_LEVELS
        self.register_buffer("offset", prior.movedim(-1, 1)[0] if few else torch.zeros(1, 1, 1))
        self.inlet = nn.Conv2d(2, width, 1)  # the value, and that there is one
        self.place = nn.Parameter(torch.zeros(width, *self.event_shape[1:]))
        self.blocks = nn.ModuleList(_GatedBlock(width, kernel, dropout) for _ in range(depth))
        self.outlet = nn.Conv2d(width, self.levels if few else 30, 1)
        nn.init.zeros_(self.outlet.weight)
        nn.init.zeros_(self.outlet.bias)
        if not few:  # ten components from black to white
            with torch.no_grad():
                self.outlet.bias[10:20] = torch.linspace(-1, 1, 10)
                self.outlet.bias[20:] = -2.0

    def law(self, codes: Tensor) -> Any:
        """Of every pixel given those before it, of batch shape (n, 1, h, W); h rows may be all."""
        x = self.scaled(codes)
        h = self.inlet(torch.cat([x, torch.ones_like(x)], 1))
        rows = h.shape[2]
        place = self.place[:, :rows]
        vertical = F.pad(h, (0, 0, 1, 0))[:, :, :-1] + place
        horizontal = F.pad(h, (1, 0))[..., :-1] + place
        for block in self.blocks:
            vertical, horizontal = block(vertical, horizontal)
        out = self.outlet(F.silu(horizontal))
        if self.levels > FEW_LEVELS:
            return DiscretizedLogistics(out.unsqueeze(2), self.levels)
        logits = (out + self.offset[:, :rows]).movedim(1, -1).unsqueeze(1)
        return dist.Categorical(logits=logits)

    def log_prob(self, codes: Tensor, draws: int = 1) -> Tensor:
        return self.law(codes).log_prob(codes).flatten(1).sum(1)

    def sample(self, n: int) -> Tensor:
        codes = torch.zeros(n, *self.event_shape, dtype=torch.long)
        for i in range(codes.shape[2]):
            for j in range(codes.shape[3]):
                drawn = self.law(codes[:, :, : i + 1]).sample()
                codes[:, :, i, j] = drawn[:, :, i, j]
        return codes


class _GatedBlock(nn.Module):
    """Residual and gated, in both stacks."""

    def __init__(self, width: int, kernel: int, dropout: float) -> None:
        super().__init__()
        half = kernel // 2
        self.around = (half, half, half, 0)  # left, right, above, below
        self.left = (half, 0)
        self.vertical = nn.ModuleList(
            nn.Conv2d(width, out, (half + 1, kernel)) for out in (width, 2 * width)
        )
        self.horizontal = nn.ModuleList(
            nn.Conv2d(width, out, (1, half + 1)) for out in (width, 2 * width)
        )
        self.across = nn.Conv2d(width, width, 1)
        self.dropout = nn.Dropout(dropout)

    def forward(self, vertical: Tensor, horizontal: Tensor) -> tuple[Tensor, Tensor]:
        first, second = self.vertical
        h = first(F.pad(F.silu(vertical), self.around))
        h = second(F.pad(self.dropout(F.silu(h)), self.around))
        vertical = vertical + _gated(h)
        first, second = self.horizontal
        h = first(F.pad(F.silu(horizontal), self.left)) + self.across(F.silu(vertical))
        h = second(F.pad(self.dropout(F.silu(h)), self.left))
        return vertical, horizontal + _gated(h)


def _gated(h: Tensor) -> Tensor:
    value, gate = h.chunk(2, 1)
    return value.tanh() * gate.sigmoid()


# -- latent variables ------------------------------------------------------------------------------


class VAE(Peer):
    """Variational autoencoder in Pyro: z ~ N(0, I), and pixels by discretized logistic laws.

    ``log_prob`` is the importance-weighted bound of ``draws`` samples of z; the loss is
    ``Trace_ELBO``.

    Source: Kingma & Welling, "Auto-Encoding Variational Bayes", ICLR 2014; the decoder's law is
    that of Kingma et al., "Improved Variational Inference with Inverse Autoregressive Flow", 2016;
    Burda et al., "Importance Weighted Autoencoders", ICLR 2016, eq. 8.
    """

    tells = "bound, 512 weights"
    draws = 512
    batch_size = 128
    learning_rate = 3e-3

    def __init__(
        self,
        event_shape: tuple[int, ...],
        levels: int,
        latent: int = 16,
        hidden: int = 512,
        components: int = 1,
        dropout: float = 0.2,
    ) -> None:
        super().__init__(event_shape, levels)
        self.latent, self.components = latent, components
        d = math.prod(event_shape)

        def mlp(inputs: int, outputs: int) -> nn.Sequential:
            middle = [nn.Linear(hidden, hidden), nn.SiLU(), nn.Dropout(dropout)]
            return nn.Sequential(
                *(nn.Linear(inputs, hidden), nn.SiLU(), nn.Dropout(dropout)),
                *middle,
                nn.Linear(hidden, outputs),
            )

        self.encoder, self.decoder = mlp(d, 2 * latent), mlp(latent, 3 * components * d)
        with torch.no_grad():
            bias = self.decoder[-1].bias.view(3, components, d)
            bias[0] = 0.0
            bias[1] = torch.linspace(-1, 1, components + 2)[1:-1, None]
            bias[2] = -1.0

    def model(self, codes: Tensor) -> None:
        with pyro.plate("images", len(codes)):
            z = pyro.sample("z", dist.Normal(torch.zeros(self.latent), 1.0).to_event(1))
            pyro.sample("x", self.law(z).to_event(3), obs=codes)

    def guide(self, codes: Tensor) -> None:
        loc, log_scale = self.encoder(self.scaled(codes).flatten(1)).chunk(2, 1)
        with pyro.plate("images", len(codes)):
            pyro.sample("z", dist.Normal(loc, log_scale.clamp(-7.0, 3.0).exp()).to_event(1))

    def law(self, z: Tensor) -> DiscretizedLogistics:
        """p(x | z) of every pixel."""
        parameters = self.decoder(z).unflatten(1, (3 * self.components, *self.event_shape))
        return DiscretizedLogistics(parameters, self.levels)

    def loss(self, codes: Tensor) -> Tensor:
        found = Trace_ELBO().differentiable_loss(self.model, self.guide, codes)
        return found / codes.numel()

    def log_prob(self, codes: Tensor, draws: int = 1) -> Tensor:
        log_weights = []
        for _ in range(draws):
            q = poutine.trace(self.guide).get_trace(codes)
            p = poutine.trace(poutine.replay(self.model, q)).get_trace(codes)
            p.compute_log_prob()
            q.compute_log_prob()
            p_z, p_x, q_z = (t.nodes[s]["log_prob"] for t, s in ((p, "z"), (p, "x"), (q, "z")))
            log_weights.append(p_z + p_x - q_z)
        return torch.stack(log_weights).logsumexp(0) - math.log(draws)

    def sample(self, n: int) -> Tensor:
        return self.law(torch.randn(n, self.latent)).sample()


# -- densities of dequantized data -----------------------------------------------------------------


def dequantized_log_prob(density: Any, codes: Tensor, levels: int, draws: int) -> Tensor:
    """Lower bound on the log-probability of codes by a density of w = (k + u)/levels, (n,), nats.

    The logarithm of the mean density over ``draws`` uniform u, less log levels for each dimension.

    Source: Theis, van den Oord & Bethge, "A Note on the Evaluation of Generative Models", ICLR
    2016; several draws as in Ho et al., "Flow++", ICML 2019, eq. 15.

    Args:
        density: log p of w (n, d), (n,).
    """
    flat = codes.flatten(1)
    found = [density((flat + torch.rand(flat.shape)) / levels) for _ in range(draws)]
    volume = math.log(draws) + flat.shape[1] * math.log(levels)
    return torch.stack(found).logsumexp(0) - volume


def zuko_flows() -> Any:
    """zuko.flows, or what to do without it."""
    try:
        import zuko.flows
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"the flow is zuko's, which is not installed; run pip install {ZUKO!r}, or leave it "
            "out with --only",
            name=error.name,
        ) from error
    return zuko.flows


class Flow(Peer):
    """zuko's neural spline flow, autoregressive, of uniformly dequantized images.

    w in [0, 1] fills the interval [-5, 5] on which zuko's splines are.

    Source: Durkan et al., "Neural Spline Flows", NeurIPS 2019; zuko, https://zuko.readthedocs.io.
    """

    tells = "bound, 256 dequantizations"
    draws = 256
    batch_size = 128
    learning_rate = 6e-3
    weight_decay = 1.0

    def __init__(
        self,
        event_shape: tuple[int, ...],
        levels: int,
        transforms: int = 3,
        hidden: int = 128,
        bins: int = 16,
    ) -> None:
        super().__init__(event_shape, levels)
        d = math.prod(event_shape)
        self.flow = zuko_flows().NSF(
            d, transforms=transforms, bins=bins, hidden_features=[hidden, hidden]
        )

    def log_density(self, w: Tensor) -> Tensor:
        """log p(w), (n,), of w (n, d)."""
        return self.flow().log_prob(10 * w - 5) + w.shape[1] * math.log(10)

    def log_prob(self, codes: Tensor, draws: int = 1) -> Tensor:
        return dequantized_log_prob(self.log_density, codes, self.levels, draws)

    def sample(self, n: int) -> Tensor:
        w = (self.flow().sample((n,)) + 5) / 10
        codes = (w * self.levels).floor().clamp(0, self.levels - 1).long()
        return codes.unflatten(1, self.event_shape)


class Mixture(Peer):
    """scikit-learn's Gaussian mixture of uniformly dequantized images.

    Each image is seen with ``copies`` dequantizations.
    """

    tells = "bound, 256 dequantizations"
    draws = 256

    def __init__(
        self,
        train: Tensor,
        levels: int,
        components: int,
        covariance: str,
        seed: int,
        copies: int = 4,
    ) -> None:
        super().__init__(tuple(train.shape[1:]), levels)
        flat = train.flatten(1).repeat(copies, 1)
        w = (flat + torch.rand(flat.shape)).double() / levels  # float32 has covariances below 0
        # variances are kept from 0: a uniform law within a level has this one
        floor = 1 / (12 * levels**2)
        self.mixture = GaussianMixture(
            components, covariance_type=covariance, reg_covar=floor / 10, random_state=seed
        ).fit(w.numpy())

    def log_prob(self, codes: Tensor, draws: int = 1) -> Tensor:
        def density(w: Tensor) -> Tensor:
            return torch.from_numpy(self.mixture.score_samples(w.double().numpy()))

        return dequantized_log_prob(density, codes, self.levels, draws)

    def sample(self, n: int) -> Tensor:
        w = torch.from_numpy(self.mixture.sample(n)[0])
        w = w[torch.randperm(n)]  # it draws one component after the other
        codes = (w * self.levels).floor().clamp(0, self.levels - 1).long()
        return codes.unflatten(1, self.event_shape)

    @property
    def num_parameters(self) -> int:
        """Free ones: covariances are symmetric."""
        found, d = self.mixture, math.prod(self.event_shape)
        covariances = found.covariances_.size
        if found.covariance_type != "diag":
            covariances = covariances * (d + 1) // (2 * d)
        return found.weights_.size - 1 + found.means_.size + int(covariances)


class Histogram(Peer):
    """Independent pixels, each by its smoothed histogram: what the discrete denoiser starts as."""

    def __init__(self, train: Tensor, levels: int) -> None:
        super().__init__(tuple(train.shape[1:]), levels)
        self.law = dist.Categorical(logits=log_histogram(train, levels))

    def log_prob(self, codes: Tensor, draws: int = 1) -> Tensor:
        return self.law.log_prob(codes).flatten(1).sum(1)

    def sample(self, n: int) -> Tensor:
        return self.law.sample((n,))

    @property
    def num_parameters(self) -> int:
        return math.prod(self.event_shape) * (self.levels - 1)


# -- another diffusion -----------------------------------------------------------------------------


class FourierFeatures(nn.Module):
    """A network that sees sin and cos of 2^n π x beside x, of the two finest n that tell levels.

    Source: Kingma et al., "Variational Diffusion Models", NeurIPS 2021, appendix C.

    Args:
        network: of 5 times the channels of x.
        levels: on [-1, 1]; the shorter period is about their distance.
    """

    def __init__(self, network: nn.Module, levels: int) -> None:
        super().__init__()
        self.network = network
        finest = round(math.log2(levels - 1))
        self.frequencies = [2 ** (finest - 1) * math.pi, 2**finest * math.pi]

    def forward(self, x: Tensor, log_snr: Tensor) -> Tensor:
        angles = [f * x for f in self.frequencies]
        told = [x, *(angle.sin() for angle in angles), *(angle.cos() for angle in angles)]
        out: Tensor = self.network(torch.cat(told, 1), log_snr)
        return out


def variational_diffusion(problem: ImageProblem, diffusion: Diffusion) -> NoisePrediction:
    """The score of Kingma et al. 2021, as ``--score``: noise prediction by the problem's network.

    With it the problem's decoder is their discretized Gaussian one.
    """
    C = problem.event_shape[0]
    return NoisePrediction(FourierFeatures(problem.network(5 * C, C), problem.num_levels))
