"""MNIST: 70,000 handwritten digits of 28×28 pixels, 256 grey levels, as torchvision stores them.

LeCun, Bottou, Bengio & Haffner 1998, *Gradient-based learning applied to document recognition*.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from models.base import (
    FINE,
    MIXTURE,
    PAPER,
    PUBLISHED,
    PUBLISHED_SMALL,
    PUBLISHED_STRIDED,
    SMALL,
    FileImages,
)
from models.files import Published, idx_images, idx_labels, python_command

IMAGES = (
    Published("train-images-idx3-ubyte", "6bbc9ace898e44ae57da46a324031adb", size=47_040_016),
    Published("t10k-images-idx3-ubyte", "2646ac647ad5339dbf082846283269ea", size=7_840_016),
)
LABELS = (
    Published("train-labels-idx1-ubyte", "a25bea736e30d166cdddb491f175f624", size=60_008),
    Published("t10k-labels-idx1-ubyte", "27ae3e4e09519cfbb04c329615203637", size=10_008),
)


class MNIST(FileImages):
    """Digits, x_j ∈ linspace(-1, 1, 256), with tilts of a pixel's histogram and a U-Net.

    60,000 training images (55,000 with ``holdout``, the last 5,000 kept) and 10,000 test images.
    Files are read from ``<data>/MNIST/raw``, where
    ``torchvision.datasets.MNIST(data, download=True)`` puts them.

    Raises:
        DataError: a file is missing, or is not the published one (MD5).
    """

    name = "mnist"
    event_shape = (1, 28, 28)
    steps = 30_000
    learning_rate = 2e-3
    contexts = ("labels",)
    recipe = "fine"
    networks: ClassVar = {
        "small": SMALL,
        "mixture": MIXTURE,
        "fine": FINE,
        "paper": PAPER,
        "published": PUBLISHED,
        "published_small": PUBLISHED_STRIDED,
        "published_unet": PUBLISHED_SMALL,
    }
    official: ClassVar[str] = "MNIST"
    """The name of torchvision's class, and of the folder where it puts the files."""

    published: ClassVar = {"images": IMAGES, "labels": LABELS}
    """The files of the training and the test part."""

    def parts(self) -> tuple[Tensor, Tensor]:
        files = self.published["images"]
        train, test = (idx_images(*self.read(file), (28, 28)) for file in files)
        return train, test

    def labels(self) -> tuple[Tensor, Tensor]:
        train, test = (idx_labels(*self.read(file)) for file in self.published["labels"])
        return train, test

    @property
    def fetch(self) -> str:
        """The command that fetches the files."""
        name, root = self.official, str(self.root)
        program = f"from torchvision.datasets import {name}; {name}({root!r}, download=True)"
        return python_command(program)

    def read(self, published: Published) -> tuple[bytes, str]:
        """The content of a file, and its name in messages."""
        path = self.root / self.official / "raw" / published.name
        published.check(path, str(path), self.fetch)
        return path.read_bytes(), str(path)
