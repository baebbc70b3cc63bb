"""The noising path of a diffusion in closed form: a Gaussian chain."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_mdm import randomness
from pyro_mdm.diffusions.base import Marginal
from pyro_mdm.diffusions.closed import noised_state
from pyro_mdm.diffusions.matrices import apply_matrix, outer
from pyro_mdm.paths.base import NoisingLaw, gaussian_log_prob
from pyro_mdm.support.checks import check_shape

__all__ = ["NoisingPath"]


class NoisingPath(NoisingLaw):
    """The distribution ``q(y_{s_1}, …, y_{s_N} | x)`` of a linear diffusion: a Gaussian chain.

    Values are (*batch, N, K, *event_shape) in x's dtype; ``rsample`` has gradients in Q, D and the
    clock, and ``log_prob`` is exact.

    Args:
        diffusion: the noising diffusion, with closed-form kernels.
        x: data in model space, (*batch, *event_shape).
        times: increasing times in (0, T], (N,); by default the start time ε alone.
        event_dim: number of dimensions of a datum; by default all of x's but the first.

    Raises:
        ValueError: x with no batch dimension or with entries that are not finite.

    Example:
        >>> from pyro_mdm import CLD
        >>> path = NoisingPath(CLD(), torch.randn(5, 2), torch.tensor([0.1, 0.5, 1.0]))
        >>> path.rsample().shape  # 5 data at 3 times, K = 2 variables of 2 dimensions
        torch.Size([5, 3, 2, 2])
    """

    def _kernels(self) -> tuple[Any, Any]:
        if self.times is None:
            return self.diffusion.start, None
        first = self.diffusion.marginal(self.times[0])
        if len(self.times) == 1:
            return first, None
        return first, self.diffusion.transition(self.times[1:], self.times[:-1])

    def _displaced(self, state: Tensor) -> Tensor:
        """The first state or its mean, (*lead, K, *event_shape), with what data displace it by."""
        s = self.diffusion.start_time if self.times is None else self.times[0]
        moved = self.diffusion.displacement(self.x, s, self.x_dim)
        return state if moved is None else state + moved

    def _first(self, law: Marginal, noise: Tensor) -> Tensor:
        """The first state, like its noise (*lead, K, *event_shape)."""
        return self._displaced(noised_state(law, self.x, noise, self.x_dim))

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        first, steps = self._kernels()
        shape = (*sample_shape, *self.batch_shape, *self.event_shape)
        noise = randomness.normal(shape, self.x.dtype, self.x.device)
        at = noise.dim() - len(self.event_shape)
        if steps is None:
            return self._first(first, noise.squeeze(at)).unsqueeze(at)
        e, *others = self.states(noise)
        states = [self._first(first, e)]
        for i, e in enumerate(others):
            step = steps.at(i)
            y = apply_matrix(step.matrix, states[-1], self.x_dim)
            states.append(y + apply_matrix(step.scale_tril, e, self.x_dim))
        return torch.stack(states, at)

    def log_prob(self, value: Tensor) -> Tensor:
        """log q(path | x), (*batch), nats."""
        check_shape("value", value, self.event_shape)
        if self._validate_args:
            self._validate_sample(value)
        first, steps = self._kernels()
        y, *rest = self.states(value)
        residual = y - self._displaced(outer(first.mean, self.x, self.x_dim))
        total = gaussian_log_prob(residual, first.scale_tril, first.log_det, self.x_dim)
        for i, after in enumerate(rest):
            step = steps.at(i)
            residual = after - apply_matrix(step.matrix, y, self.x_dim)
            total = total + gaussian_log_prob(residual, step.scale_tril, step.log_det, self.x_dim)
            y = after
        return total
