"""scikit-learn's handwritten digits: 1,797 images of 8×8 pixels, 17 grey levels. No download."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from models.base import PUBLISHED_SMALL, ImageProblem


class Digits(ImageProblem):
    """Digits, x_j ∈ linspace(-1, 1, 17), with a logit per level and pixel and an 8×8 U-Net.

    1,617 training images (1,438 with ``holdout``) and 180 test images. An independent-pixel
    histogram has 2.41 bits/dim.

    Published numbers have the split by index: every 10th image is test. Since the images lie in a
    periodic order, its classes are uneven: of 0, …, 9 the test part has 11, 16, 19, 27, 31, 22, 14,
    15, 15 and 10, validation 15, 19, 20, 22, 19, 19, 10, 22, 18 and 15. ``--split_seed 1``, or
    :meth:`split_by`, splits them evenly.
    """

    name = "digits"
    split_seed = None  # the published split; your own data set needs no such line
    event_shape = (1, 8, 8)
    num_levels = 17
    form = "logits"
    max_log_snr = 9.0
    learning_rate = 2e-3
    contexts = ("labels",)
    times = "log_volume"  # with adaptive times so few images are overfitted sooner
    networks: ClassVar = {
        "small": {"base": 32, "multipliers": (1, 2, 2), "lean": True},
        "narrow": {"base": 24, "multipliers": (1, 2, 2), "lean": True},  # of models/trained/digits
        "published_unet": PUBLISHED_SMALL,
    }

    def load(self) -> Tensor:
        from sklearn.datasets import load_digits  # takes as long as torch to import

        return torch.from_numpy(load_digits().images).to(torch.uint8).unsqueeze(1)

    def load_context(self, name: str) -> Tensor:
        from sklearn.datasets import load_digits

        return torch.from_numpy(load_digits().target)
