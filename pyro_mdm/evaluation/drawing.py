"""Samples of a model batch by batch, each a function of the seed and of its number."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

import pyro_mdm.randomness as randomness
from pyro_mdm.diffusions.base import for_samples
from pyro_mdm.model import DiffusionModel
from pyro_mdm.randomness import seed_from
from pyro_mdm.support.checks import check_count, tensor_device
from pyro_mdm.support.modules import evaluating, replace

__all__ = ["draw_batches"]


def draw_batches(
    model: DiffusionModel,
    num_samples: int,
    *,
    sampler: Callable[..., Tensor] | None = None,
    batch_size: int = 256,
    seed: int = 0,
    context: Tensor | None = None,
    share: tuple[int, int] = (0, 1),
) -> Iterator[tuple[int, Tensor]]:
    """Samples batch by batch, with the number of the first, in the memory of one batch.

    The i-th sample of a seed is the same, to rounding, whatever the number and the batch size,
    unless the sampler draws for itself or chooses steps by the batch.

    Args:
        model: the generative model.
        num_samples: number of samples, at least 1.
        sampler: integrator of the generative process; None: the model's.
        batch_size: number of samples simulated together.
        seed: seed of the noise.
        context: contexts of the samples, (num_samples, *shape), for a model with contexts; None:
            none.
        share: process r of S, as the pair (r, S): every S-th batch from the r-th on.

    Yields:
        The number of the first sample of a batch, and the batch, (b, *event_shape), on the CPU.

    Raises:
        ValueError: a number below 1, or states that are not finite after too few steps.

    Example:
        >>> from pyro_mdm import CLD, Denoiser
        >>> from pyro_mdm.networks import MLP
        >>> model = DiffusionModel(CLD(), Denoiser(MLP(2)), event_shape=(2,))
        >>> [(first, tuple(x.shape)) for first, x in draw_batches(model, 5, batch_size=4)]
        [(0, (4, 2)), (4, (1, 2))]
    """
    check_count("num_samples", num_samples, "the number of samples")
    check_count("batch_size", batch_size, "the number of samples simulated together")
    chosen = model.sampler if sampler is None else sampler
    for first in range(0, num_samples, batch_size)[share[0] :: share[1]]:
        n = min(batch_size, num_samples - first)
        given = None if context is None else context[first : first + n]
        yield first, _batch(model.given_context(given), chosen, first, n, seed)


@torch.no_grad()
def _batch(
    model: DiffusionModel, sampler: Callable[..., Tensor], first: int, n: int, seed: int
) -> Tensor:
    """The samples first, …, first + n - 1, (n, *event_shape)."""
    device = tensor_device(model.score_function) or torch.device("cpu")
    sampling = replace(model, sampler=sampler)
    with evaluating(model), torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed_from(seed, "samples", first))
        with randomness.stream(seed_from(seed, "states"), first):
            context = for_samples(model.diffusion, n).context
            path = sampling.path_law(context).expand((n,)).sample()
        y = path.select(-2 - len(model.event_shape), 0)
        parts = []
        for block, rows in randomness.blocks(first, n):
            # all of a block at once, so that each datum meets the same random numbers
            torch.manual_seed(seed_from(seed, "decoder", block))
            i = torch.arange(randomness.BLOCK, device=device) + block * randomness.BLOCK - first
            i = i.clamp(0, n - 1)
            given = model.for_rows(i).given(None if context is None else context[i])
            decoder = model.likelihood(*given, y[i], len(model.event_shape))
            parts.append(decoder.sample()[rows])
    return torch.cat(parts).cpu()
