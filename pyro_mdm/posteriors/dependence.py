"""How sites of a program depend on each other: values that are followed, and values that are held.

:func:`parents_of` follows values from site to site through tensors (provenance, as of Wingate et
al., NeurIPS 2011 workshop on probabilistic programming). A number that leaves tensors, as by
``float``, NumPy or an ``if``, counts as feeding all that is drawn after it; so nothing is missed
but what is drawn outside of Pyro. :func:`run_holding` runs a program with values held at some
sites, or at some of their places, to see whether laws stay as they were.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple, TypeVar

import torch
from pyro.distributions.torch_distribution import MaskedDistribution
from pyro.ops.provenance import ProvenanceTensor, detach_provenance, get_provenance
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.overrides import TorchFunctionMode

__all__ = ["ProgramRun", "is_computed", "parents_of", "run_holding", "with_other_draws"]

T = TypeVar("T")

ATTEMPTS, APART = 10, 1_000_003
"""Runs with other draws where one fails, and how far their seeds are apart."""

ABOUT = {
    "__get__", "__len__", "dim", "element_size", "get_device", "is_complex", "is_contiguous",
    "is_floating_point", "is_signed", "ndimension", "nelement", "numel", "size", "stride",
}  # fmt: skip
"""Functions whose numbers say nothing of a tensor's values. ``__get__`` is that of attributes."""

IN_PLACE = re.compile(
    r"[a-z].*[^_]_|__set\w*__|__i(add|sub|mul|truediv|floordiv|mod|pow|and|or|xor)__"
)
"""Functions that write into their first argument."""


def is_computed(site: Mapping[str, Any]) -> bool:
    """Whether a site is of ``pyro.deterministic``."""
    return bool(site["infer"].get("_deterministic", False))


def _is_constant(site: Any) -> bool:
    """Whether a site is no draw: a choice of a plate, or a fixed observation."""
    return site_is_subsample(site) or (site["is_observed"] and not is_computed(site))


class _Leaks(TorchFunctionMode):
    """Names of followed sites whose values leave tensors, or are written into others."""

    def __init__(self) -> None:
        super().__init__()
        self.names: frozenset[str] = frozenset()

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Collection[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is Tensor.new:  # of a shape, which Pyro's tensors would take for numbers
            return detach_provenance(args[0]).new(*args[1:], **kwargs)
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
    """Marks the values of sites with their names, and keeps which marks their laws had."""

    def __init__(self, named: Collection[str], leaks: _Leaks) -> None:
        super().__init__()
        self.named, self.leaks = named, leaks
        self.parents: dict[str, frozenset[str]] = {}

    def _pyro_post_sample(self, msg: Any) -> None:
        name = msg["name"]
        if _is_constant(msg) or (is_computed(msg) and name not in self.named):
            return
        value, before = detach_provenance(msg["value"]), self.leaks.names
        from_ = get_provenance(msg["value"]) | before
        if not is_computed(msg):
            with suppress(NotImplementedError):  # the value itself is followed too
                from_ |= get_provenance(msg["fn"].log_prob(value))
            from_, self.leaks.names = from_ | self.leaks.names, before
        self.parents[name] = from_
        msg["value"] = ProvenanceTensor(value, frozenset({name}))


def with_other_draws(run: Callable[[int], T], seed: int) -> T:
    """What a run of a program gives by the first seed by which it does not fail.

    Simulators fail at some parameters, and at others they do not.

    Args:
        run: function of a seed that runs the program.
        seed: the first seed.

    Raises:
        Exception: the first error, if all of some runs fail.
    """
    first: Exception | None = None
    for attempt in range(ATTEMPTS):
        try:
            return run(seed + attempt * APART)
        except Exception as error:  # of any code
            first = error if first is None else first
    assert first is not None
    raise first


def parents_of(
    program: Callable[..., Any], named: Collection[str], seeds: Collection[int]
) -> dict[str, frozenset[str]]:
    """Sites that feed each site directly, at most, from a run of the program for each seed.

    Args:
        program: the program, without arguments.
        named: names of sites of ``pyro.deterministic`` that count; others are seen through.
        seeds: the seeds of the runs.
    """
    parents: dict[str, frozenset[str]] = {}

    def followed(seed: int) -> _Following:
        with _seeded(seed), warnings.catch_warnings(), _Leaks() as leaks:
            warnings.simplefilter("ignore")  # of tensors that are made from tensors
            with _Following(named, leaks) as following:
                program()
        return following

    for seed in seeds:
        for name, from_ in with_other_draws(followed, seed).parents.items():
            parents[name] = parents.get(name, frozenset()) | from_
    return parents


class ProgramRun(NamedTuple):
    """A run of a program."""

    values: dict[str, Tensor]  # by site
    laws: dict[str, Tensor]  # log densities by place of the site's plates; computed values


class _Holding(Messenger):
    def __init__(self, held: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        self.held, self.run = held, ProgramRun({}, {})

    def _pyro_post_sample(self, msg: Any) -> None:
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
    program: Callable[..., Any], held: Mapping[str, tuple[Tensor, Tensor]], seed: int
) -> ProgramRun:
    """A run of a program in which values are held.

    Args:
        program: the program, without arguments.
        held: values by site, each with a mask of where they replace what is drawn; both broadcast.
        seed: the seed of the draws.

    Returns:
        :class:`ProgramRun`; what has no density has no law. Empty if the program can't be run so.
    """

    def run(seed: int) -> ProgramRun:
        with _seeded(seed), _Holding(held) as holding:
            program()
        return holding.run

    try:
        return with_other_draws(run, seed)
    except Exception:  # of any program, at values that it never draws together
        return ProgramRun({}, {})


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
