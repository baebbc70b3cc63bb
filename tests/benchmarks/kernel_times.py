"""The cost of automatic kernels, beside formulas by hand; run by hand.

    python -m tests.benchmarks.kernel_times --tables docs/measured/data

The law of y_s given x at 256 times, one for each datum of a batch: its mean, covariance, Cholesky
factor and the factor's inverse, in float64. By hand these are the closed forms of VPSDE and of
critically damped CLD, written below. The library finds them for any matrices, with log SNR, the
readout of x and the growth of rounding errors, which the formulas do not give. Learned matrices are
timed with the gradient in Q and D, others without. Times are of one processor, in turns.

Source of the formulas: Song et al., "Score-Based Generative Modeling through Stochastic
Differential Equations", 2021; Dockhorn et al., "Score-Based Generative Modeling with
Critically-Damped Langevin Diffusion", 2022, both in the matrices of :mod:`pyro_mdm.diffusions`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_mdm import ALDA, CLD, MALDA, VPSDE, LearnedDiffusion, LinearDiffusion
from pyro_mdm.diffusions.clocks import log_snr_times
from pyro_mdm.diffusions.kernels import inverse_tril
from tests.benchmarks.frame import Options, Row, Study, in_turns, main, quartiles

__all__ = ["Law", "cld_by_hand", "vpsde_by_hand"]

BATCH = 256
INITIAL = 0.01


class Law(NamedTuple):
    """The law y_s | x ~ N(a x, Σ) at n times."""

    mean: Tensor  # a (n, K)
    covariance: Tensor  # Σ (n, K, K)
    scale_tril: Tensor  # L (n, K, K)
    whitener: Tensor  # L^{-1} (n, K, K)


def vpsde_by_hand(b: Tensor) -> Law:
    """The law of VPSDE at clock times b (n,): a = e^{-b/2}, Σ = 1 - e^{-b}."""
    a, variance = (-b / 2).exp(), -torch.expm1(-b)
    L = variance.sqrt()
    return Law(a[:, None], *(t[:, None, None] for t in (variance, L, 1 / L)))


def cld_by_hand(b: Tensor) -> Law:
    """The law of critical CLD (M = 1, friction 2) at clock times b (n,), with Σ_v = 0.01.

    exp(A b) = e^{-b} (1 + b, b; -b, 1 - b), and P is the integral of its second column.
    """
    E, decay = (-2 * b).exp(), (-b).exp()
    m_x, m_v = decay * b, decay * (1 - b)
    xx = 1 - E * (1 + 2 * b + 2 * b * b) + INITIAL * m_x * m_x
    xv = 2 * b * b * E + INITIAL * m_x * m_v
    vv = 1 - E * (1 - 2 * b + 2 * b * b) + INITIAL * m_v * m_v
    one = xx.sqrt()
    two = xv / one
    three = (vv - two * two).sqrt()
    zero = torch.zeros_like(b)

    def matrix(*entries: Tensor) -> Tensor:
        return torch.stack(entries, -1).reshape(-1, 2, 2)

    return Law(
        torch.stack([decay * (1 + b), -decay * b], -1),
        matrix(xx, xv, xv, vv),
        matrix(one, zero, two, three),
        matrix(1 / one, zero, -two / (one * three), 1 / three),
    )


def automatic(diffusion: LinearDiffusion, s: Tensor) -> Law:
    """The law of any linear diffusion at times s (n,)."""
    law = diffusion.marginal(s)
    return Law(law.mean, law.covariance, law.scale_tril, inverse_tril(law.scale_tril))


def with_gradient(diffusion: LearnedDiffusion, s: Tensor) -> None:
    """The law with its gradient in the matrices."""
    law = automatic(diffusion, s)
    total = law.mean.sum() + law.scale_tril.square().sum() + law.whitener.diagonal(0, 1, 2).sum()
    torch.autograd.grad(total, list(diffusion.parameters()), allow_unused=True)


def times(job: Row, options: Options) -> list[Row]:
    """All in turns."""
    vpsde, cld = VPSDE(max_log_snr=9.0), CLD(max_log_snr=9.0)
    s = log_snr_times(vpsde, BATCH).detach()
    works: dict[str, Callable[[], object]] = {
        "VPSDE, by hand": lambda: vpsde_by_hand(vpsde.clock(s)),
        "VPSDE, automatic": lambda: automatic(vpsde, s),
        "CLD, by hand": lambda: cld_by_hand(cld.clock(s)),
        "CLD, automatic": lambda: automatic(cld, s),
        "MALDA, automatic": partial(automatic, MALDA(max_log_snr=9.0), s),
        "ALDA, automatic": partial(automatic, ALDA(max_log_snr=9.0), s),
    }
    for K in (2, 3):
        learned = LearnedDiffusion(K, max_log_snr=9.0)
        works[f"learned K = {K}, automatic, with gradient"] = partial(with_gradient, learned, s)
    found = in_turns(works, 3 if options.small else 50)
    rows = []
    for name, values in found.items():
        diffusion, _, kernels = str(name).partition(", ")
        row = {"diffusion": diffusion, "kernels": kernels}
        rows.append(row | quartiles("milliseconds", values))
    return rows


STUDIES = {
    "speed-kernels": Study(
        times,
        notes=[
            f"distributions at {BATCH} times, one for each datum of a batch",
            "medians, brackets are quartiles",
        ],
    )
}

if __name__ == "__main__":
    main("kernel_times", __doc__, STUDIES)
