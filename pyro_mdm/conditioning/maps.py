r"""Maps of log SNR at which a denoiser is trained, so that one network has every conditional.

A dimension of a datum is *observed* (log SNR +∞), *left out* (-∞) or *generated* (between). A
denoiser x̂(z, λ) trained at random maps serves any later choice: samples of, and bounds on, the
generated dimensions given the observed ones. The conditionals of a network that is not exact need
not come from one joint distribution.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

import pyro_mdm.randomness as randomness
from pyro_mdm.diffusions.base import Cap, UnsupportedDiffusionError
from pyro_mdm.diffusions.closed import Kernels, noised_data
from pyro_mdm.scores.denoiser import DenoiserScore, TrainingMaps
from pyro_mdm.support.checks import Count, check_number, checked_arguments
from pyro_mdm.support.modules import cached_on
from pyro_mdm.support.settings import Recorded

__all__ = ["LEFT_OUT", "OBSERVED", "Maps", "Missing", "RandomMaps"]

OBSERVED, LEFT_OUT = float("inf"), float("-inf")
"""Log SNRs of observed dimensions, and of those that are left out."""


Missing = Literal["skip", "leave_out"]
"""The treatment of data with missing entries in training, see :class:`RandomMaps`."""


class Maps(NamedTuple):
    """Maps of log SNR, and the weights of squared errors there."""

    log_snr: Tensor  # λ (n, *event_shape) float64, +∞ observed, -∞ left out
    weight: Tensor  # w (n, *event_shape) float64: the loss is Σ_j w_j ½ e^λ_j (x_j - x̂_j)²


class RandomMaps(TrainingMaps, Recorded):
    r"""A distribution with three kinds of map of log SNR, one for each datum, by their shares.

    - ``levels``: all dimensions at one log SNR, uniform: the term is that of log p(x).
    - ``subsets``: every dimension is generated, observed or left out, by probabilities that are
      uniform on the simplex; the generated ones are at one log SNR, uniform. The term is that of
      log p(x_u | x_o), times d over the number of generated dimensions.
    - ``independent``: every dimension has a log SNR of its own, uniform.

    The terms of the first two are unbiased estimates of their bounds. All are of one size, so that
    the loss is an average over kinds of task and no bound on log p(x) alone.

    A network that receives the map learns the distribution of the data that it saw there. So data
    with missing entries have a choice of two distributions of maps:

    - ``skip``: maps are drawn whatever is missing, and a datum that lacks an entry that its map
      observes or generates has the weight 0. Then x̂ at a map is that of p(x_u | x_o) where, given
      x_o, whether both are there does not depend on x_u. Few data are left for maps of many
      dimensions; :class:`~pyro_mdm.conditioning.Completions` uses all data, and is right wherever
      entries are missing at random.
    - ``leave_out``: missing entries are left out, d counts those that are present, and subsets are
      made of these. All data count, at maps of their present entries. That is right where entries
      are missing completely at random, and only there.

    With a ``window`` (b, a) terms have a weight that falls where there is little noise,

        w(λ) = 1 / (1 + e^{λ - a}),

    and λ is drawn with a density ∝ ``w(λ) / (1 + e^{b - λ})``, which has few terms of almost
    nothing but noise. The average over λ is then no bound. A window is for few data, which cannot
    teach the fine structure that makes most of the noise of gradients.

    Args:
        levels: share of maps with all dimensions at one log SNR, at least 0; the ratios of the
            three shares count.
        subsets: share of maps with dimensions generated, observed and left out, at least 0.
        independent: share of maps with a log SNR for every dimension, at least 0.
        window: log SNRs (b, a), b < a; None: λ is uniform.
        missing: treatment of data with missing entries, "skip" or "leave_out", as above.
        left_out: whether subsets leave dimensions out. If not, all that are not observed are
            generated, each with a probability that is uniform, which is all that conditionals of
            whole data ask for.
        shared: the number of data of a batch that have one map, whose work a network may share; for
            data with missing entries only where these are skipped.

    Raises:
        ValueError: a share below 0, or all equal to 0; a window that is empty; another word for
            what is missing.

    Example:
        >>> from pyro_mdm import Denoiser
        >>> from pyro_mdm.conditioning import RandomMaps
        >>> from pyro_mdm.networks import MLP
        >>> score = Denoiser.fit(MLP(4, out_features=2), torch.randn(100, 2), maps=True)
        >>> score.training_maps = RandomMaps(levels=0.5, subsets=0.5)
    """

    @checked_arguments
    def __init__(
        self,
        levels: float = 0.5,
        subsets: float = 0.4,
        independent: float = 0.1,
        window: tuple[float, float] | None = None,
        missing: Missing = "skip",
        left_out: bool = True,
        shared: Count = 1,
    ) -> None:
        shares = (levels, subsets, independent)
        for name, value in zip(("levels", "subsets", "independent"), shares, strict=True):
            check_number(name, value, "a share of the data of a batch, e.g. 0.5")
        if min(shares) < 0 or not sum(shares) > 0:
            raise ValueError(f"the shares are {shares}, expected none below 0 and one above")
        if window is not None and not window[0] < window[1]:
            raise ValueError(f"window is {window}, expected two log SNRs, the smaller one first")
        self.levels, self.subsets, self.independent = map(float, shares)
        self.window, self.missing, self.left_out = window, missing, left_out
        self.shared = shared

    def term(self, score: DenoiserScore, diffusion: Kernels, x: Tensor) -> tuple[Tensor, Tensor]:
        """Σ_j w_j ½ e^λ_j (x_j - x̂_j)² at random maps, (n,), and their mean λ over dimensions.

        Raises:
            UnsupportedDiffusionError: a diffusion with clocks by dimension, or learned ends.
        """
        low = diffusion.terminal_log_snr
        moves = low.requires_grad or diffusion.start_log_snr.requires_grad
        if moves or not {Cap.ONE_LEVEL, Cap.OWN_DRIFT} <= diffusion.caps:
            raise UnsupportedDiffusionError(
                f"training_maps is {self}, which would replace the clocks or learned ends of "
                f"{type(diffusion).__name__}; use a diffusion of one clock, whose "
                "min_log_snr is given and not learned, or leave out training_maps"
            )
        present = score.counts(x)
        present = None if present is None else present.expand_as(x)
        ends = low.item(), diffusion.max_log_snr
        drawn = self.draw(x.shape, *ends, x.device, present, score.groups)
        between = drawn.weight > 0  # elsewhere e^{±∞} times a weight of 0 would be NaN
        log_snr = torch.where(between, drawn.log_snr, 0.0)
        noise = randomness.normal(x.shape, x.dtype, x.device)
        z = torch.where(drawn.log_snr == OBSERVED, x, noised_data(x, log_snr, noise))
        square = (x - score.x_hat(z, drawn.log_snr)).square()
        weight = (0.5 * drawn.weight * log_snr.exp()).to(x.dtype)
        count = between.flatten(1).sum(1)
        level = (log_snr * between).flatten(1).sum(1) / count.clamp_min(1)
        return (weight * square).flatten(1).sum(1), level

    def draw(
        self,
        shape: Sequence[int],
        low: float,
        high: float,
        device: torch.device,
        present: Tensor | None = None,
        groups: Tensor | None = None,
    ) -> Maps:
        """Maps for n data, with log SNRs between λ(T) and λ(ε).

        Args:
            shape: shape of the data, (n, *event_shape).
            low: log SNR λ(T).
            high: log SNR λ(ε).
            device: device of the maps.
            present: mask of the entries that are present, bool, like the data; None: all. Missing
                ones have no weight.
            groups: index of the column of each dimension of vectors, (d,) int64; dimensions of one
                column have one log SNR and weight. None: each is its own.
        """
        if groups is not None:
            number = cached_on(groups, "number", lambda groups: int(groups.max()) + 1)
            groups = groups.to(device)
            if present is not None:
                present = present.new_empty(shape[0], number).index_copy_(1, groups, present)
            maps = self.draw((shape[0], number), low, high, device, present)
            return Maps(maps.log_snr[:, groups], maps.weight[:, groups])
        if present is not None and self.missing == "leave_out":
            return self._draw(shape, low, high, device, present)
        distinct = -(-shape[0] // self.shared)
        maps = self._draw((distinct, *shape[1:]), low, high, device, None)
        log_snr, weight = (v.repeat_interleave(self.shared, 0)[: shape[0]] for v in maps)
        if present is None:
            return Maps(log_snr, weight)
        lacking = (~present & (log_snr != LEFT_OUT)).flatten(1).any(1)
        weight = weight * ~lacking.reshape(-1, *[1] * (len(shape) - 1))
        return Maps(torch.where(present, log_snr, LEFT_OUT), weight)

    def _draw(
        self,
        shape: Sequence[int],
        low: float,
        high: float,
        device: torch.device,
        present: Tensor | None,
    ) -> Maps:
        """Maps of data whose missing entries are left out."""
        n, event = shape[0], tuple(shape[1:])
        total = self.levels + self.subsets + self.independent
        column = (n, *[1] * len(event))

        def uniform(*sizes: int) -> Tensor:
            return randomness.uniform((n, *sizes), torch.float64, device)

        one_for_all = randomness.low_discrepancy(n, device).reshape(column).expand(n, *event)
        kind = uniform().reshape(column) * total
        one_each = uniform(*event)
        # generated, observed or left out, by a uniform point of the simplex
        ends = uniform(2)
        if not self.left_out:
            ends[:, 1] = 1.0
        first, second = ends.sort(dim=1).values.reshape(n, 2, *[1] * len(event)).unbind(1)
        role, chosen = uniform(*event), uniform(*event)
        some = role < first
        if present is not None:
            some, chosen = some & present, torch.where(present, chosen, -1.0)
        none = ~some.flatten(1).any(1).reshape(column)
        some = some | (none & (chosen == chosen.flatten(1).amax(1).reshape(column)))  # at least 1
        observed = ~some & (role < second)

        of_subset = (kind >= self.levels) & (kind < self.levels + self.subsets)
        is_independent = kind >= self.levels + self.subsets
        generated = some | ~of_subset
        if present is not None:
            generated, observed = generated & present, observed & present
        u = torch.where(is_independent, one_each, one_for_all)
        log_snr, weight = self._spread(u, low, high)
        log_snr = torch.where(of_subset & observed, OBSERVED, log_snr)
        left_out = of_subset & ~generated & ~observed
        size: Tensor | int = generated[0].numel()
        if present is not None:
            left_out = left_out | ~present
            size = present.flatten(1).sum(1).reshape(column)
        log_snr = torch.where(left_out, LEFT_OUT, log_snr)
        count = generated.expand(n, *event).flatten(1).double().sum(1).reshape(column)
        return Maps(log_snr, weight * generated * (size / count.clamp_min(1)))

    def _spread(self, u: Tensor, low: float, high: float) -> tuple[Tensor, Tensor | float]:
        """Log SNRs at the quantiles u in [0, 1) of their distribution, and w(λ) / density there."""
        if self.window is None:
            return low + (high - low) * u, high - low
        b, a = self.window

        def below(log_snr: float) -> float:  # the integral of the density, up to a factor
            return _softplus(log_snr - b) - _softplus(log_snr - a)

        start, mass = below(low), below(high) - below(low)
        S = start + mass * u
        log_snr = b + (S.expm1() / -(S + b - a).expm1()).log()  # the inverse of below
        log_snr = log_snr.clamp(low, high)  # past the ends by rounding alone
        return log_snr, mass / -math.expm1(b - a) / torch.sigmoid(log_snr - b)


def _softplus(value: float) -> float:
    return max(value, 0.0) + math.log1p(math.exp(-abs(value)))
