"""The training of an automatic guide: its Gaussian or particles, then its chain."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import biject_to

from pyro_mdm.automatic.chain_guide import COMPARED, ChainGuide
from pyro_mdm.automatic.laplace import laplace
from pyro_mdm.automatic.mixture import Component, Mixture
from pyro_mdm.automatic.ratio import Ratio
from pyro_mdm.automatic.symmetry import Symmetry
from pyro_mdm.automatic.weighing import paths_at_once
from pyro_mdm.budgets import Budget, steps_within
from pyro_mdm.evaluation.tempering import GROUPS, temper
from pyro_mdm.training import Trainer

__all__ = ["FitSettings", "Fitting", "become_gaussian"]

CLIP = 10.0
"""The norm at which gradients are clipped."""
WORST = 50.0
"""Nats below the median beyond which a path's weight doesn't count in an update."""
OF_PRIOR, LEAST_OF_PRIOR = 200, 20
"""Draws of the prior, by whose spread particles start, and the fewest where they take long."""
OF_START, OF_COMPARISON = 0.3, 0.1
"""The shares of the seconds that the start's training has, of those that are left, and the last
comparison of bounds."""
OF_RACE = 0.15
"""The share of the start's training that the usual start and Laplace's approximation have each,
where they race, before the better of them has the rest."""
WORTH_A_RACE, WORTH_A_START, WORTH_A_CHAIN = 60, 10, 30
"""Updates within seconds, below which there is no race, no training of the start, or no chain."""
LOOSE = 1.0
"""The nats between Laplace's bound and its evidence up to which it needs no race within seconds."""
DERIVATIVES = 3.0
"""The time of a gradient of a gradient, in gradients."""
OF_PARTICLES, OF_MIXTURE = 0.4, 0.5
"""The shares of the seconds that particles have, and that they have together with their mixture."""
PARTICLES, FIRST_PARTICLES, MOST_PARTICLES = 4_096, 256, 16_384
"""The number of particles, which a program sees at once too, and within seconds the number of those
that are tempered first, which tells how many there is time for, and the most."""
LEAPS, FEW_LATENTS = 5, 10
"""The leapfrog steps of particles' Hamiltonian moves, and the latents up to which moves by
differences of particles serve, at a fraction of the cost."""
UPDATES = 1_000
"""The most updates of the start, and of the chain, where neither they nor seconds are given."""
WINDOW, COOL_DOWN = 50, 0.3
"""Where updates are not given: those whose mean losses are compared, and the part of the updates so
far in which rates fall once nothing is gained."""
QUICK, LONG = (3, 0.02), (10, 0.005)
"""The number of windows without a gain after which rates fall, and the least gain in nats, without
seconds, and within them."""


class FitSettings(NamedTuple):
    """The numbers of a fit, as of ``AutoMDM.fit``; None: the usual ones."""

    updates: int | None = None
    start_updates: int | None = None
    paths: int | None = None
    particles: int | None = None
    learning_rate: float = 5e-3
    seconds: float | None = None


@dataclass
class Fitting:
    """One fit of a guide to a program with its arguments.

    Args:
        guide: the guide, set up.
        args, kwargs: arguments of the program.
        settings: the numbers of updates and particles, and the learning rate.
        paths: number of paths drawn for an update.
        budget: the seconds of all that follows.
        progress: whether progress bars are shown.
        draws: draws to which the start was fitted, in its units, (n, dim); None: none.
        units: m and R of the coordinates z of x = m + R z in which the start is fitted; None: x.
    """

    guide: ChainGuide
    args: tuple[object, ...]
    kwargs: Mapping[str, object]
    settings: FitSettings
    paths: int
    budget: Budget
    progress: bool
    draws: Tensor | None = None
    units: tuple[Tensor, Tensor] | None = None

    def from_start(self) -> Tensor:
        """Fit the start, and anneal the chain from it; returns the chain's losses, (updates,).

        What has the highest bound is kept: Laplace's approximation, the trained start, or the
        chain. Within seconds nothing is begun that there is no time for.
        """
        chain, is_first = self.guide.chain, len(self.guide.losses) == 0
        seconds = self._seconds_of_update()
        pays = self._pays(
            self.settings.updates, WORTH_A_CHAIN, seconds * self._updates_of_start, OF_START
        )
        share = OF_START if pays and self.settings.updates != 0 else 1 - OF_COMPARISON
        raced = self._raced(seconds, share)
        left = self._left(share)
        bound = self._judged("start")
        if self._pays(self.settings.start_updates, WORTH_A_START, seconds, 0.0):
            bound = self._improved(1.0 - raced, left / (1.0 - raced), bound, is_alone=not raced)
        self._leave_units()
        losses = self.guide.losses
        if pays:
            if chain.is_at_rest:
                chain.reset()
            left = self._left(1 - OF_COMPARISON)

            def loss(n: int) -> Tensor:
                return -_clamped(self._bound_of_chain(n)).mean()

            losses = self._train(chain.parameters(), loss, "chain", self.settings.updates, left)
        if (is_first and not pays) or self._judged("chain") < bound:
            chain.rest()
        return losses

    @property
    def _updates_of_start(self) -> float:
        """The time of an update of the chain, in those of the start."""
        return DERIVATIVES * (self.guide.chain.steps + 1)

    def _seconds_of_update(self) -> float:
        """The seconds of an update of the start; 0 where no seconds are given."""
        if self.budget.seconds is None:
            return 0.0
        before, paths = self.budget.spent, paths_at_once(self.guide, self.paths)
        weights = [weight for weight in self._of_start().values() if weight.requires_grad]
        torch.autograd.grad(self._loss_of_start(paths), weights, allow_unused=True)
        return (self.budget.spent - before) * self.paths / paths

    def _pays(self, updates: int | None, worth: int, seconds: float, before: float) -> bool:
        """Whether there is time for so many updates, after a share of the seconds that are left, or
        their number was given."""
        left = self.budget.left()
        return updates is not None or left is None or (1 - before) * left >= worth * seconds

    def _left(self, share: float) -> float:
        """A share of the seconds that are left; 0 where none are given, and nobody asks."""
        return share * (self.budget.left() or 0.0)

    def _raced(self, seconds: float, share: float) -> float:
        """Become Laplace's approximation, if that has the higher bound, and return the share of the
        start's training that this took: where there is time, both are trained before.

        An update takes so many seconds, and the start has a share of those that are left."""
        guide = self.guide
        if isinstance(guide.shape, Mixture) or guide.program_density.plate is not None:
            return 0.0
        if paths_at_once(guide, guide.latent_dim) < guide.latent_dim:  # of a Hessian
            return 0.0
        ratio = guide.ratio(*self.args, **self.kwargs)
        with torch.no_grad():
            x = ratio.place(torch.zeros(1, guide.latent_dim).to(guide.loc))[0]
            approximation = laplace(ratio.log_density, x, self.budget)
        if approximation is None:
            return 0.0
        errors, left = list[ValueError](), self._left(share)

        def bound() -> float:
            try:
                if races:
                    self._train_start(OF_RACE, left)
            except ValueError as error:  # there are no finite gradients from there
                errors.append(error)
                return -math.inf
            return self._judged("start")

        usual = self._copied()
        self.units = approximation
        become_gaussian(guide, torch.zeros_like(guide.loc), torch.eye(guide.latent_dim).to(x))
        races = self.budget.seconds is None or (
            left >= WORTH_A_RACE * seconds and self._looseness() > LOOSE
        )
        bound_of_laplace, approximated = bound(), self._copied()
        self.units = None
        self._restore(usual)
        if bound_of_laplace > bound():
            self.units = approximation
            self._restore(approximated)
        if len(errors) == 2:
            raise errors[0]
        return 2 * OF_RACE * races

    @torch.no_grad()
    def _looseness(self) -> float:
        """How far the bound of the start is below the evidence by its own weights, nats."""
        bound = self._bound_of_start(paths_at_once(self.guide, COMPARED // 4))
        evidence = bound.double().nan_to_num(-math.inf).logsumexp(0) - math.log(len(bound))
        return float((evidence - _clamped(bound).mean()).nan_to_num(math.inf))

    def _improved(self, share: float, seconds: float, bound: float, *, is_alone: bool) -> float:
        """Train the start for the share of its training that is left, and return its bound; it
        stays as it is where the one before is higher. Its errors are raised where no other start
        has been trained."""
        before = self._copied()
        try:
            self._train_start(share, seconds)
        except ValueError:  # no finite gradients any more
            if is_alone:
                raise
            after = -math.inf
        else:
            after = self._judged("start")
            if isinstance(self.guide.shape, Mixture):
                return after
        if after < bound:
            self._restore(before)
        return max(after, bound)

    def _train_start(self, share: float, seconds: float) -> None:
        """Train the start for a share of its updates and seconds."""
        what = "Gaussian" if self.guide.shape is None else "start"
        weights = self._of_start().values()
        self._train(weights, self._loss_of_start, what, self.settings.start_updates, seconds, share)

    @torch.no_grad()
    def _judged(self, what: str) -> float:
        """The mean bound of the start or the chain by a thousand paths, or fewer where the seconds
        are over, nats; values far below the median don't count, nor NaN."""
        bound = self._bound_of_start if what == "start" else self._bound_of_chain
        drawn = list[Tensor]()
        at_once = paths_at_once(self.guide, COMPARED // 4)
        while not drawn or (len(drawn) * at_once < COMPARED and self.budget.share < 1):
            drawn.append(bound(at_once))
        return float(_clamped(torch.cat(drawn)).mean().nan_to_num(-math.inf))

    def _loss_of_start(self, n: int) -> Tensor:
        """The negative bound of a Gaussian, by n draws.

        That of a mixture has gradients of probabilities too, by the score function. To it comes the
        negative log density of draws that the mixture was fitted to: the bound alone would leave
        tails and gaps between modes out, where weights are then large.
        """
        if not isinstance(self.guide.shape, Mixture):
            return -_clamped(self._bound_of_start(n)).mean()
        bound, h = self._drawn_from_start(n)
        assert self.draws is not None and isinstance(h.shape, Component)
        bound, log_share = _clamped(bound), h.shape.log_share
        gain = bound.detach() - bound.detach().mean()
        bound = bound + gain * (log_share - log_share.detach())
        rows = self.draws[torch.randint(len(self.draws), (n,))]
        return -bound.mean() - _clamped(self.guide.shape.log_density(rows)).mean()

    def _of_start(self) -> dict[str, Tensor]:
        """The parameters of the start, of which a mixture has its components alone."""
        is_mixture = isinstance(self.guide.shape, Mixture)
        names = "shape." if is_mixture else ("loc", "scale", "shape.")
        return {n: p for n, p in self.guide.named_parameters() if n.startswith(names)}

    def _copied(self) -> dict[str, Tensor]:
        return {name: tensor.detach().clone() for name, tensor in self._of_start().items()}

    @torch.no_grad()
    def _restore(self, values: dict[str, Tensor]) -> None:
        parameters = self._of_start()
        for name, value in values.items():
            parameters[name].copy_(value)

    def _ratio_of_start(self) -> Ratio:
        """The guide's ratio, with its Gaussian in the program's units."""
        h = self.guide.ratio(*self.args, **self.kwargs)
        if self.units is None:
            return h
        middle, root = self.units
        return Ratio(h.log_density, middle + root @ h.loc, root @ h.scale_tril, h.shape)

    @torch.no_grad()
    def _leave_units(self) -> None:
        """Make the guide's Gaussian the one that was fitted in other units."""
        h = self._ratio_of_start()
        if self.units is not None:
            become_gaussian(self.guide, h.loc, h.scale_tril)
        self.units = None

    def _drawn_from_start(self, n: int) -> tuple[Tensor, Ratio]:
        """The log weights of n draws of the start, (n,), and the ratio of these."""
        u = torch.randn(n, self.guide.latent_dim).to(self.guide.loc)
        h = self._ratio_of_start().of_paths(n)
        return h.log_density(h.place(u)) - h.log_unit(u), h

    def _bound_of_start(self, n: int) -> Tensor:
        return self._drawn_from_start(n)[0]

    def _bound_of_chain(self, n: int) -> Tensor:
        return self.guide.log_weights(n, *self.args, **self.kwargs)[1]

    def _train(
        self,
        parameters: Iterable[Tensor],
        loss: Callable[[int], Tensor],
        what: str,
        updates: int | None,
        seconds: float,
        share: float = 1.0,
    ) -> Tensor:
        """Train on a loss of a number of paths, for a share of its updates and seconds."""
        within = self.budget.seconds
        patience, least_gain = QUICK if within is None else LONG
        ends = updates is None
        steps = steps_within(updates, within, UPDATES, least=0)
        trainer = Trainer(
            parameters,
            steps=round(share * steps),
            learning_rate=(1 if what == "chain" else 4) * self.settings.learning_rate,
            warmup=0,
            clip=CLIP,
            average=None,
            skip=True,
            patience=patience if ends else None,
            least_gain=least_gain,
            window=WINDOW if ends else None,
            cool_down=COOL_DOWN,
            seconds=None if within is None else max(share * seconds, 1e-3),
            progress=what if self.progress else False,
        )
        losses: list[Tensor] = []
        at_once = paths_at_once(self.guide, self.paths, kept=True)
        sizes = [len(paths) for paths in torch.arange(self.paths).split(at_once)]
        for _ in trainer:
            trainer.step(loss(size) * (size / self.paths) for size in sizes)
            losses.append(trainer.last_loss)
        trainer.optimizer.zero_grad()
        outcome, raced = trainer.outcome, self.guide.outcomes.get(what)
        if raced is not None:
            steps, seconds = raced.steps + outcome.steps, raced.seconds + outcome.seconds
            outcome = outcome._replace(steps=steps, seconds=seconds)
        self.guide.outcomes[what] = outcome
        taken = trainer.step_number
        if taken - trainer.skipped < taken / 2:
            guide = self.guide
            x = guide.log_weights(self.paths, *self.args, **self.kwargs)[0]
            guide.program_density.check_slope(x, *self.args, **self.kwargs)
            raise ValueError(
                f"gradients were finite in {taken - trainer.skipped} of {taken} updates of the "
                f"{what}, expected most; mend the program's derivatives, or choose another "
                "init_loc_fn"
            )
        return torch.stack(losses) if losses else torch.zeros(0)

    @torch.no_grad()
    def become_mixture(self, mixture: Mixture, x: Tensor) -> None:
        """Fit the mixture of the start to images of draws x (n, latent_dim), and keep these in
        units of their deviations."""
        guide = self.guide
        density = guide.ratio(*self.args, **self.kwargs).log_density
        symmetry = Symmetry.from_density(guide.program_density, guide.latents(), density, x[:2])
        distinct = x.unique(dim=0, return_inverse=True)[1]
        x = symmetry.scattered(x)
        become_gaussian(guide, x.mean(0), torch.diag(x.std(0).clamp_min(1e-6)))
        guide.chain.reset()
        self.draws = (x - guide.loc) / guide.scale
        mixture.fit(self.draws, distinct, self._until(OF_MIXTURE))

    def tempered(self) -> Tensor:
        """Particles of the posterior (n, dim), from a Gaussian like the prior: as many as are
        given, or within seconds at most so many."""
        guide = self.guide
        rows = list[Tensor]()
        for _ in range(OF_PRIOR):
            if len(rows) >= LEAST_OF_PRIOR and self.budget.share > OF_PARTICLES / 4:
                break
            try:
                trace = guide.program_density.drawn(*self.args, **self.kwargs)
            except NotImplementedError as error:
                reason = str(error).partition("\n")[0]
                raise ValueError(
                    f"start='particles' draws from the program, which cannot be drawn ({reason}); "
                    "give its sites proper priors, or take start='gaussian'"
                ) from error
            pairs = [(trace.nodes[name], site) for name, site in guide.latents()]
            unconstrained = [
                biject_to(site["fn"].support).inv(drawn["value"]) for drawn, site in pairs
            ]
            rows.append(torch.cat([value.flatten() for value in unconstrained]))
        low, middle, high = torch.stack(rows).quantile(
            torch.tensor([0.05, 0.5, 0.95]).to(rows[0]), 0
        )
        # 3.29 deviations lie between these quantiles of a Gaussian, which heavy tails don't move
        prior = torch.distributions.Normal(middle, ((high - low) / 3.29).clamp_min(1e-3))

        def start(x: Tensor) -> Tensor:
            return prior.log_prob(x).sum(1)

        def gain(x: Tensor) -> Tensor:
            densities = [
                guide.log_density(y, *self.args, **self.kwargs) for y in x.split(PARTICLES)
            ]
            return torch.cat(densities) - start(x)

        until = self._until(OF_PARTICLES)
        leaps = LEAPS if guide.latent_dim > FEW_LATENTS else 0

        def particles(n: int) -> Tensor:
            first = prior.sample((GROUPS, n // (2 * GROUPS) * 2))  # in halves
            return temper(first, start, gain, leaps=leaps, budget=until).draws(n)

        left = self.budget.left()
        n = self.settings.particles or (PARTICLES if left is None else MOST_PARTICLES)
        most = max(4 * GROUPS, paths_at_once(guide, n))
        if left is None:
            return particles(most)
        end = self.budget.spent + OF_PARTICLES * left
        tempered = min(most, FIRST_PARTICLES)
        while True:  # few take longer for each than many, so that time may suffice for more
            began, drawn = self.budget.spent, particles(tempered)
            now = self.budget.spent
            affordable = int(tempered * (end - now) / max(now - began, 1e-9))
            if tempered == most or affordable < 2 * tempered:
                return drawn
            tempered = min(most, affordable)

    def _until(self, share: float) -> Budget | None:
        """The budget that ends when a share of the seconds is spent; None: no limit."""
        if self.budget.seconds is None:
            return None
        return Budget(share * self.budget.seconds, spent=self.budget.spent).start()


def become_gaussian(guide: ChainGuide, loc: Tensor, root: Tensor) -> None:
    """Take a mean (latent_dim,) and a Cholesky factor (latent_dim, latent_dim)."""
    guide.loc.data, guide.scale = loc, root.diagonal()
    guide.scale_tril = root / root.diagonal()[:, None]


def _clamped(bound: Tensor) -> Tensor:
    """A bound (n,) whose values far below the median, NaN or infinite do not count."""
    finite = bound.isfinite()
    floor = torch.where(finite, bound.detach(), math.nan).nanmedian() - WORST
    return torch.where(finite, bound, floor).clamp_min(floor)
