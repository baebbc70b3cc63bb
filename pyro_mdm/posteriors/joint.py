r"""Every conditional of a simulator that is a Pyro program: any of θ and x given any others.

One diffusion model of parameters and data together is trained at random maps of log SNR
(:class:`~pyro_mdm.conditioning.RandomMaps`), at which some numbers are given, some are drawn and
others are integrated out. It starts as the conditionals of a Gaussian distribution, which are exact
for every pattern, and learns the difference from them. It answers for the posterior, the
likelihood, the posterior given a part of the data or of the parameters, and new data given old
ones.

Source of the task: Gloeckler, Deistler, Weilbach, Wood & Macke, "All-in-one simulation-based
inference", ICML 2024. The network and its training are those of tables.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.distributions.transforms import IndependentTransform
from typing_extensions import Unpack

from pyro_mdm.budgets import Outcome
from pyro_mdm.conditioning.imputation import impute
from pyro_mdm.conditioning.maps import RandomMaps
from pyro_mdm.diffusions.presets import VPSDE
from pyro_mdm.elbo import MDM_ELBO
from pyro_mdm.guide import DiffusionGuide
from pyro_mdm.model import DiffusionModel
from pyro_mdm.posteriors.amortized import DEPTH, HIDDEN, NOISE, USUAL
from pyro_mdm.posteriors.encoding import TailMap, scales_of
from pyro_mdm.posteriors.parameters import Parameters, spread_of
from pyro_mdm.posteriors.reading import (
    Draws,
    ParameterSite,
    check_data,
    check_given,
    named_sites,
    number_of,
)
from pyro_mdm.posteriors.training import LearningOptions, to_learn_from, train
from pyro_mdm.support.checks import check_count, checked_arguments

__all__ = ["AmortizedJoint"]

LEVELS, SUBSETS = 0.2, 0.8
"""The shares of maps at which all numbers are drawn, and at which some are given."""
FREQUENCIES = (0.25, 0.5, 1.0, 2.0)
"""Those of the sines and cosines of numbers that the network takes, in periods per standard
deviation."""


class AmortizedJoint(nn.Module):
    """The distribution of parameters and data together, with all of its conditionals.

    :meth:`fit` makes it and trains it, and :meth:`sample` draws any numbers given any others.

    Args:
        program: the simulator, without arguments.
        latent: the names of the parameters' sites.
        observed: the names of the data's sites.
        draws: simulations for scales and correlations, (n, *shape) by site
            (:func:`~pyro_mdm.posteriors.simulate`).
        hidden: the width of the network.
        depth: its number of blocks.

    Attributes:
        model: the model of standardized unconstrained parameters and data, side by side.
        noising: its guide.
        outcome: how the training by :meth:`fit` ended; None: not trained.

    Raises:
        TypeError: parameters that are not continuous; data of whole numbers.
        ValueError: a site that is unknown, observed or named twice; a parameter or datum that never
            varies; a parameter whose support depends on others.
    """

    center: Tensor
    unit: Tensor
    outcome: Outcome | None = None

    @checked_arguments
    def __init__(
        self,
        program: Callable[..., object],
        latent: Sequence[str],
        observed: Sequence[str],
        draws: Draws,
        *,
        hidden: int = HIDDEN,
        depth: int = DEPTH,
    ) -> None:
        # here, so that other posteriors do without tables
        from pyro_mdm.tables.denoiser import MixedDenoiser

        super().__init__()
        self.latent, self.observed = list(latent), list(observed)
        sites, data = named_sites(program, self.latent, self.observed)
        self.sites = Parameters(sites)
        self._shapes = {site.name: site.shape for site in sites}
        self._shapes |= {name: data[name]["value"].shape for name in self.observed}
        check_data(draws, {name: self._shapes[name] for name in self.observed})
        self.sites.values(draws)
        number_of({name: draws[name] for name in self._shapes}, "draws", "give them in pairs")
        for name in self.observed:
            if bool((draws[name] == draws[name].round()).all()):
                raise TypeError(
                    f"the data of {name!r} are whole numbers, expected real ones; a Table of "
                    "parameters and data has columns with levels"
                )
        numbers = self._numbers(draws)
        spread_of(numbers)
        center, unit, heavy = scales_of(numbers)
        self.register_buffer("center", center)
        self.register_buffer("unit", unit)
        self.tails = TailMap(len(center)).requires_grad_(False)
        self.tails.bent.copy_(heavy)
        z = self._standardized(numbers)
        score = MixedDenoiser.from_gaussian(
            z, [None] * z.shape[1], hidden=hidden, depth=depth, frequencies=FREQUENCIES
        )
        score.training_maps = RandomMaps(LEVELS, SUBSETS, 0.0, left_out=False)
        self.model = DiffusionModel(VPSDE(**NOISE), score)
        self.noising = DiffusionGuide(self.model.diffusion)

    @classmethod
    @checked_arguments
    def fit(
        cls,
        program: Callable[..., object],
        latent: Sequence[str],
        observed: Sequence[str],
        *,
        hidden: int = HIDDEN,
        depth: int = DEPTH,
        **learning: Unpack[LearningOptions],
    ) -> AmortizedJoint:
        """The joint distribution trained on simulations, in evaluation mode.

        Args:
            program, latent, observed, hidden, depth: as for the class.
            learning: options and their errors as for :meth:`AmortizedPosterior.fit`.
        """
        with to_learn_from(program, [*latent, *observed], learning, USUAL) as (draws, options):
            joint = cls(program, latent, observed, draws, hidden=hidden, depth=depth)
            z = joint._standardized(joint._numbers(draws))
            elbo = MDM_ELBO()(joint.model, joint.noising)

            def loss(rows: Tensor) -> Tensor:
                return elbo(z[rows]) / len(rows)

            size = float(z.shape[1])
            joint.outcome = train(elbo, loss, len(z), options, largest_gradient=size)
        return joint.eval()

    def _numbers(self, draws: Mapping[str, Tensor]) -> Tensor:
        """Unconstrained parameters and data of simulations, (n, d)."""
        u = self.sites.unconstrained(draws)[0]
        return torch.cat([u, *(draws[name].reshape(len(u), -1) for name in self.observed)], 1)

    def _standardized(self, numbers: Tensor) -> Tensor:
        """Numbers (n, d) of about unit scale, those with heavy tails by asinh."""
        return self.tails((numbers - self.center) / self.unit)[0]

    @torch.no_grad()
    def sample(
        self,
        given: Mapping[str, Tensor],
        n: int,
        *,
        batch_size: int = 4096,
        seed: int | None = None,
    ) -> Draws:
        """Draws of all parameters and data that are not given.

        Args:
            given: values by site, (*shape), of any sites. A number that is NaN is not given.
            n: the number of draws.
            batch_size: the number of draws that are made together.
            seed: the seed of the draws; None: the global generator.

        Returns:
            Draws by site, (n, *shape), with the values that are given.

        Raises:
            ValueError: an unknown site or another shape; a value outside of the support; a
                parameter, such as a probability vector, of which only a part is given.
        """
        check_count("n", n, "the number of draws")
        given = {name: torch.as_tensor(value).to(self.center) for name, value in given.items()}
        check_given(given, self._shapes)
        nan = torch.tensor(torch.nan).to(self.center)
        values = {name: given.get(name, nan.expand(s)) for name, s in self._shapes.items()}
        u = torch.cat([_unconstrained(site, values[site.name]) for site in self.sites])
        data = torch.cat([values[name].flatten() for name in self.observed])
        row = self._standardized(torch.cat([u, data]).unsqueeze(0))
        seed = int(torch.randint(2**31, ())) if seed is None else seed
        z = impute(self.model, row, num=n, batch_size=batch_size, seed=seed)[:, 0]
        numbers = self.tails.inverse(z) * self.unit + self.center
        drawn, first = self.sites.by_site(numbers[:, : len(u)])[0], len(u)
        for name in self.observed:
            size = self._shapes[name].numel()
            drawn[name] = numbers[:, first : first + size].reshape(n, *self._shapes[name])
            first += size
        return {k: torch.where(values[k].isnan(), v, values[k]) for k, v in drawn.items()}


def _unconstrained(site: ParameterSite, value: Tensor) -> Tensor:
    """The unconstrained numbers of a value, (k,), NaN where a number is not given."""
    absent = value.isnan()
    if bool(absent.all()):
        size = site.transform.inverse_shape(site.shape).numel()
        return value.new_full((size,), torch.nan)
    transform = site.transform
    while isinstance(transform, IndependentTransform):
        transform = transform.base_transform
    if transform.domain.event_dim and bool(absent.any()):
        raise ValueError(
            f"a part of {site.name!r} is given, whose numbers depend on each other, expected all "
            "of them or none"
        )
    inside = site.transform(value.new_zeros(site.transform.inverse_shape(site.shape)))
    whole = torch.where(absent, inside, value)
    site.check_inside(whole)
    u: Tensor = site.transform.inv(whole).flatten()
    return u.masked_fill(absent.flatten(), torch.nan) if bool(absent.any()) else u
