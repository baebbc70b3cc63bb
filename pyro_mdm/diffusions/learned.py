"""What linear diffusions that SVI learns share: ends and a law at rest that may be learned too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pyro_mdm.diffusions.linear import LinearDiffusion
from pyro_mdm.support.checks import check_number

__all__ = ["LearnedFamily"]


class LearnedFamily(LinearDiffusion):
    r"""A linear diffusion whose matrices are parameters of a subclass, and its ends if asked.

    Args:
        Q, D: what the subclass takes.
        learn_ends: how far λ(ε) and λ(T) may move from where they start, in units of log SNR: one
            number for both, or one for each, 0 for an end that is held. Each is learned as
            λ = λ_start + reach · tanh(p) and cannot leave [λ_start - reach, λ_start + reach];
            p starts at 0. Setting an end starts both where they then are. By default ends are held.
        learn_stationary: whether Σ_∞, the covariance of the prior, is learned too, as L Lᵀ with L
            lower triangular and log L_ii a parameter, so that it stays positive definite. L_00,
            the standard deviation that x comes to rest at, is held: λ is in units of the data, and
            with both ends given the bound hardly tells one scale of all variables from another,
            which then would drift.
        options: keyword arguments of the other bases; λ(T) is learned around ``min_log_snr``.

    Raises:
        ValueError: a reach that is negative, ranges that meet, a reach for λ(T) without
            ``min_log_snr``, one for ends that are cut at a time, or nothing of Σ_∞ to learn, which
            for K = 1 is all held.
    """

    def __init__(
        self,
        Q: Any,
        D: Any,
        *,
        learn_ends: float | Sequence[float] = 0.0,
        learn_stationary: bool = False,
        **options: Any,
    ) -> None:
        self._reach = (0.0, 0.0)
        super().__init__(Q, D, **options)
        self._guess_here()
        reach = _reach(learn_ends)
        if any(reach):
            self._check_learnable(reach)
            self._reach = reach
            self.ends = nn.Parameter(torch.zeros(2, dtype=torch.float64))
            self._check_ranges(self._max_log_snr, self._min_log_snr)
        if learn_stationary:
            self._learn_stationary()
        self._cache.clear()  # what is kept there may be for fewer parameters

    # -- ends --------------------------------------------------------------------------------------

    def _check_learnable(self, reach: tuple[float, float]) -> None:
        if self.cut_time is not None:
            raise ValueError(
                f"learn_ends is {list(reach)}, but the diffusion is cut at the time "
                f"{self.cut_time:g}; give max_log_snr instead of cut_time"
            )
        if reach[1] and self.min_log_snr is None:
            raise ValueError(
                f"learn_ends is {list(reach)}, but λ(T) is left to the clock and has no range; "
                f"give min_log_snr, e.g. -10, or learn_ends=[{reach[0]:g}, 0]"
            )

    def _check_ranges(self, high: float, low: float | None) -> None:
        least = high - self._reach[0]
        if low is not None and not low + self._reach[1] < least:
            raise ValueError(
                f"λ(ε) is learned down to {least:g} and λ(T) up to {low + self._reach[1]:g}, "
                "expected ranges that do not meet; lower learn_ends, or bring max_log_snr and "
                "min_log_snr further apart"
            )

    @property
    def learns_ends(self) -> bool:
        return any(self._reach)

    def _given_ends(self) -> Tensor:
        given, ends = super()._given_ends(), self._parameters.get("ends")
        if ends is None:
            return given
        return given + given.new_tensor(self._reach[: len(given)]) * torch.tanh(ends[: len(given)])

    def _set_ends(self, high: float, low: float | None) -> None:
        if low is None and self._reach[1]:
            raise ValueError(
                f"min_log_snr is None, but λ(T) is learned within {self._reach[1]:g} of where it "
                "starts; give it a finite log SNR, e.g. -10"
            )
        super()._set_ends(high, low)
        self._check_ranges(high, low)
        if (ends := self._parameters.get("ends")) is not None:
            with torch.no_grad():
                ends.zero_()
        if self._guess is not None and len(self._guess) != (1 if low is None else 2):
            self._guess_here()

    def _guess_here(self) -> None:
        """Begin the search for the ends where they are now.

        What was found on the way to there is forgotten: it has other last digits than what a copy
        that reads the guess will find.
        """
        self._guess = None
        self._guess = self.end_clocks().detach()
        self._cache.clear()

    def settings(self) -> dict[str, Any]:
        return super().settings() | ({"learn_ends": list(self._reach)} if any(self._reach) else {})

    # -- the law at rest ---------------------------------------------------------------------------

    def _learn_stationary(self) -> None:
        K = self.num_variables
        if K == 1:
            raise ValueError(
                "learn_stationary is True, but of K = 1 variable nothing of Σ_∞ is learned: x's "
                "own variance is held; leave it out, or raise num_variables"
            )
        L = torch.linalg.cholesky(self.stationary_covariance)
        del self.stationary_covariance
        self.register_buffer("stationary_scale", L[0, 0].clone())
        self.stationary_log_diagonal = nn.Parameter(L.diagonal()[1:].log())
        row, column = torch.tril_indices(K, K, offset=-1).unbind()
        self.stationary_lower = nn.Parameter(L[row, column])

    @property
    def learns_stationary(self) -> bool:
        return "stationary_lower" in self._parameters

    def __getattr__(self, name: str) -> Any:
        """Σ_∞, where it is no buffer but made of parameters."""
        if name == "stationary_covariance" and self.learns_stationary:
            return self._cached(name, self._stationary)
        return super().__getattr__(name)

    def _stationary(self) -> Tensor:
        K = self.num_variables
        row, column = torch.tril_indices(K, K, offset=-1).unbind()
        diagonal = [self.stationary_scale[None], self.stationary_log_diagonal.exp()]
        L = torch.diag(torch.cat(diagonal))
        L = L.index_put((row, column), self.stationary_lower)
        return L @ L.mT

    def _remedy(self) -> str:
        return (
            ". If training brought them here, lower the learning rate of the diffusion, or give D "
            "a higher rank"
        )


def _reach(learn_ends: float | Sequence[float]) -> tuple[float, float]:
    both = [learn_ends] * 2 if isinstance(learn_ends, int | float) else list(learn_ends)
    if len(both) != 2:
        raise ValueError(
            f"learn_ends is {learn_ends}, expected how far both ends may move, or one number for "
            "λ(ε) and one for λ(T), e.g. (1.0, 3.0)"
        )
    high, low = (check_number("learn_ends", r, "a reach in log SNR, e.g. 2.0") for r in both)
    if high < 0 or low < 0:
        raise ValueError(f"learn_ends is {learn_ends}, expected numbers ≥ 0 of log SNR, e.g. 2.0")
    return high, low
