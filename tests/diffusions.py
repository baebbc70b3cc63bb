"""All diffusions of closed form: a suite that is parametrized over them takes in each new kind.

A kind joins by being listed in ``DIFFUSIONS`` of ``problems.py`` of its room.
"""

from __future__ import annotations

from pyro_mdm.diffusions.linear import LinearDiffusion
from tests import problems
from tests.problems import Factory
from tests.varying import problems as varying

DIFFUSIONS: list[tuple[str, Factory]] = [*problems.DIFFUSIONS, *varying.DIFFUSIONS]
CONSTANT = problems.DIFFUSIONS
"""Those of constant matrices, which have exact references."""

DISTINCT = [case for case in DIFFUSIONS if not case[0].startswith("learned_from")]
"""Those that are not another one of them in other parameters."""

TYPICAL = [
    case
    for case in DIFFUSIONS
    if case[0]
    in {
        *("vpsde", "cld", "alda", "learned_3_rank_1", "learned_clock", "random_4_rank_2"),
        *("learned_2_cut_in_time", "learned_2_fixed_ends", "learned_2_target_noise"),
        *("time_varying_2", "time_varying_3_learned", "momentum_ve", "interpolant"),
    }
]
"""One for each thing that a diffusion can be, where a test of one takes long."""


def truncation(diffusion: LinearDiffusion) -> float:
    """What the diffusion's own steps may leave of an identity, beside rounding."""
    return 1e-7 if type(diffusion).__module__.endswith(".time_varying") else 0.0
