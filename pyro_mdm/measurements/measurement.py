"""Measurements of a model's data as a site of another program."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import Distribution, Normal, constraints

from pyro_mdm.distribution import MDM
from pyro_mdm.measurements.denoiser import checked_variance, condition_on_measurements
from pyro_mdm.measurements.laws import Law
from pyro_mdm.measurements.operators import LinearOperator, NonlinearOperator, as_operator
from pyro_mdm.measurements.twisted import Particles, weighted_particles
from pyro_mdm.model import DiffusionModel
from pyro_mdm.support.checks import check_shape, checked_arguments

__all__ = ["Measurement"]


class Measurement(TorchDistribution):
    """The distribution of obs = H x + noise, where a model's data x are integrated out.

    It is a site of a program in which the noise or the operator is unknown:
    ``pyro.sample("obs", Measurement(model, H, sigma**2), obs=obs)``. ``log_prob`` is the evidence
    by :func:`twisted_smc`, whose exponential is unbiased, with fresh particles for each object. So
    the posterior of the unknowns is right in the limit of many draws, however few the particles, by
    ``pyro.infer.Importance`` or Metropolis-Hastings (pseudo-marginal inference), up to the steps of
    the chain. :meth:`particles` are those that gave the evidence, and together with the unknowns of
    the same run they are from the joint posterior. Where none of them can have given obs, the
    evidence is 0, and so is the weight of the run. It has no derivatives, which SVI and HMC need.

    Args:
        model, H, noise: as for :func:`condition_on_measurements`.
        num_particles, steps: as for :func:`twisted_smc`.
        guidance: further options of :func:`condition_on_measurements`.

    Raises:
        TypeError, ValueError: as for :func:`condition_on_measurements`; noise and obs are checked
            by ``log_prob``; noise that requires gradients.

    Source: Andrieu & Roberts, "The Pseudo-Marginal Approach for Efficient Monte Carlo
    Computations", Annals of Statistics 2009.

    Example:
        >>> import pyro
        >>> from pyro_mdm import CLD, Denoiser
        >>> from pyro_mdm.networks import MLP
        >>> model = DiffusionModel(CLD(max_log_snr=9.0), Denoiser.fit(MLP(2), torch.randn(100, 2)))
        >>> def program(obs):
        ...     sigma = pyro.sample("sigma", pyro.distributions.LogNormal(-1.0, 0.5))
        ...     pyro.sample("obs", Measurement(model, torch.eye(2), sigma**2, steps=10), obs=obs)
        >>> runs = pyro.infer.Importance(program, num_samples=2).run(torch.tensor([3.0, 1.0]))
        >>> pyro.infer.EmpiricalMarginal(runs, "sigma").sample((5,)).shape
        torch.Size([5])
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}

    @checked_arguments
    def __init__(
        self,
        model: DiffusionModel,
        H: Tensor | LinearOperator | NonlinearOperator,
        noise: float | Tensor | Law,
        *,
        num_particles: int = 64,
        steps: int = 50,
        validate_args: bool | None = None,
        **guidance: Any,
    ) -> None:
        self.model, self.noise, self.guidance = model, noise, guidance
        self.operator = as_operator(H, model.event_shape)
        self.num_particles, self.steps = num_particles, steps
        self._seen: list[tuple[Tensor, list[Particles]]] = []
        obs_shape = torch.Size(self.operator.obs_shape)
        if self._has_derivative():
            raise ValueError(
                "noise requires gradients, as under SVI and HMC, and evidence by particles has no "
                "derivative; infer by pyro.infer.Importance, or pass what it depends on detached"
            )
        if not callable(noise):
            checked_variance(noise, obs_shape)
        super().__init__(torch.Size(), obs_shape, validate_args=validate_args)

    @constraints.dependent_property(is_discrete=False)
    def support(self) -> constraints.Constraint:
        """Real numbers, whatever the noise."""
        return constraints.independent(constraints.real, len(self.event_shape))

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> Measurement:
        new = self._get_checked_instance(Measurement, _instance)
        new.__dict__.update(self.__dict__, _batch_shape=torch.Size(batch_shape))
        return new

    @torch.no_grad()
    @checked_arguments
    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Measurements of data drawn from the model, (*sample_shape, *batch_shape, *obs_shape)."""
        x = MDM(self.model, batch_shape=self.batch_shape).sample(torch.Size(sample_shape))
        return self._distribution(self.operator(x.double())).sample()

    def _has_derivative(self) -> bool:
        if isinstance(self.noise, Tensor):
            return self.noise.requires_grad
        if not callable(self.noise):
            return False
        with torch.random.fork_rng(devices=[]):  # one sample more must not move the program's draws
            law = self.noise(torch.zeros(self.operator.obs_shape, dtype=torch.float64))
            is_distribution = isinstance(law, Distribution)  # others are refused with the first obs
            return is_distribution and bool(law.log_prob(law.sample()).requires_grad)

    def _distribution(self, clean: Tensor) -> Distribution:
        if callable(self.noise):
            return self.noise(clean)
        scale = torch.as_tensor(self.noise, dtype=clean.dtype, device=clean.device).sqrt()
        return Normal(clean, scale, validate_args=False)  # 0 is allowed: observed exactly

    def log_prob(self, value: Tensor) -> Tensor:
        """log p(value) by particles, nats, (*batch) in float64.

        Args:
            value: observations, (*batch, *obs_shape).
        """
        check_shape("value", value, self.event_shape)
        batch = value.shape[: value.dim() - len(self.event_shape)]
        estimates = [particles.log_evidence.mean for particles in self.particles(value)]
        evidence = torch.tensor(estimates, dtype=torch.float64, device=value.device)
        return evidence.reshape(batch).expand(torch.broadcast_shapes(batch, self.batch_shape))

    def particles(self, obs: Tensor) -> list[Particles]:
        """Particles of p(x | obs) for each observation, in order.

        They are drawn once: ``log_prob`` of the same obs is their evidence, before and after.

        Args:
            obs: observations, (*batch, *obs_shape).

        Returns:
            :class:`Particles` of one repeat for each observation.

        Raises:
            ValueError: obs of another shape.
        """
        check_shape("obs", obs, self.event_shape, ", that of H x")
        for seen, drawn in self._seen:
            if torch.equal(seen, obs):
                return drawn
        drawn = [self._drawn(one) for one in obs.reshape(-1, *self.event_shape)]
        self._seen.append((obs.clone(), drawn))
        return drawn

    def _drawn(self, obs: Tensor) -> Particles:
        conditioned = condition_on_measurements(
            self.model, self.operator, obs, self.noise, **self.guidance
        )
        return weighted_particles(conditioned, self.num_particles, steps=self.steps)
