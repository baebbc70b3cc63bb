r"""Paths of diffusions without a closed form, simulated from y_ε by torchsde.

Every path has its own times: knots are drawn for each datum, and s is linear in torchsde's time u
between them. Data dimensions are folded into the batch, so that noise stays K×K.
:mod:`pyro_mdm.simulated.path_integral` integrates along the paths.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torchsde
from torch import Tensor

import pyro_mdm.randomness as randomness
from pyro_mdm.diffusions.base import Diffusion, SimulationError, full_precision, with_event_dims
from pyro_mdm.diffusions.matrices import noise_root
from pyro_mdm.samplers.base import LIMIT
from pyro_mdm.simulated.sde import FoldedSDE, fold, unfold
from pyro_mdm.simulated.simulation import Simulation
from pyro_mdm.support.modules import of_part

__all__ = ["advance", "brownian_motion"]


class _TimedSDE(FoldedSDE):
    """The SDE in u ∈ [low, high]; s is linear in u, from begin to end of each datum.

    Args:
        diffusion, event_shape: as for :class:`FoldedSDE`.
        begin, end: the first and the last time of each datum, (n,).
        interval: the interval [low, high] of u.
        steps: the number of steps that the integrator takes, for messages.
    """

    def __init__(
        self,
        diffusion: Diffusion,
        event_shape: Sequence[int],
        begin: Tensor,
        end: Tensor,
        interval: tuple[float, float],
        steps: int,
    ) -> None:
        super().__init__(diffusion, event_shape)
        self.begin, self.end, self.low, self.steps = begin, end, interval[0], steps
        self.speed = (end - begin) / (interval[1] - interval[0])  # ds/du

    def _at(self, u: Tensor | float, states: Tensor) -> tuple[Tensor, Tensor]:
        """y and s (n,) at u."""
        s = self.begin + self.speed * (float(u) - self.low)
        s = torch.minimum(torch.maximum(s, self.begin), self.end)  # rounding of u
        return unfold(states, self.event_shape), s

    def f(self, u: Tensor, states: Tensor) -> Tensor:
        """The drift times ds/du, like states."""
        y, s = self._at(u, states)
        self.check(y, s)
        drift = self.diffusion.drift(y, s)
        if drift.shape != y.shape:
            raise ValueError(
                f"the drift of {type(self.diffusion).__name__} has shape {tuple(drift.shape)}, "
                f"expected y's {tuple(y.shape)}"
            )
        return fold(drift.to(y.dtype) * with_event_dims(self.speed.to(y), y))

    def g(self, u: Tensor, states: Tensor) -> Tensor:
        """The dispersion times √(ds/du), (n·d, K, K)."""
        y, s = self._at(u, states)
        G = noise_root(self.diffusion, y, s) * self.speed.sqrt().to(y)[:, None, None, None]
        return self.folded(G)

    def check(self, y: Tensor, s: Tensor) -> None:
        """Raise SimulationError if a state of y at times s (n,) has exploded."""
        size = y.detach().abs().flatten(1).amax(1)
        wrong = ~(size < LIMIT)
        if bool(wrong.any()):
            first = int(wrong.nonzero()[0])
            step = float((self.end - self.begin).max()) / self.steps
            raise SimulationError(
                f"a path of {type(self.diffusion).__name__} exploded: a state of "
                f"{size[first].item():.3g} at s = {s[first].item():.4g} with steps of up to "
                f"{step:.3g} in s ({int(wrong.sum())} of {len(y)} paths). Try a smaller step_size, "
                "a drift that pulls back from afar and grows at most linearly (or is limited, "
                "f/(1 + h‖f‖)), or a slower clock"
            )


def advance(
    diffusion: Diffusion,
    y: Tensor,
    knots: Tensor,
    steps: int,
    simulation: Simulation,
    brownian: object = None,
) -> Tensor:
    """States at knots[1:] of paths that start from y at knots[0].

    Args:
        diffusion: the diffusion, by its drift and dispersion.
        y: states at knots[0], (n, K, *event_shape).
        knots: increasing times, (M + 1,) or (M + 1, n), held fixed in gradients.
        steps: the number of steps between two knots.
        simulation: settings, of which the method is read.
        brownian: a torchsde Brownian motion over [0, 1] of shape (n·d, K); None: a new one.

    Returns:
        States, (M, n, K, *event_shape), in the dtype of y.

    Raises:
        SimulationError: a path exploded.
        ValueError: a drift of another shape than y.
    """
    event_shape = y.shape[2:]
    knots = knots.detach().reshape(len(knots), -1).expand(-1, len(y))
    M = len(knots) - 1
    method = simulation.solver(diffusion)
    if brownian is None:
        area = "space-time" if method == "srk" else "none"
        d = event_shape.numel()
        brownian = brownian_motion(len(y), d, y.shape[1], y.dtype, y.device, area)
    # a step must end at every knot, and not a rounding error before it
    options: dict[str, object] = {"bm": brownian, "method": method, "dt": (1 + 1e-9) / (M * steps)}
    seen, states = [], fold(y)
    for i in range(M):
        interval = (i / M, (i + 1) / M)
        sde = _TimedSDE(diffusion, event_shape, knots[i], knots[i + 1], interval, steps)
        ts = torch.tensor(interval, dtype=torch.float64, device=y.device)
        with full_precision(y):
            states = torchsde.sdeint(sde, states, ts, **options)[-1]
        seen.append(unfold(states, event_shape))
        sde.check(seen[-1], knots[i + 1])
    return torch.stack(seen)


def brownian_motion(
    n: int,
    num_dims: int,
    num_variables: int,
    dtype: torch.dtype,
    device: torch.device,
    levy_area_approximation: str = "none",
) -> torchsde.BaseBrownian:
    """torchsde's Brownian motion over [0, 1], (n·d, K), for the n data of this piece.

    It depends on a seed that is drawn like the other numbers, so that a path is the same at other
    steps.
    """
    seed, total, chosen = randomness.seed_of_rows(n, device)
    whole = torchsde.BrownianInterval(
        0.0,
        1.0,
        size=(total * num_dims, num_variables),
        dtype=dtype,
        device=device,
        entropy=seed,
        levy_area_approximation=levy_area_approximation,
    )
    if chosen is None or (isinstance(chosen, slice) and total == n):
        return whole
    rows = torch.arange(total * num_dims, device=device).reshape(total, num_dims)
    return _Rows(whole, rows[chosen].flatten())


class _Rows(torchsde.BaseBrownian):
    """Some rows of a Brownian motion (rows, K)."""

    def __init__(self, whole: torchsde.BaseBrownian, rows: Tensor) -> None:
        self._whole, self._rows = whole, rows

    def __call__(
        self, ta: object, tb: object = None, return_U: bool = False, return_A: bool = False
    ) -> Tensor | tuple[Tensor, ...]:
        drawn = self._whole(ta, tb, return_U=return_U, return_A=return_A)
        if isinstance(drawn, tuple):
            return tuple(tensor[self._rows] for tensor in drawn)
        rows: Tensor = drawn[self._rows]
        return rows

    def __repr__(self) -> str:
        return f"{len(self._rows)} rows of {self._whole!r}"

    dtype = of_part("_whole")
    device = of_part("_whole")
    levy_area_approximation = of_part("_whole")

    @property
    def shape(self) -> tuple[int, int]:
        return (len(self._rows), self._whole.shape[1])
