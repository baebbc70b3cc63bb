r"""A learned posterior as the guide of local latents: the parameters of each unit of a plate.

In a hierarchical program unit i has parameters θ_i ~ p(θ | η) and data x_i. A posterior that is
amortized over x has draws of q(θ_i | x_i) for all units, or for a subsample, with the density that
they are drawn from (:mod:`pyro_mdm.posteriors.guide`). It was trained under its own prior, not the
population's distribution, so it is too wide a guide where units have much in common. The bound of
SVI holds for any guide, and importance weights make it exact.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Protocol

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from pyro_mdm.posteriors.guide import ScoredDraws
from pyro_mdm.posteriors.reading import Draws, ParameterSite
from pyro_mdm.support.checks import Count, checked_arguments

__all__ = ["LocalGuide"]


class AmortizedDraws(Protocol):
    """The method of a posterior that a guide of local latents takes draws by."""

    def scored_draws_of_each(self, data: Mapping[str, Tensor], n: int) -> ScoredDraws: ...


class LocalGuide:
    """The posteriors of m data as the guide of their parameters, one by one in a plate.

    A call draws the parameters of some data, each at its own site in the plate around the call. The
    numbers of a parameter are dependent, so its site in the program has them as one event
    (``to_event``), whatever the simulator has. Draws are made in blocks, and handed out once.

    ``posterior.local_guide(data)`` makes it.

    Args:
        posterior: the posterior.
        sites: the sites of its parameters.
        data: data by site, (m, *shape).
        m: the number of data.
        names: the names of the program's sites by those of the simulator's, where they differ.
        block: the number of draws of a datum that are made together.

    Raises:
        ValueError: names of unknown parameters.

    Example:
        >>> import torch
        >>> from pyro_mdm.posteriors import AmortizedPosterior
        >>> def simulator():
        ...     a = pyro.sample("a", dist.Normal(0.0, 1.0))
        ...     pyro.sample("x", dist.Normal(a, 1.0))
        >>> posterior = AmortizedPosterior.fit(simulator, ["a"], ["x"], simulations=50, steps=2)
        >>> local = posterior.local_guide({"x": torch.randn(9)}, block=2)
        >>> def guide():
        ...     with pyro.plate("units", 9, subsample_size=3) as rows:
        ...         local(rows)
        >>> pyro.poutine.trace(guide).get_trace().nodes["a"]["value"].shape
        torch.Size([3])
    """

    @checked_arguments
    def __init__(
        self,
        posterior: AmortizedDraws,
        sites: Sequence[ParameterSite],
        data: Mapping[str, Tensor],
        m: Count,
        *,
        names: Mapping[str, str] | None = None,
        block: Count = 16,
    ) -> None:
        self.sites, self.names = tuple(sites), dict(names or {})
        if unknown := [name for name in self.names if name not in [s.name for s in self.sites]]:
            raise ValueError(
                f"names has {unknown[0]!r}, expected parameters of the simulator, of "
                f"{', '.join(site.name for site in self.sites)}"
            )
        self._pool = _Pool(posterior, data, m, self.sites, block)
        self._sizes = [site.shape.numel() for site in self.sites]

    def __call__(self, rows: Tensor | None = None) -> Draws:
        """Draw the parameters of some data in the plate around the call.

        Args:
            rows: the indices of the data, (b,) int64, as a plate with a subsample gives them; None:
                all data.

        Returns:
            The parameters by the program's sites, (b, *shape).

        Raises:
            ValueError: rows that are no indices of data, or one of them twice.
        """
        m = self._pool.m
        rows = torch.arange(m) if rows is None else torch.as_tensor(rows)
        if rows.dim() != 1 or bool(((rows < 0) | (rows >= m)).any()):
            raise ValueError(
                f"rows has shape {tuple(rows.shape)} and values up to {int(rows.max())}, expected "
                f"(b,) numbers from 0 to {m - 1}; give what the plate gives, `with plate as rows`"
            )
        if rows.unique().numel() < rows.numel():
            raise ValueError(
                f"rows has {rows.numel()} numbers, {rows.unique().numel()} of them different, "
                "expected each once: a repeated datum would have one draw of its parameters twice"
            )
        name = "_posterior_" + "_".join(site.name for site in self.sites)
        law = _Local(self._pool, rows)
        joint = pyro.sample(name, law, infer={"is_auxiliary": True})
        values = Draws()
        for site, block in zip(self.sites, joint.split(self._sizes, -1), strict=True):
            value = block.reshape(*joint.shape[:-1], *site.shape)
            in_program = self.names.get(site.name, site.name)
            law_of_site = dist.Delta(value, event_dim=len(site.shape))
            values[in_program] = pyro.sample(in_program, law_of_site)
        return values


class _Pool:
    """Draws of m posteriors with their densities, each handed out once."""

    def __init__(
        self,
        posterior: AmortizedDraws,
        data: Mapping[str, Tensor],
        m: int,
        sites: Sequence[ParameterSite],
        block: int,
    ) -> None:
        self.m, self.size = m, sum(site.shape.numel() for site in sites)
        names = [site.name for site in sites]
        self._posterior, self._data, self._names, self._block = posterior, data, names, block
        self._values = torch.empty(m, block, self.size)
        self._log_q = torch.empty(m, block, dtype=torch.float64)
        self._next = torch.full((m,), block)

    def take(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """A new draw for each row (b,), (b, size), and its log density, (b,)."""
        if bool((empty := self._next[rows] >= self._block).any()):
            self._fill(rows[empty].unique())
        place = self._next[rows]
        self._next[rows] += 1
        return self._values[rows, place], self._log_q[rows, place]

    def _fill(self, rows: Tensor) -> None:
        with pyro.poutine.block(), torch.no_grad():
            chosen = {name: torch.as_tensor(value)[rows] for name, value in self._data.items()}
            drawn = self._posterior.scored_draws_of_each(chosen, self._block)
            values = [drawn.theta[name].reshape(len(rows), self._block, -1) for name in self._names]
            self._values[rows] = torch.cat(values, -1)
            self._log_q[rows] = drawn.log_prob.reshape(len(rows), self._block)
        self._next[rows] = 0


class _Local(TorchDistribution):
    """The posteriors of some data, the parameters of a datum side by side."""

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    support = constraints.real_vector

    def __init__(self, pool: _Pool, rows: Tensor, batch_shape: Sequence[int] | None = None) -> None:
        self._pool, self._rows = pool, rows
        self._last: tuple[Tensor, Tensor] | None = None
        shape = rows.shape if batch_shape is None else torch.Size(batch_shape)
        super().__init__(shape, torch.Size([pool.size]), validate_args=False)

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> _Local:
        return _Local(self._pool, self._rows, batch_shape)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        lead = torch.Size([*sample_shape, *self.batch_shape])
        rows = self._rows.expand(lead).reshape(-1, len(self._rows))
        taken = [self._pool.take(some) for some in rows]
        value = torch.stack([v for v, _ in taken]).reshape(*lead, -1)
        self._last = value, torch.stack([log_q for _, log_q in taken]).reshape(lead)
        return value

    def log_prob(self, value: Tensor) -> Tensor:
        if self._last is None or not torch.equal(self._last[0], value):
            raise NotImplementedError(
                "a guide of local latents has densities of its last draws alone, expected those; "
                "for other parameters there is posterior.log_prob(theta, data)"
            )
        return self._last[1].to(value.dtype)
