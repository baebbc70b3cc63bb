"""The diffusions of the paper's experiments, whose β runs from 0.1 to 10.

    python -m inference.train --model digits --protocol dequantized --score noise \
        --guide inference.guides.published:cld_at_time

``vpsde``, ``cld``, ``malda``, ``alda``, ``learned1``, ``learned2``, ``learned3`` (K = 1, 2, 3) are
cut at the log SNR that is asked for. Those ending in ``_at_time`` are cut as the paper does, at
s = 0.001, where the log SNR is 9.2 for VPSDE, 27.2 for CLD, 26.5 for MALDA and 48.1 for ALDA:
beyond what single precision can resolve of data of unit scale (about 32). A learned one keeps the
log SNR that its first step has there.

Source: Singhal, Goldstein & Ranganath, ICLR 2023, and the constants published with its code.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch

from pyro_mdm import ALDA, CLD, MALDA, VPSDE, LearnedDiffusion, LinearDiffusion
from pyro_mdm.clocks import LinearBeta

START_TIME = 1e-3

Guide = Callable[..., LinearDiffusion]


def _published(make: Guide) -> tuple[Guide, Guide]:
    def at_log_snr(max_log_snr: float) -> LinearDiffusion:
        return make(beta=LinearBeta(0.1, 10.0), max_log_snr=max_log_snr)

    def at_time() -> LinearDiffusion:
        diffusion = make(beta=LinearBeta(0.1, 10.0))
        with torch.no_grad():
            diffusion.max_log_snr = float(diffusion.log_snr(START_TIME))
        return diffusion

    return at_log_snr, at_time


vpsde, vpsde_at_time = _published(VPSDE)
cld, cld_at_time = _published(CLD)
malda, malda_at_time = _published(MALDA)
alda, alda_at_time = _published(ALDA)
learned1, learned1_at_time = _published(functools.partial(LearnedDiffusion, 1))
learned2, learned2_at_time = _published(functools.partial(LearnedDiffusion, 2))
learned3, learned3_at_time = _published(functools.partial(LearnedDiffusion, 3))
