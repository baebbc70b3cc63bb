"""The diffusions and the protocol of the paper's experiments, and how ours differ.

    python -m inference.train --config models/mnist_paper.yaml \
        --guide inference.guides.published:cld_at_time

``vpsde_at_time``, ``cld_at_time``, ``malda_at_time``, ``learned2_at_time`` and ``learned3_at_time``
are those of the configurations released with the paper: β from 0.1 to 10, Σ_∞ = I, Σ_v = 0.01 I,
cut at the time s = 0.001; learned ones with D = diag(softplus(d) + 0.001) and random W and d, drawn
by torch's current seed (in a run, the run's). Log SNR is 9.2 there for VPSDE, 27.2 for CLD, 26.5
for MALDA. ``alda_at_time`` (48.1, which takes ``--precision 64-true``: single precision resolves
data of unit scale up to about 32) and ``learned1_at_time`` have no released configuration.

Those without ``_at_time`` are ours: the same matrices, cut at a given log SNR. Use them with
``--likelihood tweedie``: for log SNR 9 CLD, MALDA and ALDA start so late (s = 0.1 to 0.25) that the
decoder of (x, v_0) costs 1.8 to 3.3 bits/dim, where at s = 0.001 it costs 0.001.

As published, in the ``*_paper.yaml`` recipes and the table ``paper`` of inference.experiment:

- ``--logit_margin 0.05``: x = logit(0.05 + 0.9 w), w = (k + u)/256 (``LogitDequantization``);
- ``--score noise``: ε_θ of the whole state, with v_0 marginalized;
- ``--likelihood joint_tweedie``: (x, v_0) by the score, less log q(v_0) (``JointTweedie``);
- ``--decoder_in_loss false``: the training loss without that term (``MDM_ELBO(decoder=False)``);
- ``--times vpsde``: importance times of VPSDE, whatever the diffusion (``Score.times``);
- ``--ema_decay 0``: no averaging, and no decay of weights, which no run here has;
- ``--clip``: norm of the gradient at most 2 in nats per datum, which is 2/d in nats per dimension;
- ``--adam_epsilon``: 1e-8 in nats per datum, which is 1e-8/d;
- ``--network published_small``: for MNIST a U-Net of strided convolutions with 1.1 million
  parameters; ``published``: for images of 32×32 one of 35.5 million;
- ``--sampler inference.samplers.published:Euler``: 500 steps at quadratic times, the last of which
  adds no noise;
- one constant learning rate, 2e-4, for network and diffusion; batches of 128; no warm-up, 300
  epochs, dropout 0; CIFAR-10 mirrored at random.

:data:`DIFFERENCES` has what still differs.

Source: Singhal, Goldstein & Ranganath, ICLR 2023, and the constants published with its code.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from pyro_mdm import ALDA, CLD, MALDA, VPSDE, LearnedDiffusion, LinearDiffusion
from pyro_mdm.diffusions.clocks import LinearBeta

START_TIME = 1e-3
"""The start time ε of the published code."""

DIFFERENCES = {
    "estimators": "ours have the same mean and less variance: the prior KL and the entropies at "
    "both ends are in closed form, v_0 is integrated out of the decoder, times are of low "
    "discrepancy, and evaluation takes several times per datum, in log volume",
    "interval": "theirs multiplies the diffusion term by T - ε, slightly below 1, so it is not "
    "quite a bound",
    "kernels": "ours are computed in float64 by factorizations that keep their digits; theirs in "
    "float32 by matrix exponentials, with 1e-4 added to Σ where its Cholesky factorization fails",
    "time": "our network sees log SNR and theirs the time, because a learned diffusion changes the "
    "log SNR of each time",
    "network": "ours begin with an output of zero, and those for 32×32 pixels differ by a few of "
    "their 35 million parameters, in attention and embedding",
    "W": "ours is strictly lower triangular and theirs is full, so that Adam moves their Q = W - "
    "Wᵀ at twice the rate",
    "order": "our data are shuffled in each epoch, as is usual; theirs keep the order of the files",
    "choice": "our result is that of the last weights on the unchanged test set; theirs also saves "
    "the weights with the best bound on the test set, and mirrors CIFAR-10's test images at random",
    "samples": "ours end with a draw from p(x | y_ε), theirs with x from the mean of the last step",
    "ImageNet": "no configuration was released; we chose the version of 2017, which has the ten "
    "training files that their loader reads, and the settings of CIFAR-10 without mirrored images",
    "ALDA": "no configuration was released; its log SNR at their start time needs float64, in "
    "which it trains here",
}
"""What differs from the released code, by name, with the reason."""

Guide = Callable[..., LinearDiffusion]


def _published(make: Guide) -> tuple[Guide, Guide]:
    def at_log_snr(max_log_snr: float) -> LinearDiffusion:
        return make(beta=LinearBeta(0.1, 10.0), max_log_snr=max_log_snr)

    def at_time() -> LinearDiffusion:
        return make(beta=LinearBeta(0.1, 10.0), cut_time=START_TIME)

    return at_log_snr, at_time


def _learned(num_variables: int, **options: Any) -> LinearDiffusion:
    seed = torch.initial_seed()  # draws nothing, so that networks begin as with other guides
    return LearnedDiffusion(num_variables, diagonal=True, seed=seed, **options)


vpsde, vpsde_at_time = _published(VPSDE)
cld, cld_at_time = _published(CLD)
malda, malda_at_time = _published(MALDA)
alda, alda_at_time = _published(ALDA)
learned1, learned1_at_time = _published(functools.partial(_learned, 1))
learned2, learned2_at_time = _published(functools.partial(_learned, 2))
learned3, learned3_at_time = _published(functools.partial(_learned, 3))
