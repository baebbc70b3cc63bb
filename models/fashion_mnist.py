"""Fashion-MNIST: 70,000 pictures of clothes of 28×28 pixels, 256 grey levels.

Xiao, Rasul & Vollgraf 2017, *Fashion-MNIST: a novel image dataset for benchmarking machine learning
algorithms*. It comes by torchvision or as a package of Debian and Ubuntu, which compressed the same
contents anew: checksums are of the contents.
"""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path
from typing import ClassVar

from torch import Tensor

from models.base import FINE, MIXTURE, PAPER, SMALL, FileImages
from models.files import DataError, Published, idx_images, idx_labels, python_command

TRAIN = Published("train-images-idx3-ubyte", "f4a8712d7a061bf5bd6d2ca38dc4d50a", size=47_040_016)
TEST = Published("t10k-images-idx3-ubyte", "8181f5470baa50b63fa0f6fddb340f0a", size=7_840_016)
TRAIN_LABELS = Published("train-labels-idx1-ubyte", "9018921c3c673c538a1fc5bad174d6f9", size=60_008)
TEST_LABELS = Published("t10k-labels-idx1-ubyte", "15d484375f8d13e6eb1aabb0c3f46965", size=10_008)

DEBIAN = Path("/usr/share/datasets/fashion-mnist")
"""The folder of Debian's package dataset-fashion-mnist, whose files end in .gz."""

INSTALL = "apt-get install --reinstall dataset-fashion-mnist"


class FashionMNIST(FileImages):
    """x_j ∈ linspace(-1, 1, 256), tilts of the pixel's histogram, and a U-Net.

    60,000 images are trained on (55,000 with ``holdout``, the last 5,000 kept) and 10,000 are test.
    Each file is read from ``<data>/FashionMNIST/raw``, where
    ``torchvision.datasets.FashionMNIST(data, download=True)`` puts it, or if it is not there, from
    where Debian's package ``dataset-fashion-mnist`` does.

    Raises:
        DataError: a file is missing, or the MD5 of its contents is not that of the published ones.
    """

    name = "fashion_mnist"
    event_shape = (1, 28, 28)
    steps = 30_000
    batch_size = 32
    learning_rate = 2e-3
    contexts = ("labels",)
    optimizer = "muon"
    recipe = "fine"
    networks: ClassVar = {"small": SMALL, "mixture": MIXTURE, "fine": FINE, "paper": PAPER}

    def parts(self) -> tuple[Tensor, Tensor]:
        train, test = (idx_images(*self._read(file), (28, 28)) for file in (TRAIN, TEST))
        return train, test

    def labels(self) -> tuple[Tensor, Tensor]:
        train, test = (idx_labels(*self._read(file)) for file in (TRAIN_LABELS, TEST_LABELS))
        return train, test

    def _read(self, published: Published) -> tuple[bytes, str]:
        """A file's content, unpacked, and what it is called in messages."""
        path = self.root / "FashionMNIST" / "raw" / published.name
        root = str(self.root)
        fetch = python_command(
            f"from torchvision.datasets import FashionMNIST; FashionMNIST({root!r}, download=True)"
        )
        packed = DEBIAN / f"{published.name}.gz"
        if path.exists() or not packed.exists():
            place = str(path) if path.exists() else f"{path} (or {packed})"
            published.check(path, place, f"{fetch}, or on Debian and Ubuntu {INSTALL}")
            return path.read_bytes(), place
        try:
            content = gzip.decompress(packed.read_bytes())
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(
                f"{packed} is damaged ({error}), expected to unpack to {published}. Delete it and "
                f"fetch it again: {INSTALL}"
            ) from error
        published.check(content, f"{packed}, unpacked,", INSTALL)
        return content, str(packed)
