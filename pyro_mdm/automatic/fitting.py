"""The training of an automatic guide: its Gaussian or particles, then its chain."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributions import biject_to

from pyro_mdm.automatic.chain_guide import COMPARED, ChainGuide
from pyro_mdm.automatic.laplace import laplace
from pyro_mdm.automatic.mixture import Component, Mixture
from pyro_mdm.automatic.ratio import Ratio
from pyro_mdm.budgets import Budget
from pyro_mdm.posteriors.tempering import GROUPS, temper
from pyro_mdm.training import Trainer

__all__ = ["Fitting"]

CLIP = 10.0
"""The norm at which gradients are clipped."""
WORST = 50.0
"""Nats below the median beyond which a path's weight doesn't count in an update."""
OF_PRIOR = 200
"""Draws of the prior, by whose spread particles start."""
OF_START = 0.3
"""The share of the seconds that the start has, of those that are left."""
RACED = 0.25
"""The share of the start's training that the usual start and Laplace's approximation have each,
before the better of them has the rest."""
OF_PARTICLES, OF_MIXTURE = 0.4, 0.5
"""The shares of the seconds that particles have, and that they have together with their mixture."""
PARTICLES, FIRST_PARTICLES, MOST_PARTICLES = 4_096, 256, 16_384
"""The number of particles, which a program sees at once too, and within seconds the number of those
that are tempered first, which tells how many there is time for, and the most."""
LEAPS, FEW_LATENTS = 5, 10
"""The leapfrog steps of particles' Hamiltonian moves, and the latents up to which moves by
differences of particles serve, at a fraction of the cost."""
WINDOW, PATIENCE, LEAST_GAIN, COOL_DOWN = 50, 3, 0.02, 0.3
"""Within seconds: the updates whose mean losses are compared, the number of these without a gain
after which rates fall, the least gain in nats, and the part of the updates so far in which they
fall."""


@dataclass
class Fitting:
    """One fit of a guide to a program with its arguments.

    Args:
        guide: the guide, set up.
        args, kwargs: arguments of the program.
        updates, start_updates: numbers of updates of the chain, and of the start.
        paths: number of paths drawn for an update.
        learning_rate: learning rate of the chain; that of the start is four times as high.
        budget: the seconds of both trainings together, and of tempering.
        progress: whether progress bars are shown.
        draws: draws to which the start was fitted, in its units, (n, dim); None: none.
        units: m and R of the coordinates z of x = m + R z in which the start is fitted; None: x.
        seconds_of_start: the seconds of the start's training.
    """

    guide: ChainGuide
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    updates: int
    start_updates: int
    paths: int
    learning_rate: float
    budget: Budget
    progress: bool
    draws: Tensor | None = None
    units: tuple[Tensor, Tensor] | None = None
    seconds_of_start: float = 0.0

    def from_start(self) -> Tensor:
        """Fit the start, and anneal the chain from it; returns the chain's losses, (updates,).

        A chain with a lower bound than the start alone becomes that start.
        """
        guide = self.guide
        chain = guide.chain
        self.seconds_of_start = OF_START * (self.budget.left() or 0.0)
        raced = self._raced()
        before = self._copied()
        try:
            self._train_start(1.0 - raced)
        except ValueError:  # no finite gradients any more: the race has a start at least
            if raced == 0:
                raise
            self._restore(before)
        self._leave_units()
        losses = self._train(chain.parameters(), self._loss_of_chain, "chain")
        with torch.no_grad():
            gain = self._bound_of_chain(COMPARED).mean() - self._bound_of_start(COMPARED).mean()
        if not bool(gain >= 0):
            chain.rest()
        return losses

    def _raced(self) -> float:
        """Train the usual start and Laplace's approximation in turn, and keep that with the higher
        bound; returns the share of the start's training that this took."""
        guide = self.guide
        if isinstance(guide.shape, Mixture) or guide.program_density.plate is not None:
            return 0.0
        ratio = guide.ratio(*self.args, **self.kwargs)
        with torch.no_grad():
            x = ratio.place(torch.zeros(1, guide.latent_dim).to(guide.loc))[0]
            approximation = laplace(ratio.log_density, x, self.budget)
        if approximation is None:
            return 0.0
        errors = list[ValueError]()

        def trained() -> float:
            try:
                self._train_start(RACED)
            except ValueError as error:  # there are no finite gradients from there
                errors.append(error)
                return -math.inf
            with torch.no_grad():
                bound = float(self._bound_of_start(COMPARED).mean())
            return bound if math.isfinite(bound) else -math.inf

        first = self._copied()
        bound, usual = trained(), self._copied()
        self._restore(first)
        self.units = approximation
        guide.become_gaussian(torch.zeros_like(guide.loc), torch.eye(guide.latent_dim).to(x))
        if not trained() > bound:
            self.units = None
            self._restore(usual)
        if len(errors) == 2:
            raise errors[0]
        return 2 * RACED

    def _train_start(self, share: float) -> None:
        """Train the start for a share of its updates."""
        what = "Gaussian" if self.guide.shape is None else "start"
        self._train(self._of_start().values(), self._loss_of_start, what, share)

    def _loss_of_start(self) -> Tensor:
        """The negative bound of a Gaussian.

        That of a mixture has gradients of probabilities too, by the score function. To it comes the
        negative log density of draws that the mixture was fitted to: the bound alone would leave
        tails and gaps between modes out, where weights are then large.
        """
        if not isinstance(self.guide.shape, Mixture):
            return -_clamped(self._bound_of_start()).mean()
        bound, h = self._drawn_from_start(self.paths)
        assert self.draws is not None and isinstance(h.shape, Component)
        bound, log_share = _clamped(bound), h.shape.log_share
        gain = bound.detach() - bound.detach().mean()
        bound = bound + gain * (log_share - log_share.detach())
        rows = self.draws[torch.randint(len(self.draws), (self.paths,))]
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
        """That of the guide, whose Gaussian may be in other units."""
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
            self.guide.become_gaussian(h.loc, h.scale_tril)
        self.units = None

    def _drawn_from_start(self, n: int) -> tuple[Tensor, Ratio]:
        """The log weights of n draws of the start, (n,), and the ratio of these."""
        u = torch.randn(n, self.guide.latent_dim).to(self.guide.loc)
        h = self._ratio_of_start().of_paths(n)
        return h.log_density(h.place(u)) - h.log_unit(u), h

    def _bound_of_start(self, n: int | None = None) -> Tensor:
        return self._drawn_from_start(n or self.paths)[0]

    def _bound_of_chain(self, n: int | None = None) -> Tensor:
        return self.guide.log_weights(n or self.paths, *self.args, **self.kwargs)[1]

    def _loss_of_chain(self) -> Tensor:
        return -_clamped(self._bound_of_chain()).mean()

    def _train(
        self,
        parameters: Iterable[Tensor],
        loss: Callable[[], Tensor],
        what: str,
        share: float = 1.0,
    ) -> Tensor:
        is_start = what != "chain"
        steps = round(share * self.start_updates) if is_start else self.updates
        ends = self.budget.seconds is not None
        seconds = self.seconds_of_start * share if is_start else self.budget.left()
        trainer = Trainer(
            parameters,
            steps=steps,
            learning_rate=4 * self.learning_rate if is_start else self.learning_rate,
            warmup=0,
            clip=CLIP,
            average=None,
            skip=True,
            patience=PATIENCE if ends else None,
            least_gain=LEAST_GAIN,
            window=WINDOW if ends else None,
            cool_down=COOL_DOWN,
            seconds=seconds if ends else None,
            progress=what if self.progress else False,
        )
        losses: list[Tensor] = []
        for _ in trainer:
            losses.append(loss())
            trainer.step(losses[-1])
            losses[-1] = losses[-1].detach()
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

    def tempered(self, n: int | None) -> Tensor:
        """Particles of the posterior (n, dim), from a Gaussian like the prior.

        Args:
            n: their number, or within seconds the most; None: the usual one.
        """
        guide = self.guide
        rows = []
        for _ in range(OF_PRIOR):
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

        leaps = LEAPS if guide.latent_dim > FEW_LATENTS else 0

        def particles(n: int) -> Tensor:
            first = prior.sample((GROUPS, n // (2 * GROUPS) * 2))  # in halves
            return temper(first, start, gain, leaps=leaps).draws(n)

        left = self.budget.left()
        if left is None:
            return particles(n or PARTICLES)
        end, most = self.budget.spent + OF_PARTICLES * left, n or MOST_PARTICLES
        tempered = min(most, FIRST_PARTICLES)
        while True:  # few take longer for each than many, so that time may suffice for more
            began, drawn = self.budget.spent, particles(tempered)
            now = self.budget.spent
            affordable = int(tempered * (end - now) / max(now - began, 1e-9))
            if tempered == most or affordable < 2 * tempered:
                return drawn
            tempered = min(most, affordable)

    def for_mixture(self) -> Budget | None:
        """The seconds until a mixture has to be fitted; None: no limit."""
        if self.budget.seconds is None:
            return None
        return Budget(OF_MIXTURE * self.budget.seconds, spent=self.budget.spent).start()


def _clamped(bound: Tensor) -> Tensor:
    """A bound (n,) whose values far below the median, NaN or infinite do not count."""
    finite = bound.isfinite()
    floor = torch.where(finite, bound.detach(), math.nan).nanmedian() - WORST
    return torch.where(finite, bound, floor).clamp_min(floor)
