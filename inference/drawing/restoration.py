"""One image restored from what was measured of it: draws, intervals, and the way from noise."""

from __future__ import annotations

import io
import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from inference.drawing.observations import Observation
from inference.drawing.sampling import Sampling, default_sampler, draw, make_sampler
from inference.drawing.trajectory import trajectory
from inference.settings.names import takes
from pyro_mdm import DiffusionModel
from pyro_mdm.conditioning import WindowedDenoiser, windowed
from pyro_mdm.measurements import Mask, condition_on_measurements
from pyro_mdm.support.checks import tensor_device
from pyro_mdm.support.modules import evaluating

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from typing_extensions import Unpack

__all__ = ["INTERVAL", "Restoration", "ends_of", "interval_ends", "restoration"]

INTERVAL = 0.9
"""The level of the intervals of pixels."""
LEVELS = 6
"""The number of pictures of the way from noise."""


def ends_of(num_samples: int) -> int:
    """The number k such that the k-th samples from below and above are the ends of an interval."""
    # (1 - 0.9) / 2 * 20 is 0.9999999999999998 in float64
    return math.floor((1 - INTERVAL) / 2 * (num_samples + 1) + 1e-9)


def interval_ends(samples: Tensor) -> tuple[Tensor, Tensor]:
    """The lower and the upper end of the 90% interval of each pixel, of samples (S, …)."""
    k = ends_of(len(samples))
    ordered = samples.sort(0).values
    return ordered[k - 1], ordered[-k]


class Restoration(NamedTuple):
    """An image of which only a measurement is known, in model space, on the CPU."""

    observation: Observation
    noise: float
    samples: Tensor  # (S, C, H, W)
    way: Tensor  # (L, C, H, W), x̂ of the first sample at some levels; none of samplers of one's own
    log_snr: Tensor  # (L,), those levels
    windows: int  # of the network's size; 1 where it is the image's

    def summary(self) -> str:
        """What can be said of it without the truth, in words.

        Where operator, noise and network are those of the image, a draw's residual obs - H x has
        the law of the noise, whatever the network leaves open: its root mean square is that of the
        noise, with a relative standard deviation of 1/√(2 m) for m observations at most.
        """
        _, obs, operator = self.observation
        rest = float((operator(self.samples.double()) - obs).square().mean().sqrt())
        lower, upper = interval_ends(self.samples)
        half = (upper - lower).double() / 2
        beside = f"obs - H x of a draw is {rest:.3g}"
        if self.noise > 0:
            beside += (
                f", {rest / self.noise:.2f} times the noise (exact draws with the right operator, "
                f"noise and network have 1 ± {1 / math.sqrt(2 * obs.numel()):.2f})"
            )
        parts = {"": half}
        if isinstance(operator, Mask):
            seen = operator.seen
            parts = {" where it is not seen": half[~seen], " where it is seen": half[seen]}
        widths = ", ".join(
            f"{float(width.mean()):.3g}{where} (at most {float(width.max()):.3g})"
            for where, width in parts.items()
            if width.numel()
        )
        by = "" if self.windows == 1 else f", by {self.windows} overlapping windows"
        return (
            f"{self.observation.name}: {len(self.samples)} draws of "
            f"{'×'.join(map(str, self.samples.shape[1:]))} pixels{by}; {beside}; half-width of the "
            f"{INTERVAL:.0%} intervals, on average: {widths}"
        )

    def page(self) -> Figure:
        """A page of pictures, see :mod:`pyro_mdm.plots.restorations`."""
        from pyro_mdm.plots.restorations import restoration_figure  # loads matplotlib

        name, obs, operator = self.observation
        masked = isinstance(operator, Mask)
        shown = operator.adjoint(obs) if masked else obs
        picture = shown.dim() == 3 and shown.shape[0] in (1, 3)
        lower, upper = interval_ends(self.samples)
        return restoration_figure(
            shown if picture else shown.flatten(),
            operator.seen.all(0) if isinstance(operator, Mask) else None,
            self.samples,
            (upper - lower) / 2,
            self.way,
            self.log_snr.tolist(),
            title=f"{name}, noise {self.noise:g}",
            interval=f"{INTERVAL:.0%}",
        )

    def arrays(self) -> bytes:
        """The content of an .npz file: all of it, with pixels from -1 to 1."""
        lower, upper = interval_ends(self.samples)
        values: dict[str, Tensor] = {
            "measured": self.observation.obs,
            "noise": torch.tensor(self.noise),
            "draws": self.samples,
            "mean": self.samples.double().mean(0).to(self.samples.dtype),
            "lower": lower,
            "upper": upper,
            "way": self.way,
            "way_log_snr": self.log_snr,
        }
        if isinstance(self.observation.operator, Mask):
            values["seen"] = self.observation.operator.seen
        buffer = io.BytesIO()
        arrays: Any = {name: value.numpy() for name, value in values.items()}
        np.savez_compressed(buffer, **arrays)
        return buffer.getvalue()


def restoration(
    model: DiffusionModel,
    observation: Observation,
    noise: float,
    num_samples: int,
    *,
    data: Tensor,
    **options: Unpack[Sampling],
) -> Restoration:
    """Posterior samples of an image; of one larger than the network's, by overlapping windows.

    Args:
        noise: the standard deviation of the measurement's noise.
        data: data that the network was trained on, in model space, (N, C, h, w).
        options: as for :func:`~inference.drawing.sampling.draw`; the draws of an image depend on no
            other image. The batch size is the number of images, or of windows of the network's
            size, that are computed together, roughly.

    Raises:
        TypeError, ValueError: see :func:`~pyro_mdm.conditioning.windowed` and
            :func:`~pyro_mdm.measurements.condition_on_measurements`.
    """
    _, obs, operator = observation
    if operator.event_shape[:1] == model.event_shape[:1] and len(operator.event_shape) == 3:
        model = windowed(model, operator.event_shape[1:])  # others are refused next
    score = model.score_function
    windows = len(score.windows) if isinstance(score, WindowedDenoiser) else 1
    given = condition_on_measurements(model, operator, obs, noise**2, data=data)
    options["batch_size"] = max(1, options.get("batch_size", 256) // windows)
    x = draw(given, num_samples, **options)
    way, log_snr = _way(given, options.get("sampler"), options.get("steps"), options.get("seed", 0))
    operator.cpu()
    return Restoration(observation, noise, x, way, log_snr, windows)


@torch.no_grad()
def _way(
    given: DiffusionModel, name: str | None, steps: int | None, seed: int
) -> tuple[Tensor, Tensor]:
    """x̂ of the first sample, (L, C, H, W), at levels from noise to data, and these, (L,)."""
    name = default_sampler(given) if name is None else name
    sampler = make_sampler(name, steps, given.diffusion, given.score_function)
    if not takes(sampler, "watch"):
        return torch.zeros(0, *given.event_shape), torch.zeros(0)
    states = trajectory(given, 1, sampler, seed)
    chosen = torch.linspace(0, len(states) - 1, min(LEVELS, len(states))).round().long().tolist()
    device = tensor_device(given.score_function)
    pictures, levels = [], []
    with evaluating(given):
        for s, y in (states[i] for i in chosen):
            at = torch.as_tensor(s).to(given.diffusion.start_time)
            x_hat = given.bound_score.denoise(y.to(device, given.bound_score.dtype), at.expand(1))
            pictures.append(x_hat.float().cpu())
            levels.append(float(given.diffusion.log_snr(at)))
    return torch.cat(pictures), torch.tensor(levels)
