"""How sites of a program depend on each other, by following values and by holding them.

:func:`parents_of` follows values from site to site through tensors (provenance, as of Wingate et
al., NeurIPS 2011 workshop on probabilistic programming). A number that leaves tensors, as by
``float``, NumPy or an ``if``, counts as feeding every later site, so that only dependence through
draws outside of Pyro is missed. :func:`run_holding` runs a program with values held at some sites,
or at some of their places, to see whether distributions stay the same.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import NamedTuple, TypeVar

import torch
from pyro.distributions.torch_distribution import MaskedDistribution
from pyro.ops.provenance import ProvenanceTensor, detach_provenance, get_provenance
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pyro_mdm.support.traces import Site, is_computed, is_subsample

__all__ = ["ChangedSites", "ProgramRun", "parents_of", "run_holding", "seeded", "with_other_draws"]

T = TypeVar("T")

ATTEMPTS, APART = 10, 1_000_003
"""The most runs with other draws where one fails, and the difference of their seeds."""

ABOUT = {
    "__get__", "__len__", "dim", "element_size", "get_device", "is_complex", "is_contiguous",
    "is_floating_point", "is_signed", "ndimension", "nelement", "numel", "size", "stride",
}  # fmt: skip
"""Functions whose results do not depend on a tensor's values. ``__get__`` reads attributes."""

IN_PLACE = re.compile(
    r"[a-z].*[^_]_|__set\w*__|__i(add|sub|mul|truediv|floordiv|mod|pow|and|or|xor)__"
)
"""Names of functions that write into their first argument."""


class ChangedSites(ValueError):
    """A program has other sites or shapes in another run."""


def _is_constant(site: Site) -> bool:
    """Whether a site is no draw, but the rows of a plate or a fixed observation."""
    return is_subsample(site) or (site["is_observed"] and not is_computed(site))


class _Leaks(TorchFunctionMode):
    """Names of followed sites whose values leave tensors, or are written into others."""

    def __init__(self) -> None:
        super().__init__()
        self.names: frozenset[str] = frozenset()

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: Collection[type],
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        kwargs = kwargs or {}
        if func is Tensor.new:  # Pyro's tensors would take its shape for numbers
            args = (detach_provenance(args[0]), *args[1:])  # type: ignore[type-var]
        result = func(*args, **kwargs)
        if origin := get_provenance([args, kwargs]):
            name = getattr(func, "__name__", "")
            if kwargs.get("out") is not None:
                kept = frozenset[str]()
            elif IN_PLACE.fullmatch(name):
                kept = get_provenance(args[0])
            else:
                kept = get_provenance(result)
            if name not in ABOUT:
                self.names |= origin - kept
        return result


class _Following(Messenger):
    """Marks the values of sites with their names, and keeps the marks of their distributions."""

    def __init__(self, named: Collection[str], leaks: _Leaks) -> None:
        super().__init__()
        self.named, self.leaks = named, leaks
        self.parents: dict[str, frozenset[str]] = {}

    def _pyro_post_sample(self, msg: Site) -> None:
        name = msg["name"]
        if _is_constant(msg) or (is_computed(msg) and name not in self.named):
            return
        value, before = detach_provenance(msg["value"]), self.leaks.names
        from_ = get_provenance(msg["value"]) | before
        if not is_computed(msg):
            with suppress(NotImplementedError):  # without a density, marks of the value suffice
                from_ |= get_provenance(msg["fn"].log_prob(value))
            from_, self.leaks.names = from_ | self.leaks.names, before
        self.parents[name] = from_
        msg["value"] = ProvenanceTensor(value, frozenset({name}))


@contextmanager
def seeded(seed: int | None) -> Iterator[None]:
    """A context with random numbers of torch by a seed, after which they go on as before; None: the
    global generator."""
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        yield


def with_other_draws(run: Callable[[int], T], seed: int) -> T:
    """The result of the first run, by seeds from the given one on, of a program that does not fail;
    simulators may fail at some parameters. If each of ten runs fails, the first error is raised."""
    first: Exception | None = None
    for attempt in range(ATTEMPTS):
        try:
            return run(seed + attempt * APART)
        except ChangedSites:
            raise
        except Exception as error:  # a program may raise any error
            first = error if first is None else first
    assert first is not None
    raise first


def parents_of(
    program: Callable[..., object], named: Collection[str], seeds: Collection[int]
) -> dict[str, frozenset[str]]:
    """The sites that may feed each site directly, found in one run of the program for each seed.

    Sites of ``pyro.deterministic`` that are not named are replaced by the sites that they are
    computed from. More sites may be said to feed a site than do.
    """
    parents: dict[str, frozenset[str]] = {}

    def followed(seed: int) -> _Following:
        with seeded(seed), warnings.catch_warnings(), _Leaks() as leaks:
            warnings.simplefilter("ignore")  # torch warns where tensors are made from tensors
            with _Following(named, leaks) as following:
                program()
        return following

    for seed in seeds:
        for name, from_ in with_other_draws(followed, seed).parents.items():
            parents[name] = parents.get(name, frozenset()) | from_
    return parents


class ProgramRun(NamedTuple):
    """The values of one run of a program, with the densities of its sites."""

    values: dict[str, Tensor]  # by site
    laws: dict[str, Tensor]  # by site: log densities by place of its plates, or computed values


class _Holding(Messenger):
    def __init__(self, held: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        self.held, self.run = held, ProgramRun({}, {})

    def _pyro_post_sample(self, msg: Site) -> None:
        if _is_constant(msg):
            return
        name, drawn, law = msg["name"], msg["value"], msg["fn"]
        if name in self.held:
            value, where = self.held[name]
            msg["value"] = torch.where(where, value, drawn)
        self.run.values[name] = msg["value"]
        if is_computed(msg):
            self.run.laws[name] = drawn
            return
        while isinstance(law, MaskedDistribution):  # a mask hides densities, not draws
            law = law.base_dist
        with suppress(NotImplementedError):
            self.run.laws[name] = law.log_prob(msg["value"]).expand(law.batch_shape)


def run_holding(
    program: Callable[..., object], held: Mapping[str, tuple[Tensor, Tensor]], seed: int
) -> ProgramRun:
    """A run of a program in which values are held.

    They are by site, each with the bool mask of the entries that replace draws; both broadcast to
    the site's shape. Sites without a density are not among ``laws``. The run is empty if the
    program fails with these values.
    """

    def run(seed: int) -> ProgramRun:
        with seeded(seed), _Holding(held) as holding:
            program()
        return holding.run

    try:
        return with_other_draws(run, seed)
    except ChangedSites:
        raise
    except Exception:  # a program may raise any error at values that it never draws together
        return ProgramRun({}, {})
