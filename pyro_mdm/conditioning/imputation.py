"""Multiple imputation: draws of the missing entries given the others."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_mdm.conditioning.conditioned import condition
from pyro_mdm.model import DiffusionModel
from pyro_mdm.support.checks import Count, check_data, checked_arguments, tensor_device
from pyro_mdm.support.modules import evaluating
from pyro_mdm.support.progress import progress_bar

__all__ = ["impute"]


@checked_arguments
def impute(
    model: DiffusionModel,
    x: Tensor,
    *,
    num: Count = 20,
    left_out: Tensor | None = None,
    batch_size: Count = 1024,
    seed: int = 0,
    progress: bool = False,
) -> Tensor:
    """Completions of data with missing entries, each a draw of p(x_missing | x_present).

    The model of each datum is that of :func:`~pyro_mdm.condition`, with the model's sampler.
    Present entries keep their values. The mean of the completions estimates the posterior mean;
    their quantiles are intervals for each missing entry.

    Args:
        model: a model whose score is a denoiser given maps and trained on them, see
            :class:`~pyro_mdm.conditioning.RandomMaps`.
        x: data in model space, (n, *event_shape), NaN where an entry is missing. All entries of a
            datum may be.
        num: number of completions of each datum.
        left_out: mask of missing entries that are integrated out and stay NaN, bool, like x; None:
            none, all are drawn.
        batch_size: number of completions simulated together.
        seed: seed of the noise. Draws depend on it, on x and on ``batch_size``; the caller's random
            state is kept.
        progress: whether to show a progress bar.

    Returns:
        Completions, (num, n, *event_shape), in the dtype of x.

    Raises:
        TypeError: a model whose score is no denoiser.
        ValueError: numbers below 1; data that the model refuses; else as for
            :func:`~pyro_mdm.condition`.

    Example:
        >>> from pyro_mdm import VPSDE, Denoiser
        >>> from pyro_mdm.networks import MLP
        >>> score = Denoiser.fit(MLP(6, out_features=3), torch.randn(100, 3), maps=True)
        >>> model = DiffusionModel(VPSDE(min_log_snr=-9.0), score)
        >>> impute(model, torch.tensor([[0.5, torch.nan, torch.nan]]), num=4)[:, 0, 0]
        tensor([0.5000, 0.5000, 0.5000, 0.5000])
    """
    check_data("x", x, tensor_device(model), missing=True)
    model.check_data(x)
    missing = x.isnan()
    drawn = missing if left_out is None else missing & ~left_out
    rows = drawn.flatten(1).any(1).nonzero().squeeze(1)
    # data of one pattern together, which share the work that depends on the pattern alone
    pattern = torch.unique(drawn[rows].flatten(1), dim=0, return_inverse=True)[1]
    rows = rows[pattern.argsort(stable=True)]
    completed = x.repeat(num, *[1] * x.dim())
    jobs = torch.cartesian_prod(rows, torch.arange(num, device=x.device)).flip(1)
    devices = [x.device] if x.device.type == "cuda" else []
    with evaluating(model), torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        with progress_bar(len(jobs), "imputation", "rows", shown=progress) as bar:
            for batch in jobs.split(batch_size) if len(jobs) else ():
                draw, row = batch.unbind(1)
                left = None if left_out is None else missing[row] & left_out[row]
                conditioned = condition(model, ~missing[row], x[row], left)
                whole = conditioned(batch_size=len(batch)).to(x.dtype)
                completed[draw, row] = whole if left is None else whole.masked_fill(left, torch.nan)
                bar.update(len(batch))
    return completed
