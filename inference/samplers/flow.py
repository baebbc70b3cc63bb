"""The probability flow in a few lines; the library's ``probability_flow`` has more solvers.

python -m inference.sample RUN --sampler inference.samplers.flow:Flow
"""

from torch import Tensor

from pyro_mdm.diffusions import Kernels, apply_matrix
from pyro_mdm.samplers import Sampler
from pyro_mdm.samplers.base import Noise, Questions

Plan = tuple[Kernels, Tensor, Tensor]


class Flow(Sampler):
    """The flow dy/ds = f(y, s) - ½ g² s_θ(y, s), backwards by the midpoint rule."""

    def plan(self, diffusion: Kernels, times: Tensor) -> Plan:
        return diffusion, times[:-1], times.diff()

    def step(self, plan: Plan, i: int, y: Tensor, ask: Questions, noise: Noise) -> Tensor:
        diffusion, s, h = plan[0], plan[1][i], plan[2][i]
        half = y + h / 2 * velocity(diffusion, ask, y, s)
        return y + h * velocity(diffusion, ask, half, s + h / 2)


def velocity(diffusion: Kernels, ask: Questions, y: Tensor, s: Tensor) -> Tensor:
    return diffusion.drift(y, s) - apply_matrix(diffusion.noise_covariance(s), ask.score(y, s)) / 2
