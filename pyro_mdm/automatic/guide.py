"""A diffusion as an automatic guide of a Pyro program."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from pyro_mdm.automatic.bidirectional import gap_by_draws, gap_by_simulation
from pyro_mdm.automatic.chain_guide import name_of_start, parameters
from pyro_mdm.automatic.checkup import MOST_FOR_PARTICLES, Checkup, checked, second
from pyro_mdm.automatic.fitting import FitSettings, Fitting
from pyro_mdm.automatic.mixture import Mixture
from pyro_mdm.automatic.subsampled import SubsampledFitting, SubsampledGuide
from pyro_mdm.automatic.weighing import refuse_subsample
from pyro_mdm.budgets import Budget
from pyro_mdm.evaluation.tempering import GROUPS
from pyro_mdm.evaluation.weights import Gap
from pyro_mdm.support.checks import check_count, check_number, checked_arguments

__all__ = ["AutoMDM"]


class AutoMDM(SubsampledGuide):
    r"""A guide by a diffusion, from a Gaussian to the posterior of a program.

    It is :class:`~pyro.infer.autoguide.AutoMultivariateNormal`, or another start, followed by
    steps of a diffusion that feel the gradient of the program's density, and a network. The path is
    an auxiliary variable of the guide, and the program is extended by a noising chain, so that

        log w = log p(x, data) - log q(path) / r(path | x),    E w = p(data),

    whatever the parameters. Before training paths follow the gradient alone. Latents are those of
    ``AutoContinuous``: continuous sites with any support, in any plates. Discrete sites that can be
    enumerated are summed over in the gradient; train with ``TraceEnum_ELBO`` then.

    Args:
        model: the program, conditioned on its data or observing them.
        diffusion: diffusion of any Q, D and K, with Σ_∞ whose entry of x is 1; None:
            :class:`~pyro_mdm.VPSDE`.
        steps: number N of steps of the chain.
        start: kind of start. "gaussian", for posteriors of one mode and any number of latents: the
            chain is annealed from the Gaussian of the highest bound, and learns to raise the bound.
            Laplace's approximation, up to 500 latents, is the first answer, and the Gaussian is
            trained from it. Where there is time, it is also trained from ``init_loc_fn``, for a
            part of its updates, and the better has the rest.
            "shaped": the same, but the scale of a latent may depend on earlier ones, as in a
            funnel, and each latent has tails of its own (:class:`~pyro_mdm.automatic.shape.Shape`).
            "particles", for posteriors of several modes and up to about fifty latents: particles
            are tempered to the posterior, a mixture of Gaussians is fitted to them
            (:class:`~pyro_mdm.automatic.mixture.Mixture`), and the chain is annealed from that,
            within its components. Or a function of the number of latents that
            makes a transform of standard normals, such as Pyro's ``spline_autoregressive`` or a
            flow of zuko: the chain is annealed from it, followed by a Gaussian's loc and scale.
        width: width of the network's layers.
        row_steps: number of steps of the chain of a row's latents, in a plate that draws a
            subsample.
        row_paths: number of paths of each of these rows for a weight.
        init_loc_fn: start of the Gaussian, as of ``AutoMultivariateNormal``.
        init_scale: scale of the Gaussian at the start, as of ``AutoMultivariateNormal``.

    Source: Vargas et al., "Transport meets Variational Inference: Controlled Monte Carlo
    Diffusions", 2024; Blessing et al., "Underdamped Diffusion Bridges with Applications to
    Sampling", 2025.

    Example:
        >>> import pyro
        >>> import pyro.distributions as dist
        >>> def program():
        ...     a = pyro.sample("a", dist.Normal(0.0, 1.0))
        ...     pyro.sample("b", dist.Normal(a**2, 0.5), obs=torch.tensor(1.0))
        >>> guide = AutoMDM(program, steps=4)
        >>> _ = guide.fit(updates=2, start_updates=2, progress=False)
        >>> guide.sample_posterior(5)["a"].shape
        torch.Size([5])
    """

    _settings = FitSettings()  # of the last fit

    @checked_arguments
    def fit(
        self,
        *args: object,
        updates: int | None = None,
        start_updates: int | None = None,
        paths: int | None = None,
        particles: int | None = None,
        learning_rate: float = 5e-3,
        draws: object = None,
        seconds: float | None = None,
        progress: bool = True,
        **kwargs: object,
    ) -> AutoMDM:
        """Fit the start, or temper particles, and then train the chain from there.

        Parameters of the program stay as they are. Learning rates fall to 0 by a cosine. Where the
        chain ends with a lower bound than its start alone, it is that start. ``SVI``
        with ``Trace_ELBO`` trains the Gaussian, the chain and the program's parameters at once,
        from where they are.

        Args:
            args, kwargs: arguments of the program; functools.partial binds those with the names
                below.
            updates: number of updates of the chain; None: up to 1,000, or as many as fit into
                ``seconds``, until nothing is gained. A chain for which there is time for fewer than
                30 is not begun, and the start has all of the time.
            start_updates: number of updates of the start before; None: the same, in three tenths
                of ``seconds``.
            paths: number of paths drawn for an update; None: 128, or 16 where a plate draws a
                subsample.
            particles: number of particles that are tempered; None: 4,096, or up to 16,384 within
                ``seconds``. Within seconds there are fewer, 256 at least, if two fifths of them
                do not suffice.
            learning_rate: learning rate of the chain; that of the start is four times as high.
            draws: draws of the posterior that exist already, by site, (n, *shape) or
                (chains, n, *shape), such as ``mcmc.get_samples()`` or an ``InferenceData`` of
                ArviZ. The start becomes their mixture, as of particles.
            seconds: number of seconds of the whole fit, which an update may exceed; None: no limit.
                Where updates are not given, a training ends earlier, with rates that fall to 0, if
                mean losses of 50 updates have fallen by less than 0.005 nats ten times, or without
                seconds by less than 0.02 nats three times.
            progress: whether a progress bar is shown.

        Returns:
            The guide. Its ``losses`` are those of the chain, (updates,), nats, and its ``outcomes``
            say how the trainings "Gaussian", or "start", and "chain" ended.

        Raises:
            ValueError: numbers out of range, draws of another program, gradients that are not
                finite.
            MemoryError: no memory for a single path.
        """
        for name, number, what, least in (
            ("updates", updates, "of the chain", 0),
            ("start_updates", start_updates, "of the start", 0),
            ("paths", paths, "of an update", 1),
            ("particles", particles, f"in {GROUPS} groups", 4 * GROUPS),
        ):
            if number is not None:
                check_count(name, number, what, least=least)
        check_number("learning_rate", learning_rate, "of the chain", positive=True)
        settings = FitSettings(updates, start_updates, paths, particles, learning_rate, seconds)
        return self._fitted(args, kwargs, settings, draws, progress)

    def _fitted(
        self,
        args: tuple[object, ...],
        kwargs: Mapping[str, object],
        settings: FitSettings,
        draws: object = None,
        progress: bool = False,
    ) -> AutoMDM:
        budget = Budget(settings.seconds).start()
        if draws is not None and self.prototype_trace is None:
            self.start = "particles"
        self.set_up(*args, **kwargs)
        kind = Fitting if self.plate is None else SubsampledFitting
        self._settings, self.outcomes = settings, {}
        paths = settings.paths or (128 if self.plate is None else 16)
        fitting = kind(self, args, kwargs, settings, paths, budget, progress)
        if isinstance(self.shape, Mixture):
            with torch.no_grad():
                if draws is None:
                    x, self.learned_from = fitting.tempered(), None
                else:
                    x = self.rows(draws, *args, **kwargs)
                    self.learned_from = x[:, 0].clone()
                fitting.become_mixture(self.shape, x)
        elif draws is not None:
            raise ValueError(
                f"the guide was set up with start={name_of_start(self.start)!r}, which does not "
                "learn from draws; make a new guide, and fit it with draws first"
            )
        self.losses = fitting.from_start()
        return self

    @checked_arguments
    def gap(
        self,
        *args: object,
        simulated: int = 20,
        draws: object = None,
        paths: int = 256,
        **kwargs: object,
    ) -> Gap:
        """How far the bound may be below log p(data), by draws of the posterior.

        For data that the program simulates, latents that made them are exact draws, and a guide
        like this one is fitted to each data set by the budget of the last fit. The guide's gap is
        at most the one returned, in expectation over these data.

        Args:
            args, kwargs: arguments of the program.
            simulated: number of simulated data sets.
            draws: draws of the posterior of the program's own data, as in :meth:`fit`, in place of
                simulated data. The gap is right as far as they are; those of the fit are warned
                of. Errors take them as independent.
            paths: number of paths of each kind: for a data set, or of all draws.

        Returns:
            :class:`~pyro_mdm.automatic.Gap`, nats.

        Source: Grosse, Ancha & Roy, "Measuring the reliability of MCMC inference with
        bidirectional Monte Carlo", 2016.
        """
        check_count("paths", paths, "the number of paths of each kind")
        refuse_subsample(self, "bounds from both sides")
        if draws is not None:
            return gap_by_draws(self, draws, paths, *args, **kwargs)

        def fitted(program: Callable[..., object]) -> AutoMDM:
            return self.like_this(program)._fitted(args, kwargs, self._settings)

        return gap_by_simulation(self.program, fitted, simulated, paths, *args, **kwargs)

    @checked_arguments
    def check(
        self,
        *args: object,
        other: object = "fit",
        num_samples: int | None = None,
        progress: bool = True,
        **kwargs: object,
    ) -> Checkup:
        """Whether to trust the guide: the number of draws that count, agreement with a second fit,
        and what was kept. Where something is wrong, the first remedy by what is seen.

        Args:
            args, kwargs: arguments of the program.
            other: the second fit. "fit": one is made from another seed, by the budget of the last
                fit: from particles for up to 50 latents, otherwise from a Gaussian;
                a guide of the same program that has been fitted; draws of the posterior, as in
                :meth:`fit` but other ones; None: none.
            num_samples: number of draws; None: 4,000, or 400 for each latent.
            progress: whether a progress bar of the second fit is shown.

        Returns:
            A :class:`~pyro_mdm.automatic.Checkup`, to be printed.
        """
        self.set_up(*args, **kwargs)
        n = max(4_000, 400 * self.latent_dim) if num_samples is None else num_samples
        check_count("num_samples", n, "the number of draws", least=100)
        fitted = None
        if isinstance(other, str) and other == "fit":
            few = self.latent_dim <= MOST_FOR_PARTICLES and self.plate is None
            with parameters(lambda name: not name.startswith(f"{self._pyro_name}.")):
                again = self.like_this(self.program, start="particles" if few else "gaussian")
                again._fitted(args, kwargs, self._settings, progress=progress)
                fitted = second(self, again, n, *args, **kwargs)
        elif other is not None:
            fitted = second(self, other, n, *args, **kwargs)
        return checked(self, fitted, n, *args, **kwargs)
