"""Networks of other packages as denoisers, by the configurations of these packages.

None of the packages is imported: attributes of their objects are read.
"""

from __future__ import annotations

from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from pyro_mdm.imported.denoiser import ImportedDenoiser, ImportOptions, Prediction, tensor_of
from pyro_mdm.imported.schedules import NoiseSchedule
from pyro_mdm.support.checks import checked_arguments, describe
from pyro_mdm.support.settings import Restorable

__all__ = [
    "EDMPreconditioned",
    "Labelled",
    "from_azula",
    "from_denoising_diffusion",
    "from_diffusers",
    "from_sigma_denoiser",
    "from_velocity",
]

_PREDICTIONS: dict[str, Prediction] = {
    "epsilon": "noise",
    "sample": "data",
    "v_prediction": "v",
    "pred_noise": "noise",
    "pred_x0": "data",
    "pred_v": "v",
}


class Scheduler(Protocol):
    """A scheduler of ``diffusers``."""

    config: Any


class GaussianProcess(Protocol):
    """A ``GaussianDiffusion`` of ``denoising_diffusion_pytorch``."""

    model: nn.Module
    betas: Tensor
    objective: str

    def normalize(self, x: Tensor, /) -> Tensor:
        """The network's data for data x of the process, like x."""


class ScheduledDenoiser(Protocol):
    """A denoiser of ``azula``."""

    def schedule(self, t: Tensor, /) -> tuple[Tensor, Tensor]:
        """α and σ, (n,), at times, (n,), from 0 to 1."""


@checked_arguments
def from_diffusers(
    model: nn.Module,
    scheduler: Scheduler,
    train_x: Tensor,
    *,
    interpolated: bool = False,
    **options: Unpack[ImportOptions],
) -> ImportedDenoiser:
    """A denoiser by a network of ``diffusers`` and the scheduler that it was trained with.

    Schedulers are those with ``alphas_cumprod`` (DDPM, DDIM, DPM-Solver and others), of EDM, and of
    flow matching.

    Args:
        model: the network, such as ``UNet2DModel`` or a DiT, called with a state and a time.
        scheduler: the scheduler.
        train_x: data, (N, *event_shape), for the baseline.
        interpolated: whether the network, of a scheduler with ``alphas_cumprod``, takes times
            between whole ones; False: the nearest whole time is taken.
        options: shift, scale, call, context_size and learned_variance of
            :class:`ImportedDenoiser`.

    Raises:
        TypeError: a scheduler of another kind.
        ValueError: an unknown prediction.

    Example:
        >>> from types import SimpleNamespace  # in the place of diffusers.DDPMScheduler
        >>> from pyro_mdm.networks import MLP
        >>> kept = torch.linspace(0.999, 0.001, 100)
        >>> config = SimpleNamespace(prediction_type="v_prediction")
        >>> scheduler = SimpleNamespace(config=config, alphas_cumprod=kept)
        >>> from_diffusers(MLP(2), scheduler, torch.randn(100, 2)).predicts
        'v'
    """
    config = scheduler.config
    prediction = getattr(config, "prediction_type", "epsilon")
    kept = getattr(scheduler, "alphas_cumprod", None)
    if kept is not None:
        predicts = _prediction(prediction)
        kept = kept.double().cpu()
        falls = torch.cat([kept[:1] > 0, kept[1:] < kept.cummin(0).values[:-1]])
        numbers, kept = falls.nonzero()[:, 0], kept[falls]  # near 1, float32 has ties
        alpha, sigma = kept.sqrt(), (1 - kept).sqrt()
        schedule = NoiseSchedule(numbers, alpha, sigma, discrete=not interpolated)
        return ImportedDenoiser.fit(model, train_x, schedule, predicts, **options)
    if hasattr(config, "sigma_data") and _is_of_edm(scheduler):
        if prediction not in ("epsilon", "v_prediction"):
            raise ValueError(
                f"a scheduler of EDM predicts {prediction!r}, expected 'epsilon' or 'v_prediction'"
            )
        network = EDMPreconditioned(
            model, config.sigma_data, sign=1 if prediction == "epsilon" else -1
        )
        return from_sigma_denoiser(network, train_x, config.sigma_min, config.sigma_max, **options)
    is_flow = hasattr(scheduler, "sigmas") and hasattr(config, "shift")
    if is_flow and not getattr(config, "invert_sigmas", False):
        line = NoiseSchedule.flow(data_at=0)
        times = config.num_train_timesteps * line.time
        schedule = NoiseSchedule(
            times, line.alpha, line.sigma, alpha_rate=line.alpha_rate, sigma_rate=line.sigma_rate
        )
        return ImportedDenoiser.fit(model, train_x, schedule, "velocity", **options)
    raise TypeError(
        f"scheduler is {describe(scheduler)}, expected one with alphas_cumprod, of EDM or of flow "
        "matching; for others, make a NoiseSchedule and an ImportedDenoiser"
    )


class EDMPreconditioned(Restorable, nn.Module):
    """The denoiser ``D(w, σ) = c_skip w + c_out F(c_in w, log σ / 4)`` of a raw network F of EDM.

    Args:
        network: the network F, called with its input and log σ / 4, (n,).
        sigma_data: the standard deviation of the data that it was trained for.
        sign: the sign of c_out, 1 or -1 where the network predicts the opposite.

    Source: Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models",
    NeurIPS 2022, table 1.

    Example:
        >>> from pyro_mdm.networks import MLP
        >>> D = EDMPreconditioned(MLP(2))
        >>> D(torch.randn(5, 2), torch.full((5,), 0.1)).shape
        torch.Size([5, 2])
    """

    @checked_arguments
    def __init__(self, network: nn.Module, sigma_data: float = 0.5, *, sign: int = 1) -> None:
        super().__init__()
        self.network, self.sigma_data, self.sign = network, float(sigma_data), sign

    def forward(self, w: Tensor, sigma: Tensor, *context: Tensor) -> Tensor:
        s = sigma.reshape(-1, *[1] * (w.dim() - 1))
        total = s**2 + self.sigma_data**2
        F = tensor_of(self.network(w * total.rsqrt(), sigma.log() / 4, *context), self.network)
        c_out = self.sign * s * self.sigma_data * total.rsqrt()
        return self.sigma_data**2 / total * w + c_out * F


@checked_arguments
def from_sigma_denoiser(
    network: nn.Module, train_x: Tensor, least: float, most: float, **options: Unpack[ImportOptions]
) -> ImportedDenoiser:
    """A denoiser by a function D(w, σ) of w = x + σ ε, as of EDM, k-diffusion or deepinv.

    Args:
        network: the function D, called with w, (n, *event_shape), and σ, (n,).
        train_x: data, (N, *event_shape), for the baseline.
        least, most: the range of σ that it was trained for, in units of the data; EDM's is 0.002 to
            80.
        options: options of :class:`ImportedDenoiser`.

    Example:
        >>> from pyro_mdm.networks import MLP
        >>> denoiser = from_sigma_denoiser(MLP(2), torch.randn(100, 2), 0.002, 80.0)
        >>> round(denoiser.trained_max.item(), 2)
        12.43
    """
    schedule = NoiseSchedule.from_sigmas(least, most)
    return ImportedDenoiser.fit(network, train_x, schedule, "data", **options)


@checked_arguments
def from_velocity(
    network: nn.Module,
    train_x: Tensor,
    *,
    data_at: float = 1.0,
    **options: Unpack[ImportOptions],
) -> ImportedDenoiser:
    """A denoiser by the velocity of a flow on straight lines between noise and data.

    Noise and data must be drawn independently of each other. Where they are paired, as by optimal
    transport (``ExactOptimalTransportConditionalFlowMatcher``) or for a reflow, or paths have noise
    of their own, the velocity still carries noise to the data, but no score or denoiser follows
    from it: what is read as x̂ is an end of a path, and no mean. Bounds hold and are far off, and
    samples, densities and conditionals are not those of the flow. ``check_import`` says so where
    pairs are close.

    Args:
        network: the velocity, called with w, (n, *event_shape), and t, (n,).
        train_x: data, (N, *event_shape), for the baseline.
        data_at: the time of the data: 1 for ``torchcfm`` and ``flow_matching``, 0 for rectified
            flows of images.
        options: options of :class:`ImportedDenoiser`: ``time="first"`` for the U-Net of
            ``torchcfm``, ``time="column"`` for its ``MLP``.

    Example:
        >>> from pyro_mdm.networks import MLP
        >>> denoiser = from_velocity(MLP(2), torch.randn(100, 2))
        >>> denoiser.x_hat(torch.randn(5, 2), log_snr=0.0).shape
        torch.Size([5, 2])
    """
    schedule = NoiseSchedule.flow(data_at=data_at)
    return ImportedDenoiser.fit(network, train_x, schedule, "velocity", **options)


@checked_arguments
def from_azula(
    denoiser: ScheduledDenoiser, train_x: Tensor, **options: Unpack[ImportOptions]
) -> ImportedDenoiser:
    """A denoiser by one of ``azula``, which has its schedule and returns p(x | w) with a mean.

    Args:
        denoiser: the azula ``Denoiser``, with ``schedule``.
        train_x: data, (N, *event_shape), for the baseline.
        options: options of :class:`ImportedDenoiser`.

    Example:
        >>> class Prior(nn.Module):  # in the place of an azula.denoise.Denoiser
        ...     def schedule(self, t):
        ...         return 1 - t, t
        ...     def forward(self, w, t):
        ...         return torch.distributions.Normal(torch.zeros_like(w), 1.0)
        >>> from_azula(Prior(), torch.randn(100, 2)).predicts
        'data'
    """
    schedule = NoiseSchedule.from_functions(
        lambda t: denoiser.schedule(t)[0].reshape(t.shape),
        lambda t: denoiser.schedule(t)[1].reshape(t.shape),
    )
    return ImportedDenoiser.fit(cast(nn.Module, denoiser), train_x, schedule, "data", **options)


def from_denoising_diffusion(
    process: GaussianProcess, train_x: Tensor, **options: Unpack[ImportOptions]
) -> ImportedDenoiser:
    """A denoiser by a ``GaussianDiffusion`` of ``denoising_diffusion_pytorch``.

    Its network sees data from -1 to 1; x are data as the process takes them, from 0 to 1 unless it
    was made with ``auto_normalize=False``. A ``LearnedGaussianDiffusion`` is trained to predict
    noise whatever its objective is named; the variance that it learns is not used.

    Args:
        process: the ``GaussianDiffusion``, whose ``model``, ``betas`` and ``objective`` are read.
        train_x: data, (N, *event_shape), for the baseline.
        options: options of :class:`ImportedDenoiser`.

    Raises:
        TypeError: another process, of continuous time or of σ.

    Example:
        >>> from types import SimpleNamespace  # in the place of a GaussianDiffusion
        >>> from pyro_mdm.networks import MLP
        >>> process = SimpleNamespace(
        ...     model=MLP(2),
        ...     betas=torch.linspace(1e-4, 0.02, 100),
        ...     objective="pred_noise",
        ...     normalize=lambda x: 2 * x - 1,
        ... )
        >>> from_denoising_diffusion(process, torch.rand(100, 2)).scale
        2.0
    """
    if not hasattr(process, "betas") or not hasattr(process, "objective"):
        raise TypeError(
            f"process is {describe(process)}, expected a GaussianDiffusion with betas and an "
            "objective; read an ElucidatedDiffusion by from_sigma_denoiser and EDMPreconditioned, "
            "and one of continuous time by an ImportedDenoiser with NoiseSchedule.from_functions"
        )
    start, end = process.normalize(torch.tensor([0.0, 1.0])).tolist()
    scale = end - start
    shift = -start / scale
    schedule = NoiseSchedule.from_betas(process.betas)
    learned_variance = hasattr(process, "vb_loss_weight")
    options = {"shift": shift, "scale": scale, "learned_variance": learned_variance} | options
    predicts = "noise" if learned_variance else _prediction(process.objective)
    return ImportedDenoiser.fit(process.model, train_x, schedule, predicts, **options)


def _is_of_edm(scheduler: object) -> bool:
    """Whether the scheduler gives networks log σ / 4, as EDM does."""
    noise = getattr(scheduler, "precondition_noise", None)
    sigma = torch.tensor([0.1, 3.0])
    return noise is not None and torch.allclose(noise(sigma), sigma.log() / 4, atol=1e-5)


def _prediction(name: str) -> Prediction:
    if name not in _PREDICTIONS:
        raise ValueError(
            f"the network predicts {name!r}, expected one of {', '.join(_PREDICTIONS)}; for "
            "others, make an ImportedDenoiser"
        )
    return _PREDICTIONS[name]


class Labelled(Restorable, nn.Module):
    """A network that is called with class labels, as one with one-hot contexts.

    Its ``context_size`` is the number of classes.

    Args:
        network: the network, called with w, the time and labels, (n,), whole numbers.
        unknown: the label of data of unknown class, whose context is all zeros; None: the network
            has no such label.
        argument: the name of the network's argument for labels.

    Example:
        >>> class Shift(nn.Module):
        ...     def forward(self, w, time, class_labels):
        ...         return w + class_labels[:, None]
        >>> one_hot = torch.tensor([[0.0, 1.0], [0.0, 0.0]])
        >>> Labelled(Shift(), unknown=2)(torch.zeros(2, 1), torch.zeros(2), one_hot)
        tensor([[1.],
                [2.]])
    """

    @checked_arguments
    def __init__(
        self, network: nn.Module, unknown: int | None = None, argument: str = "class_labels"
    ) -> None:
        super().__init__()
        self.network, self.unknown, self.argument = network, unknown, argument

    def forward(self, w: Tensor, time: Tensor, context: Tensor) -> Any:
        """The output of the network for w, (n, *event_shape), times, (n,), and contexts, (n,
        classes)."""
        labels = context.argmax(1)
        if self.unknown is not None:
            labels = torch.where(context.any(1), labels, self.unknown)
        return self.network(w, time, **{self.argument: labels})
