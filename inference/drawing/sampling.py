"""Samples of the generative program, by a sampler of any name."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, TypedDict

import torch
from torch import Tensor

from inference.settings.names import SAMPLERS, accepted, call, find, takes, wrong_kind
from pyro_mdm import Diffusion, DiffusionModel, samplers
from pyro_mdm.conditioning import Guided
from pyro_mdm.evaluation import drawing
from pyro_mdm.samplers.base import Sampler
from pyro_mdm.scores.base import Score
from pyro_mdm.support.progress import progress_bar

if TYPE_CHECKING:
    from typing_extensions import Unpack


STEPS = {"exponential": 25, "stochastic": 50}
"""The default numbers of steps of these samplers."""
MANY = 256
"""The default number of steps of all others."""


def default_sampler(model: DiffusionModel) -> str:
    """The name of the sampler that :func:`pyro_mdm.samplers.default_sampler` chooses."""
    chosen = type(samplers.default_sampler(model.diffusion, model.score_function))
    return next(name for name, sampler in SAMPLERS.items() if sampler is chosen)


def default_steps(sampler: str) -> int:
    """The default steps of a sampler of that name."""
    return STEPS.get(sampler, MANY)


def make_sampler(
    name: str,
    steps: int | None,
    diffusion: Diffusion,
    score: Score | None = None,
    grid: str | None = None,
) -> Callable[..., Tensor]:
    """The sampler called ``name``, for a diffusion, and for a score if there is one.

    Args:
        name: the name of a class or function. One that takes a ``shape`` is a sampler itself; any
            other is called with ``steps``.
        steps: the number of steps; :func:`default_steps` by default.
        grid: the name of its grid of times; None: its own.

    Raises:
        NameNotFoundError: see :func:`~inference.settings.names.find`.
        TypeError: it is no sampler, or needs closed forms that the diffusion does not have.
        ValueError: an unknown grid, or a sampler that takes none.
    """
    steps = default_steps(name) if steps is None else steps
    named = sampler = find("sampler", name)
    if grid is not None and not takes(named, "grid"):
        raise ValueError(f"--grid is {grid}, and --sampler {name} takes none; leave it out")
    other = inspect.isclass(named) and not issubclass(named, Sampler)
    if callable(named) and not (other or takes(named, "shape")):
        chosen = {} if grid is None else {"grid": grid}
        sampler = call("sampler", name, named, {"steps": steps, **chosen})
    if other or not takes(sampler, "shape"):
        returned = sampler is not named
        raise wrong_kind("sampler", name, sampler, Sampler, returned=returned)
    if takes(sampler, "steps"):
        sampler = functools.partial(sampler, steps=steps)
    if isinstance(sampler, Sampler):
        try:
            sampler.check(diffusion, score)
            if grid is not None:
                sampler.times(diffusion)
        except TypeError as error:
            raise TypeError(f"--sampler {name}: {error}, --sampler euler") from error
    return sampler


PICTURED = ("exponential", "stochastic", "ancestral", "splitting", "euler")
"""Samplers of one call a step, which TensorBoard shows beside each other."""


def samplers_for(
    diffusion: Diffusion, among: Iterable[str] = SAMPLERS, score: Score | None = None
) -> list[str]:
    """The names of samplers among ``among`` that serve a diffusion, and a score if given."""
    names = []
    for name in among:
        with suppress(TypeError):
            make_sampler(name, 1, diffusion, score)
            names.append(name)
    return names


class Sampling(TypedDict, total=False):
    """The options of a simulation of the generative program, see :func:`draw`."""

    sampler: str | None
    steps: int | None
    grid: str | None
    batch_size: int
    seed: int
    progress: bool


class Drawing(Sampling, total=False):
    """The options of :func:`draw`: of the simulation, and the context of data."""

    context: Tensor | None
    guidance: float | None


def draw(model: DiffusionModel, num_samples: int, **options: Unpack[Drawing]) -> Tensor:
    """Samples of the generative program, (num_samples, *event_shape), on the CPU.

    The i-th sample of a seed is the same, to rounding, whatever the number and the batch size,
    unless your own sampler draws for itself or chooses steps by the batch. The caller's random
    state is kept.

    Args:
        options: ``sampler``, by name, its ``steps`` and ``grid``; ``batch_size``, 256 by default;
            ``seed``, 0 by default; ``progress``, for a progress bar; ``context``, (num_samples, …),
            for a model that has one; ``guidance``, the weight of classifier-free guidance, see
            :class:`~pyro_mdm.conditioning.Guided`.

    Raises:
        TypeError: a sampler that needs closed forms which the diffusion does not have.
        ValueError: numbers below 1, or states that are not finite after too few steps.
    """
    return torch.cat([x for _, x in draw_batches(model, num_samples, **options)])


def draw_batches(
    model: DiffusionModel,
    num_samples: int,
    *,
    share: tuple[int, int] = (0, 1),
    **options: Unpack[Drawing],
) -> Iterator[tuple[int, Tensor]]:
    """Samples batch by batch, with the index of the first, in the memory of one batch.

    Args:
        share: pair (r, S), for every S-th batch from the r-th on.
        options: as for :func:`draw`.
    """
    steps, batch_size = options.get("steps"), options.get("batch_size", 256)
    if num_samples < 1 or batch_size < 1 or (steps is not None and steps < 1):
        raise ValueError(
            f"num_samples is {num_samples}, steps {steps}, batch_size {batch_size}; expected at "
            "least 1 of each"
        )
    name = options.get("sampler") or default_sampler(model)
    grid, guidance = options.get("grid"), options.get("guidance")
    chosen = make_sampler(name, steps, model.diffusion, model.score_function, grid)
    number = getattr(chosen, "steps", steps or MANY)
    batches = len(range(0, num_samples, batch_size)[share[0] :: share[1]])
    with progress_bar(
        number * batches, "sampling", "steps", shown=options.get("progress", False)
    ) as bar:
        run: Callable[..., Tensor]
        run = functools.partial(chosen, **accepted(chosen, {"progress": bar}))
        if guidance is not None:
            run = Guided(run, guidance)
        yield from drawing.draw_batches(
            model,
            num_samples,
            sampler=run,
            batch_size=batch_size,
            seed=options.get("seed", 0),
            context=options.get("context"),
            share=share,
        )
