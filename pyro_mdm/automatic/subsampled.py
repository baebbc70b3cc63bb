r"""A guide of a program whose plate draws a subsample: globals by one chain, rows by another.

With globals x, rows i of the plate, and paths of both,

    W = p(x) r(path | x) / q(path) Π_i w_i,    E[w_i | x] = p(data_i | x),    E[W] = p(data),

where w_i may be the mean over several paths of the row: the guide's weight is unbiased, and E log W
is a lower bound, which more paths of rows raise. A subsample of B of N rows estimates Σ_i log w_i
by N / B times its own sum: the bound is unbiased, and so are its gradients, the weight is not.

The chain of the globals feels no gradient of the data. That of a subsample would make q depend on
the rows by which it is scored, and the bound could then exceed log p(data); that of all rows would
cost N. Its network alone bends the Gaussian.

Source: Geffner & Domke, "Variational Inference with Locally Enhanced Bounds for Hierarchical
Models", 2022.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import ClassVar

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions.torch_distribution import TorchDistribution
from pyro.poutine import Trace
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor
from torch.distributions import constraints

from pyro_mdm.automatic.chain_guide import ChainGuide
from pyro_mdm.automatic.density import ProgramDensity, placed
from pyro_mdm.automatic.fitting import Fitting
from pyro_mdm.automatic.local import RowChain, RowWeights
from pyro_mdm.automatic.maps import solved
from pyro_mdm.automatic.ratio import Ratio
from pyro_mdm.automatic.rows import PlateDensity
from pyro_mdm.automatic.weighing import Weighing, refuse_subsample
from pyro_mdm.support.checks import check_count
from pyro_mdm.support.traces import Site

__all__ = ["SubsampledFitting", "SubsampledGuide"]

COMPARED_BY_ALL = 64
"""The number of paths by which a chain is judged, with all rows."""
SHARED = 16
"""The number of draws of the globals by which a chain of rows is judged."""
ROWS_AT_A_TIME = 100_000
"""The number of rows' paths that are drawn together."""


class _BlindRatio(Ratio):
    """A ratio whose gradient is not asked for."""

    def gradient(self, u: Tensor) -> Tensor:
        return torch.zeros_like(u)


class _RowsLaw(TorchDistribution):
    """The distribution of the ends of rows' paths, in the plate."""

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, z: Tensor, log_q: Tensor) -> None:
        self.z, self.log_q = z, log_q
        super().__init__(log_q.shape, z.shape[-1:], validate_args=False)

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> _RowsLaw:
        shape = torch.Size(batch_shape)
        return _RowsLaw(self.z.expand(*shape, -1), self.log_q.expand(shape))

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        assert not sample_shape
        return self.z

    def log_prob(self, value: Tensor) -> Tensor:
        return self.log_q


class SubsampledGuide(ChainGuide):
    """A :class:`ChainGuide` that is also one of programs whose plate draws a subsample."""

    _packed: Tensor | None = None  # the globals that a call has drawn

    @property
    def plate(self) -> PlateDensity | None:
        """The density of globals and rows, where a plate draws a subsample."""
        density = getattr(self, "program_density", None)
        return density if isinstance(density, PlateDensity) else None

    # -- the program -------------------------------------------------------------------------------

    def _prototype_hide_fn(self, site: Site) -> bool:
        law = site["fn"]
        if isinstance(law, _Subsample):
            size = law.subsample_size
            if site["value"] is None and size is not None and size < law.size:
                self._drawn[site["name"]] = law.size
        inside = any(frame.name in self._drawn for frame in site["cond_indep_stack"])
        return inside or super()._prototype_hide_fn(site)

    def _setup_prototype(self, *args: object, **kwargs: object) -> None:
        self._drawn: dict[str, int] = {}  # sizes of plates that draw a subsample
        try:
            super()._setup_prototype(*args, **kwargs)
        except RuntimeError as error:
            if self._drawn and "no latent variables" in str(error):
                raise ValueError(
                    f"all latents are in the plate {next(iter(self._drawn))!r}, which draws a "
                    "subsample, expected some outside; take all rows"
                ) from error
            raise

    def _made_density(self, trace: Trace) -> ProgramDensity:
        if not self._drawn:
            return super()._made_density(trace)
        if len(self._drawn) > 1:
            names = ", ".join(map(repr, self._drawn))
            raise ValueError(
                f"the plates {names} draw subsamples, expected one at most; take all rows of others"
            )
        if self.start != "gaussian":
            raise ValueError(
                f"the plate {next(iter(self._drawn))!r} draws a subsample, of which the start is "
                "'gaussian', and draws of the posterior are not learned from; expected so, or take "
                "all rows"
            )
        density = PlateDensity(self.program, trace, self._unpack_latent, next(iter(self._drawn)))
        for local in density.local_sites:
            self._prototype_frames.update({f.name: f for f in local["cond_indep_stack"]})
        if density.row_dim:
            rows = RowChain(
                density.start(), self.latent_dim, self._diffusion, self.row_steps, self._width
            )
            self.chain.rows = rows.to(self.loc)
        return density

    # -- weights -----------------------------------------------------------------------------------

    @property
    def kind_of_ratio(self) -> type[Ratio]:
        return Ratio if self.plate is None else _BlindRatio

    def log_density(self, x: Tensor, /, *args: object, **kwargs: object) -> Tensor:
        """log p(x, data) of unconstrained latents (n, latent_dim), with Jacobians, (n,) nats.

        With a plate that draws a subsample: of the globals x, estimated by one subsample and a path
        of each of its rows, whose mean is a lower bound.
        """
        self.set_up(*args, **kwargs)
        if self.plate is None:
            return super().log_density(x, *args, **kwargs)
        _, log_w, alone = self._rows(x, self.plate.subsample(), args, kwargs)
        return alone + log_w.sum(1) * (self.plate.size / self.plate.batch)

    def _rows(
        self, x: Tensor, index: Tensor, args: tuple[object, ...], kwargs: Mapping[str, object]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Latents z (n, B, row_dim) of rows, their log weights (n, B), and log p(x) (n,)."""
        z, log_q = self._paths_of_rows(x, index, args, kwargs)
        alone, rows = self._plate.terms(x, z, index, *args, **kwargs)
        return z, rows - log_q, alone

    def _paths_of_rows(
        self, x: Tensor, index: Tensor, args: tuple[object, ...], kwargs: Mapping[str, object]
    ) -> tuple[Tensor, Tensor]:
        """Latents z (n, B, row_dim) of rows, and log q(path) / r(path | z), (n, B)."""
        n, plate = len(x), self._plate
        if not plate.row_dim:
            return x.new_zeros(n, plate.batch, 0), x.new_zeros(n, plate.batch)

        def density(z: Tensor) -> Tensor:
            rows = z.view(n, plate.batch, plate.row_dim)
            return plate.terms(x, rows, index, *args, **kwargs).rows.flatten()

        unit = solved(self.root, (x - self.loc).mT).mT
        rows: RowChain = self.chain.rows  # type: ignore[assignment]
        z, log_q = rows.draw(density, unit.repeat_interleave(plate.batch, 0))
        return z.view(n, plate.batch, plate.row_dim), log_q.view(n, plate.batch)

    @property
    def _plate(self) -> PlateDensity:
        assert self.plate is not None
        return self.plate

    def of_all_rows(
        self,
        x: Tensor,
        args: tuple[object, ...],
        kwargs: Mapping[str, object],
        *,
        keep: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """log p(x) Π_i w_i of globals x (n, dim), (n,), and x; where kept, with a draw of all rows'
        latents by their weights, (n, dim + N row_dim)."""
        if self.plate is None:
            return super().of_all_rows(x, args, kwargs)
        paths, pieces = self.row_paths, []
        at_a_time = max(1, ROWS_AT_A_TIME // (self._plate.batch * paths))
        for some in x.split(at_a_time):
            repeated, drawn = some.repeat_interleave(paths, 0), []
            total = some.new_zeros(len(some), dtype=torch.float64)
            for index, new in _batches(self._plate):
                z, log_w, alone = self._rows(repeated, index, args, kwargs)
                log_w = log_w.double().view(len(some), paths, -1)[..., :new]
                total = total + (log_w.logsumexp(1) - math.log(paths)).sum(1)
                if keep:
                    drawn.append(_chosen(z.view(len(some), paths, *z.shape[1:]), log_w))
            total = total + alone.double()[::paths]
            pieces.append((total, torch.cat(drawn, 1) if keep else total[:, None, None]))
        log_p, z = (torch.cat(tensors) for tensors in zip(*pieces, strict=True))
        return log_p, torch.cat([x, z.flatten(1)], 1) if keep else x

    def by_site(self, x: Tensor) -> dict[str, Tensor]:
        result = super().by_site(x[:, : self.latent_dim])
        if self.plate is None:
            return result
        z = x[:, self.latent_dim :].view(len(x), self.plate.size, self.plate.row_dim)
        return result | self.plate.rows_by_site(z)

    @torch.no_grad()
    def row_weights(self, paths: int, /, *args: object, **kwargs: object) -> RowWeights:
        """Weights of paths of each row, where a plate draws a subsample, given a draw of globals.

        Args:
            paths: number of paths of each row.
            args, kwargs: arguments of the program.
        """
        check_count("paths", paths, "of a row")
        self.set_up(*args, **kwargs)
        if self.plate is None or not self.plate.row_dim:
            raise ValueError(
                "no plate of the program draws a subsample of rows with latents, expected one; "
                "guide.importance(n) has the weights of all latents together"
            )
        x = self.get_posterior(*args, **kwargs).expand((1,)).rsample().expand(paths, -1)
        rows = [
            self._rows(x, index, args, kwargs)[1][:, :new] for index, new in _batches(self.plate)
        ]
        return RowWeights(torch.cat(rows, 1).double())

    # -- draws -------------------------------------------------------------------------------------

    def sample_latent(self, *args: object, **kwargs: object) -> Tensor:
        self._packed = super().sample_latent(*args, **kwargs)
        return self._packed

    def forward(self, *args: object, **kwargs: object) -> dict[str, Tensor]:
        """Draws of the globals, and, in the plate, of the rows that it draws."""
        result: dict[str, Tensor] = super().forward(*args, **kwargs)
        x, self._packed = self._packed, None
        assert x is not None
        if self.plate is None or not self.plate.row_dim:
            return result
        with self.plates[self.plate.plate] as index:
            pass  # the program, which is run for the paths, has the plate itself
        z, log_q = self._paths_of_rows(x.reshape(-1, self.latent_dim), index, args, kwargs)
        shape = torch.broadcast_shapes(
            x.shape[:-1], (self.plate.batch, *(1,) * (-self.plate.dim - 1))
        )
        law = _RowsLaw(z.reshape(*shape, -1), log_q.reshape(shape))
        name = f"_{self._pyro_name}_rows"
        with self.plates[self.plate.plate]:
            z = pyro.sample(name, law, infer={"is_auxiliary": True})
        return result | self._in_plates(z.reshape(-1, self.plate.batch, self.plate.row_dim), x)

    def _in_plates(self, z: Tensor, x: Tensor) -> dict[str, Tensor]:
        """The sites of rows z (n, B, row_dim), sampled in their plates."""
        result = {}
        for site, u in self._plate.unpacked(z):
            event = site["fn"].event_dim
            batch = site["value"].dim() - event
            lead = x.shape[: -1 - batch] if x.dim() > 1 else ()  # of particles
            u = u.reshape(*lead, *u.shape[1:])
            value, log_det = placed(site, u)
            log_density = -log_det
            if poutine.get_mask() is False:
                log_density = torch.zeros_like(log_density)
            with ExitStack() as stack:
                for frame in site["cond_indep_stack"]:
                    stack.enter_context(self.plates[frame.name])
                law = dist.Delta(value, log_density=log_density, event_dim=event)
                result[site["name"]] = pyro.sample(site["name"], law)
        return result

    def rows(self, draws: object, /, *args: object, **kwargs: object) -> Tensor:
        self.set_up(*args, **kwargs)
        refuse_subsample(self, "draws of the posterior")
        return super().rows(draws, *args, **kwargs)


class SubsampledFitting(Fitting):
    """A fit by subsamples, whose Gaussian and chain are compared by all rows."""

    guide: SubsampledGuide

    def from_start(self) -> Tensor:
        """Fit the Gaussian, and anneal the chain of the globals from it, together with that of the
        rows, which stays as it was if it had a higher bound before."""
        rows = getattr(self.guide.chain, "rows", None)
        before = copy.deepcopy(rows)
        losses = super().from_start()
        if isinstance(rows, RowChain) and isinstance(before, RowChain):
            with torch.no_grad():
                x = self.guide.get_posterior(*self.args, **self.kwargs).expand((SHARED,)).rsample()
                trained, after = copy.deepcopy(rows.state_dict()), self._bound_of_rows(x)
                rows.load_state_dict(before.state_dict())
                if bool(after > self._bound_of_rows(x)):
                    rows.load_state_dict(trained)
        return losses

    def _bound_of_rows(self, x: Tensor) -> Tensor:
        """The mean bound on log p(x, data) of globals x (n, dim); -inf where it is NaN."""
        return self.guide.of_all_rows(x, self.args, self.kwargs)[0].mean().nan_to_num(-math.inf)

    @property
    def _updates_of_start(self) -> float:
        return 1.0  # the chain of the globals feels no gradient

    def _bound_of_start(self, n: int) -> Tensor:
        x, log_q = self._paired(n)
        return self.guide.ratio(*self.args, **self.kwargs).log_density(x) - log_q

    def _paired(self, n: int) -> tuple[Tensor, Tensor]:
        """n draws of the start and their log densities: a subsample moves the gradients of all
        draws alike, which in pairs leaves the scale alone."""
        ratio = self.guide.ratio(*self.args, **self.kwargs)
        u = torch.randn((n + 1) // 2, self.guide.latent_dim).to(self.guide.loc)
        u = torch.cat([u, -u])
        return ratio.place(u), ratio.log_unit(u)

    @torch.no_grad()
    def _judged(self, what: str) -> float:
        """The mean bound of the start or the chain, by all rows."""
        if what == "start":
            x, log_q = self._paired(COMPARED_BY_ALL)
            bound = self.guide.of_all_rows(x, self.args, self.kwargs)[0] - log_q
        else:
            drawn = Weighing(self.guide, self.args, self.kwargs).paths(COMPARED_BY_ALL)
            bound = drawn.log_target - drawn.log_proposal
        return float(bound.mean().nan_to_num(-math.inf))


def _batches(plate: PlateDensity) -> list[tuple[Tensor, int]]:
    """All rows in order, in batches as large as subsamples, with the number of rows that are new.

    The last is filled up with the first rows.
    """
    return [
        ((torch.arange(plate.batch) + first) % plate.size, min(plate.batch, plate.size - first))
        for first in range(0, plate.size, plate.batch)
    ]


def _chosen(z: Tensor, log_w: Tensor) -> Tensor:
    """For each row one of its paths' ends by their weights, (n, rows, d), of z (n, paths, B, d)."""
    n, paths, new = log_w.shape
    shares = log_w.nan_to_num(-math.inf).softmax(1).nan_to_num(1 / paths)
    path = torch.multinomial(shares.movedim(1, 2).reshape(-1, paths), 1).view(n, 1, new, 1)
    return z[:, :, :new].gather(1, path.expand(-1, -1, -1, z.shape[-1]))[:, 0]
