r"""How far bounds of a model are below its log p(x), by data that it draws with their paths.

A path that a model draws with its datum is an exact draw of the posterior of paths given the datum.
So log p(path, x) - log q(path | x) of it bounds log p(x) from above in expectation, as it does from
below for paths of the guide. Over data of the model the two differ by KL(p | q) + KL(q | p), which
the bound's own gap KL(q | p) never exceeds. With S weights the drawn path takes the place of one
noising path: the inverse of the mean weight is then unbiased for 1 / p(x). Both sides need a
density of whole paths, which a chain on a grid has.

Source: Grosse, Ghahramani & Adams, "Sandwiching the marginal likelihood using bidirectional Monte
Carlo", 2015; Grosse, Ancha & Roy, "Measuring the reliability of MCMC inference with bidirectional
Monte Carlo", 2016.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pyro_mdm.elbo import check_programs
from pyro_mdm.evaluation.importance import path_weights
from pyro_mdm.guide import DiffusionGuide
from pyro_mdm.model import DiffusionModel
from pyro_mdm.paths.chain import GenerativeChain
from pyro_mdm.paths.likelihood import chain_of, log_mean_weight, path_weight
from pyro_mdm.support.argument_types import Count, Several, checked_arguments
from pyro_mdm.support.measured import Measured
from pyro_mdm.support.modules import evaluating

__all__ = ["Gap", "bound_gap", "drawn_with_paths"]


class Gap(NamedTuple):
    """Bounds on log p(data) from both sides, nats, and what is between them."""

    lower: Measured  # by draws of the guide
    upper: Measured  # by draws of the posterior
    gap: Measured  # upper - lower, paired by data set where data are simulated
    data_sets: int  # number of simulated data sets; 0: the program's data, by draws handed over

    @classmethod
    def of_simulated(cls, lower: Tensor, upper: Tensor) -> Gap:
        """The gap by the bounds of simulated data sets, (n,) each, nats."""
        below, above = Measured.from_values(lower), Measured.from_values(upper)
        return cls(below, above, Measured.from_values(upper - lower), len(lower))

    def __repr__(self) -> str:
        by = "if the draws are exact: an estimate, no bound"
        if self.data_sets:
            by = f"in the mean of {self.data_sets} simulated data sets"
        return f"{self.lower} ≤ log p(data) ≤ {self.upper} nats, {self.gap} between, {by}"


@checked_arguments
def bound_gap(
    model: DiffusionModel,
    guide: DiffusionGuide,
    *,
    simulated: Several = 64,
    samples: Count = 1,
    times: int | Tensor | None = None,
    seed: int = 0,
    progress: bool = False,
) -> Gap:
    """The gap of bounds on log p(x), by data that the model draws with their paths.

    With one sample it is that of :func:`~pyro_mdm.bound`, and with more that of
    :func:`importance_weighted`, for the chain on a grid. Over data of the chain, the mean distance
    of its bound from its log p(x) is at most the gap. On other data the bound may be further off.

    Args:
        model: generative program over a diffusion in closed form.
        guide: noising program over the same diffusion.
        simulated: number of data that the model draws, 2 at least; as many as its contexts where
            these are given.
        samples: number S of paths for each datum.
        times: grid: a number N of times, or the times from ε to T, (N,); by default those of a
            model that is a chain, else 65.
        seed: seed of data and noise; the caller's random state stays as it is.
        progress: whether to show a progress bar.

    Returns:
        :class:`Gap`, nats per datum.

    Raises:
        ValueError: a diffusion without closed-form kernels, numbers below their least.
        KernelPrecisionError: a grid whose steps float64 does not resolve.

    Example:
        >>> from pyro_mdm import CLD, Denoiser
        >>> from pyro_mdm.networks import MLP
        >>> model = DiffusionModel(CLD(max_log_snr=6.0), Denoiser.fit(MLP(2), torch.randn(64, 2)))
        >>> result = bound_gap(model, DiffusionGuide(model.diffusion), simulated=8, times=9)
        >>> result.lower.mean < result.upper.mean
        True
    """
    check_programs(model, guide)
    model.check_given(torch.empty(simulated, *model.event_shape))
    model = model.without_context()
    chain = chain_of(model, model.times if times is None else times)
    start = model.diffusion.start_time
    devices = [start.device] if start.device.type == "cuda" else []
    with evaluating(model), torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        path, x = drawn_with_paths(model, chain, simulated)
        exact = path_weight(model, chain, guide.law(x.double(), chain.times), x, path).cpu()
    noised = path_weights(model, guide, chain, x, samples, seed, progress)
    with_exact = torch.cat([exact[None], noised[1:]])
    return Gap.of_simulated(log_mean_weight(noised), log_mean_weight(with_exact))


def drawn_with_paths(
    model: DiffusionModel, chain: GenerativeChain, n: int
) -> tuple[Tensor, Tensor]:
    """Paths (n, N, K, *event_shape) in float64, and the data (n, *event_shape) at their ends."""
    path = chain.sample_in_float64(n)
    y = path[:, 0].to(model.bound_score.dtype)
    decoder = model.likelihood(model.diffusion, chain.score, y, len(model.event_shape))
    return path, decoder.sample()
