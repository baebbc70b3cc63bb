"""Images that torchvision reads: MNIST, Fashion-MNIST and CIFAR-10."""

from __future__ import annotations

import gzip
import shlex
from pathlib import Path
from typing import ClassVar

import torch
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
from pyro_mdm.support.checks import DataError
from pyro_mdm.support.files import read_file, replacing

DEBIAN = Path("/usr/share/datasets/fashion-mnist")
"""The folder of the package dataset-fashion-mnist of Debian and Ubuntu, whose files end in .gz."""


class Official(FileImages):
    """Images of a class of torchvision, which reads them from the folder ``data``.

    Raises:
        DataError: files are missing or damaged; the message has the command that fetches them.
    """

    contexts = ("labels",)

    official: ClassVar[str]
    """The name of torchvision's class."""

    def parts(self) -> tuple[Tensor, Tensor]:
        train, test = (
            images.unsqueeze(1) if images.dim() == 3 else images.movedim(3, 1).contiguous()
            for images in self._read("data")
        )
        return train, test

    def labels(self) -> tuple[Tensor, Tensor]:
        train, test = self._read("targets")
        return train, test

    def _read(self, name: str) -> list[Tensor]:
        """An attribute of torchvision's training and test sets."""
        from torchvision import datasets

        kind = getattr(datasets, self.official)
        try:
            self.unpack()
            return [
                torch.as_tensor(getattr(kind(self.root, train=train), name))
                for train in (True, False)
            ]
        except Exception as error:  # a damaged file can raise anything
            program = f"from torchvision.datasets import {self.official} as kind; "
            program += f"kind({str(self.root)!r}, download=True)"
            raise DataError(
                f"torchvision reads no {self.official} from {self.root}: {error}. Delete what is "
                f"damaged there, and fetch it: python -c {shlex.quote(program)}"
            ) from error

    def unpack(self) -> None:
        """Put files where torchvision reads them, if they are packed elsewhere."""


class MNIST(Official):
    """Digits, x_j ∈ linspace(-1, 1, 256), with tilts of a pixel's histogram and a U-Net.

    28×28 pixels; 60,000 training images (55,000 with ``holdout``, the last 5,000 kept) and 10,000
    test images. Source: LeCun, Bottou, Bengio & Haffner 1998, *Gradient-based learning applied to
    document recognition*.
    """

    name = "mnist"
    official = "MNIST"
    event_shape = (1, 28, 28)
    steps = 30_000
    learning_rate = 2e-3
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


class FashionMNIST(MNIST):
    """Clothes, with the sizes, networks and likelihood of :class:`MNIST`.

    Where torchvision's files are not there, those of the package ``dataset-fashion-mnist`` of
    Debian and Ubuntu are unpacked to their places. Source: Xiao, Rasul & Vollgraf 2017,
    *Fashion-MNIST: a novel image dataset for benchmarking machine learning algorithms*.
    """

    name = "fashion_mnist"
    official = "FashionMNIST"

    def unpack(self) -> None:
        raw = self.root / self.official / "raw"
        if DEBIAN.is_dir() and not list(raw.glob("*")):
            raw.mkdir(parents=True, exist_ok=True)
            with replacing() as write:
                for path in DEBIAN.glob("*.gz"):
                    write(raw / path.stem, [gzip.decompress(read_file(path))])


class CIFAR10(Official):
    """Photographs, x_j ∈ linspace(-1, 1, 256), with tilts of a pixel's histogram and a U-Net.

    32×32 pixels in colour; 50,000 training images (45,000 with ``holdout``, the last 5,000 kept)
    and 10,000 test images. Source: Krizhevsky 2009, *Learning multiple layers of features from tiny
    images*.
    """

    name = "cifar10"
    official = "CIFAR10"
    event_shape = (3, 32, 32)
    steps = 20_000
