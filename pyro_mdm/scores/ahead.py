"""Scores at the times of a sampler's grid, where all that does not depend on the state is ready.

A call is then affine maps before and after the network, whose coefficients were computed for all
times in one batched pass. Kinds without such maps are asked as usual.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import partial, singledispatch
from typing import Any, ClassVar, Generic, NamedTuple, TypeGuard, TypeVar

import torch
from torch import Tensor

from pyro_mdm.diffusions.ahead import Places
from pyro_mdm.diffusions.base import Diffusion, Marginal
from pyro_mdm.diffusions.closed import OneBlock, is_usual_block
from pyro_mdm.diffusions.kernels import inverse_tril
from pyro_mdm.diffusions.matrices import of_rows
from pyro_mdm.scores.base import Score, map_channels, projection
from pyro_mdm.scores.conditioned import ConditionedDenoiser
from pyro_mdm.scores.denoiser import Denoiser
from pyro_mdm.scores.raw import NoisePrediction, RawScore, state_units
from pyro_mdm.support.checks import check_weights
from pyro_mdm.support.late_checks import check_finite, check_values, finite

__all__ = ["ScoreAhead", "is_plain", "score_ahead"]

C = TypeVar("C", bound=tuple[Any, ...])
HELD = 2**23
"""The largest number of coefficients that are held at once; more are computed block by block."""


class ScoreAhead(ABC, Generic[C]):
    """A score at given times, for states of one shape in float64.

    Args:
        owner: the score whose network is called.
        diffusion: the diffusion, of one block.
        times: (N,).
        shape: shape of the states, (n, K, *event_shape).
        dtype: dtype of the network.
    """

    held: ClassVar[int]
    """The number of coefficients that a time has for each number of a datum."""

    def __init__(
        self,
        owner: Score,
        diffusion: OneBlock,
        times: Tensor,
        shape: Sequence[int],
        dtype: torch.dtype,
    ) -> None:
        self.owner, self.diffusion, self.times = owner, diffusion, times
        self.shape, self.dtype = torch.Size(shape), dtype
        self._places = Places(times)
        self._first, self._block = 0, list[C]()
        inputs = torch.zeros(self.inputs_shape, dtype=dtype, device=times.device)
        whole, *self._context = owner.with_context(inputs)
        more = whole[:, inputs.shape[1] :]
        self._context_channels = more if more.shape[1] else None

    @property
    def inputs_shape(self) -> tuple[int, ...]:
        """The shape of the network's inputs that follow from the state."""
        return (self.shape[0], *self.shape[2:])

    def __len__(self) -> int:
        return self.shape[0]

    def at(self, y: Tensor, s: Tensor) -> C | None:
        """The coefficients for states y at the time s; None where they are not ready."""
        if y.shape != self.shape or y.dtype != torch.float64:
            return None
        i = self._places.index(s)
        return None if i is None else self.coefficients(i)

    def coefficients(self, i: int) -> C:
        """The coefficients at the i-th time, a named tuple of tensors."""
        if not self._first <= i < self._first + len(self._block):
            numbers = max(self.held * self.rows * math.prod(self.shape[2:]), 1)
            times = self.times[i : i + max(HELD // numbers, 1)]
            made: Any = self.computed(times)
            parts = (len(times) * [None] if t is None else t.unbind() for t in made)
            self._first = i
            self._block = [type(made)(*values) for values in zip(*parts, strict=True)]
        return self._block[i - self._first]

    @property
    def rows(self) -> int:
        """The number of data whose coefficients differ."""
        return 1

    @abstractmethod
    def computed(self, times: Tensor) -> C:
        """The coefficients at times (N,), a named tuple of tensors (N, …)."""

    @abstractmethod
    def x_hat(self, c: C, flat: Tensor) -> Tensor:
        """x̂ (n, 1, d) for states (n, K, d); c: coefficients at their time."""

    @abstractmethod
    def score(self, c: C, y: Tensor) -> Tensor:
        """s_θ, like y (n, K, *event_shape); c: coefficients at its time."""

    def denoise(self, c: C, y: Tensor) -> Tensor:
        """x̂ (n, *event_shape) for states y (n, K, *event_shape); c: coefficients at their time."""
        return self.checked(self.x_hat(c, y.flatten(2)), y).reshape(len(y), *y.shape[2:])

    def _output(self, inputs: Tensor, log_snr: Tensor, channels: Tensor | None = None) -> Tensor:
        """The network's output in float64, (n, -1, d), for its inputs (n, 1 or K, d)."""
        shape = self.inputs_shape
        inputs = inputs.to(self.dtype).reshape(shape)
        more = [t for t in (channels, self._context_channels) if t is not None]
        if more:
            inputs = torch.cat([inputs, *more], 1)
        out = self.owner.output(shape, inputs, log_snr, *self._context)
        return out.double().reshape(self.shape[0], -1, math.prod(self.shape[2:]))

    def checked(self, value: Tensor, y: Tensor) -> Tensor:
        """A value that follows from y and the network, checked to be finite if both are."""
        check_values(finite(value), partial(self._report, y))
        return value

    def _report(self, y: Tensor) -> None:
        check_finite("y", y)
        check_weights(self.owner.network)  # outputs of finite weights are for the caller to judge

    def _for_all(self, value: Tensor) -> Tensor:
        """Values of times (N, …) for each of the n data, (N, n, …)."""
        return value.unsqueeze(1).expand(len(value), len(self), *value.shape[1:])


@singledispatch
def score_ahead(
    score: Score,
    diffusion: Diffusion,
    times: Tensor,
    shape: Sequence[int],
    dtype: torch.dtype,
) -> ScoreAhead[Any] | None:
    """The score at given times, if it is of a kind whose coefficients can be computed ahead.

    Dispatched on the score. Register a function for a kind of your own by
    ``@score_ahead.register(Kind)`` over (score, diffusion, times, shape, dtype).

    Args:
        score: the score.
        diffusion: the diffusion.
        times: (N,).
        shape: shape of the states, (n, K, *event_shape).
        dtype: dtype of the network.
    """
    return None


# -- denoisers of z --------------------------------------------------------------------------------


class _OfDenoiser(NamedTuple):
    """x̂ = offset + keep z + pull F(shift + scale z), and s_θ = state y + data x̂."""

    readout: Tensor  # k (N, n, 1, K)
    log_snr: Tensor  # that the network receives, (N, n)
    channels: Tensor | None  # maps of log SNR that it receives, (N, n, C, *spatial)
    shift: Tensor  # (N, 1 or n, 1, d or 1), as are the next four
    scale: Tensor
    offset: Tensor
    keep: Tensor
    pull: Tensor
    state: Tensor  # -Σ^{-1} (N, n, K, K)
    data: Tensor  # Σ^{-1} a (N, n, K, 1)


class _DenoiserAhead(ScoreAhead[_OfDenoiser]):
    """A :class:`~pyro_mdm.scores.Denoiser`, conditioned or not."""

    held = 6
    owner: Denoiser

    def __init__(
        self,
        owner: Denoiser,
        diffusion: OneBlock,
        times: Tensor,
        shape: Sequence[int],
        dtype: torch.dtype,
        conditioned: ConditionedDenoiser | None = None,
    ) -> None:
        self.conditioned = conditioned
        super().__init__(owner, diffusion, times, shape, dtype)

    @property
    def rows(self) -> int:
        if self.conditioned is None:
            return 1
        tensors = (self.conditioned.observed, self.conditioned.values, self.conditioned.left_out)
        one_for_all = all(t is None or t.dim() == len(self.shape) - 2 for t in tensors)
        return 1 if one_for_all else len(self)

    def computed(self, times: Tensor) -> _OfDenoiser:
        law, owner = self.diffusion.marginal(times), self.owner
        owner.check_log_snr(law.log_snr)
        event_dim = len(self.shape) - 2
        lam = law.log_snr.reshape(-1, 1, *[1] * (event_dim if owner.event_shape else 0))
        maps = lam if self.conditioned is None else self._masked(lam)
        v, mu, s2 = torch.exp(-maps), owner.data_mean, owner.data_variance
        scale, keep = (s2 + v).rsqrt(), s2 / (s2 + v)
        shift, offset, pull = -mu * scale, mu * (1 - keep), (keep * v).sqrt()
        if self.conditioned is not None:
            observed, values, fill = self._observed
            asked = maps.isfinite()  # neither observed nor left out
            shift = torch.where(observed, (values - mu) * scale, shift)
            offset = torch.where(observed, values, torch.where(asked, offset, fill))
            scale, keep, pull = (torch.where(asked, t, 0.0) for t in (scale, keep, pull))
        seen, channels = self._levels(maps)
        W = inverse_tril(law.scale_tril)
        precision = W.mT @ W
        shift, scale, offset, keep, pull = (
            t.reshape(*t.shape[:2], 1, -1) for t in (shift, scale, offset, keep, pull)
        )
        readout, state = self._for_all(law.readout.unsqueeze(-2)), self._for_all(-precision)
        data = self._for_all(precision @ law.mean.unsqueeze(-1))
        return _OfDenoiser(readout, seen, channels, shift, scale, offset, keep, pull, state, data)

    @property
    def _observed(self) -> tuple[Tensor, Tensor, Tensor]:
        """The mask of observed entries, values, and the fill, (1 or n, *event_shape)."""
        given: Any = self.conditioned
        return self._of_data(given.observed), self._of_data(given.values), given.fill

    def _masked(self, lam: Tensor) -> Tensor:
        """The maps of log SNR at λ (N, 1, …): ∞ where observed, -∞ where left out."""
        given: Any = self.conditioned
        maps = lam.expand(len(lam), self.rows, *self.shape[2:])
        if given.left_out is not None:
            maps = torch.where(self._of_data(given.left_out), -math.inf, maps)
        return torch.where(self._of_data(given.observed), math.inf, maps)

    def _of_data(self, value: Tensor) -> Tensor:
        """A mask or values of these data, which broadcasts to (n, *event_shape)."""
        return of_rows(value, len(self.shape) - 2, (len(self),))

    def _levels(self, maps: Tensor) -> tuple[Tensor, Tensor | None]:
        """The log SNRs that the network receives, (N, n), and their maps (N, n, C, *spatial)."""
        sizes = len(maps), len(self)
        if not self.owner.maps:
            return maps.reshape(-1, 1).to(self.dtype).expand(sizes), None
        event = self.shape[2:]
        maps = maps.expand(*maps.shape[:2], *event)
        batch = maps.shape[0] * maps.shape[1]
        nothing = torch.zeros(batch, *event, dtype=self.dtype, device=maps.device)
        whole, average = map_channels(nothing, maps.reshape(batch, *event), (batch,))
        channels = whole[:, event[0] :].reshape(len(maps), -1, *event)
        return average.reshape(len(maps), -1).expand(sizes), channels.expand(*sizes, *event)

    def x_hat(self, c: _OfDenoiser, flat: Tensor) -> Tensor:
        z = torch.bmm(c.readout, flat)
        F = self._output(torch.addcmul(c.shift, z, c.scale), c.log_snr, c.channels)
        return torch.addcmul(torch.addcmul(c.offset, z, c.keep), F, c.pull)

    def score(self, c: _OfDenoiser, y: Tensor) -> Tensor:
        flat = y.flatten(2)
        x_hat = self.checked(self.x_hat(c, flat), y)
        return torch.baddbmm(torch.bmm(c.state, flat), c.data, x_hat).reshape(y.shape)


@score_ahead.register(Denoiser)
def _of_denoiser(
    score: Denoiser, diffusion: Diffusion, times: Tensor, shape: Sequence[int], dtype: torch.dtype
) -> ScoreAhead[Any] | None:
    if not (is_plain(score, Denoiser) and _serves(diffusion, score, shape)):
        return None
    return _DenoiserAhead(score, diffusion, times, shape, dtype)


@score_ahead.register(ConditionedDenoiser)
def _of_conditioned(
    score: ConditionedDenoiser,
    diffusion: Diffusion,
    times: Tensor,
    shape: Sequence[int],
    dtype: torch.dtype,
) -> ScoreAhead[Any] | None:
    inner: Any = score.denoiser
    affine = isinstance(inner, Denoiser) and is_plain(inner, Denoiser)
    plain = affine and is_plain(score, ConditionedDenoiser)
    if not plain or score.values is None or not _serves(diffusion, score, shape):
        return None
    return _DenoiserAhead(inner, diffusion, times, shape, dtype, score)


# -- scores of the raw state -----------------------------------------------------------------------


class _OfRaw(NamedTuple):
    """s_θ = matrix F(units y), and x̂ = from_state y + from_output F."""

    log_snr: Tensor  # that the network receives, (N, n)
    units: Tensor | None  # (N, K, 1)
    matrix: Tensor  # (N, n, K, K)
    from_state: Tensor  # (N, n, 1, K)
    from_output: Tensor  # (N, n, 1, K)


class _RawAhead(ScoreAhead[_OfRaw]):
    """A :class:`~pyro_mdm.scores.NoisePrediction` or :class:`~pyro_mdm.scores.RawScore`."""

    held = 0

    @property
    def inputs_shape(self) -> tuple[int, ...]:
        n, K, C, *spatial = self.shape
        return (n, K * C, *spatial)

    def computed(self, times: Tensor) -> _OfRaw:
        law = self.diffusion.marginal(times)
        units = None if self.diffusion.at_rest() else state_units(law)
        matrix = self._matrix(law, units)
        of_state, of_score = projection(law, self.diffusion.noise_covariance(times))
        return _OfRaw(
            law.log_snr.to(self.dtype).unsqueeze(1).expand(-1, len(self)),
            None if units is None else units.unsqueeze(-1),
            self._for_all(matrix),
            self._for_all(of_state.unsqueeze(-2)),
            self._for_all(of_score.unsqueeze(-2) @ matrix),
        )

    def _matrix(self, law: Marginal, units: Tensor | None) -> Tensor:
        """The matrix that makes scores of outputs, (N, K, K)."""
        if isinstance(self.owner, NoisePrediction):
            return -inverse_tril(law.scale_tril).mT
        eye = torch.eye(law.mean.shape[-1]).to(law.mean).expand_as(law.covariance)
        return eye if units is None else eye * units.unsqueeze(-1)

    def _asked(self, c: _OfRaw, flat: Tensor) -> Tensor:
        return self._output(flat if c.units is None else flat * c.units, c.log_snr)

    def _output(self, inputs: Tensor, log_snr: Tensor, channels: Tensor | None = None) -> Tensor:
        return super()._output(inputs, log_snr, channels).reshape(inputs.shape)

    def x_hat(self, c: _OfRaw, flat: Tensor) -> Tensor:
        F = self._asked(c, flat)
        return torch.baddbmm(torch.bmm(c.from_state, flat), c.from_output, F)

    def score(self, c: _OfRaw, y: Tensor) -> Tensor:
        F = self.checked(self._asked(c, y.flatten(2)), y)
        return torch.bmm(c.matrix, F).reshape(y.shape)


@score_ahead.register(NoisePrediction)
@score_ahead.register(RawScore)
def _of_raw(
    score: Score, diffusion: Diffusion, times: Tensor, shape: Sequence[int], dtype: torch.dtype
) -> ScoreAhead[Any] | None:
    kind = NoisePrediction if isinstance(score, NoisePrediction) else RawScore
    if not (is_plain(score, kind) and _serves(diffusion, score, shape)):
        return None
    return _RawAhead(score, diffusion, times, shape, dtype)


# -- what is served --------------------------------------------------------------------------------

ASKED = (
    *("score", "denoise", "aim", "x_hat", "inputs", "read", "call_network", "with_context"),
    *("integrand", "diffusion_term"),
)
"""The members that say how a network is asked; a subclass that changes one is asked by them."""
# kept here, so that one that is replaced in the class of the library is asked too
_USUAL: dict[type[Score], dict[str, Any]] = {
    kind: {name: getattr(kind, name, None) for name in ASKED}
    for kind in (Denoiser, ConditionedDenoiser, NoisePrediction, RawScore)
}


def is_plain(score: Score, kind: type[Score]) -> bool:
    """Whether a score is asked in the way of this kind, one of the library's."""
    same = all(getattr(type(score), n, None) is usual for n, usual in _USUAL[kind].items())
    return same and not any(name in vars(score) for name in ASKED)


def _serves(diffusion: Diffusion, score: Score, shape: Sequence[int]) -> TypeGuard[OneBlock]:
    """Whether scores and x̂ are affine in the state and the output, in one block for all data."""
    event = score.event_shape
    fits = len(shape) > 2 and (event is None or tuple(shape[2:]) == tuple(event))
    return fits and is_usual_block(diffusion)
