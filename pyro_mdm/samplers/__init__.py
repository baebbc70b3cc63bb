r"""Integrators of generative processes, from the prior at T to y_ε.

In reverse time t = T - s the generative SDE is

    du = ( g² s_θ(u, s) + ∇·g² - f(u, s) ) dt + G dB_t,    u_0 ~ π,

for a linear diffusion f = A u, ``A = -(Q + D) Σ_∞^{-1}``, g² = 2 D and π = N(0, Σ_π). Processes
with less noise have the same marginals where the score is exact, down to the probability-flow ODE
without noise. Each integrator is one class, called as::

    sampler(diffusion, score, shape, generator=None, *, dtype=None, progress=False) -> y_ε

with ``shape = (batch, K, *event_shape)`` and ``score(y, s) -> like y`` for times s (batch,). The
state is held in float64, because late steps are small differences of it; the score is called in
``dtype``, and its result is cast to float64. All K×K kernels of the grid are computed in one
batched call before the first step. After a run ``sampler.calls`` is the number of network calls.

========================================  =================  ===========  ============  ===========
sampler                                   follows            order        calls a step  closed form
========================================  =================  ===========  ============  ===========
:class:`ExponentialIntegrator`            ODE                1, 2, 3      1             needed
:class:`StochasticExponentialIntegrator`  both, and between  1, 2         1             needed
:class:`Ancestral`                        SDE                1            1             needed
:class:`Splitting`                        SDE                1, 2         1, 2          needed
:class:`EulerMaruyama`                    SDE                1            1
:class:`StochasticHeun`                   SDE                2            2
:class:`ProbabilityFlow`                  ODE                2, adaptive  2
:class:`TorchSDE`                         SDE                1, 2         1, 2
========================================  =================  ===========  ============  ===========

Orders are weak ones, and measured (``tests/core/test_sampler_orders.py``). Every sampler takes a
``grid`` by name (:data:`GRIDS`), as times, or as a function. The default sampler is
:func:`default_sampler`. :class:`~pyro_mdm.conditioning.Guided` adds classifier-free guidance to any
sampler, :class:`~pyro_mdm.conditioning.Replacement` puts observed dimensions into its states.

A score may have two attributes: ``dtype``, the precision it is called in (PyTorch's default
otherwise), and ``denoise(y, s) -> x̂``, (batch, *event_shape), which exponential integrators and
:class:`Ancestral` use; without it the denoiser is the projection of the score on g².
"""

from pyro_mdm.samplers.base import (
    GRIDS,
    Sampler,
    information_grid,
    karras_grid,
    log_snr_grid,
    log_volume_grid,
    quadratic_grid,
    simulation_grid,
)
from pyro_mdm.samplers.default import default_sampler
from pyro_mdm.samplers.exponential import ExponentialIntegrator, StochasticExponentialIntegrator
from pyro_mdm.samplers.probability_flow import ProbabilityFlow, ToleranceError
from pyro_mdm.samplers.stochastic import Ancestral, EulerMaruyama, Splitting, StochasticHeun

__all__ = [
    "Ancestral",
    "EulerMaruyama",
    "ExponentialIntegrator",
    "GRIDS",
    "ProbabilityFlow",
    "Sampler",
    "Splitting",
    "StochasticExponentialIntegrator",
    "StochasticHeun",
    "ToleranceError",
    "default_sampler",
    "information_grid",
    "karras_grid",
    "log_snr_grid",
    "log_volume_grid",
    "quadratic_grid",
    "simulation_grid",
]
