"""Fashion-MNIST: 70,000 pictures of clothes of 28×28 pixels, 256 grey levels.

Xiao, Rasul & Vollgraf 2017, *Fashion-MNIST: a novel image dataset for benchmarking machine learning
algorithms*. Files come from torchvision or a Debian package, which compresses them differently;
checksums are those of the uncompressed contents.
"""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path
from typing import ClassVar

from models.files import DataError, Published
from models.mnist import MNIST
from pyro_mdm.support.files import read_file

IMAGES = (
    Published("train-images-idx3-ubyte", "f4a8712d7a061bf5bd6d2ca38dc4d50a", size=47_040_016),
    Published("t10k-images-idx3-ubyte", "8181f5470baa50b63fa0f6fddb340f0a", size=7_840_016),
)
LABELS = (
    Published("train-labels-idx1-ubyte", "9018921c3c673c538a1fc5bad174d6f9", size=60_008),
    Published("t10k-labels-idx1-ubyte", "15d484375f8d13e6eb1aabb0c3f46965", size=10_008),
)

DEBIAN = Path("/usr/share/datasets/fashion-mnist")
"""The folder of Debian's package dataset-fashion-mnist, whose files end in .gz."""

INSTALL = "apt-get install --reinstall dataset-fashion-mnist"


class FashionMNIST(MNIST):
    """Clothes, with the sizes, files, networks and likelihood of :class:`MNIST`.

    Files are read from ``<data>/FashionMNIST/raw``, where
    ``torchvision.datasets.FashionMNIST(data, download=True)`` puts them, or else from the folder of
    Debian's package ``dataset-fashion-mnist``.

    Raises:
        DataError: a file is missing, or its contents are not the published ones (MD5).
    """

    name = "fashion_mnist"
    official = "FashionMNIST"
    recipe = "fine"
    published: ClassVar = {"images": IMAGES, "labels": LABELS}

    def read(self, published: Published) -> tuple[bytes, str]:
        path = self.root / self.official / "raw" / published.name
        packed = DEBIAN / f"{published.name}.gz"
        if path.exists() or not packed.exists():
            place = str(path) if path.exists() else f"{path} (or {packed})"
            published.check(path, place, f"{self.fetch}, or on Debian and Ubuntu {INSTALL}")
            return path.read_bytes(), place
        try:
            content = gzip.decompress(read_file(packed))
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(
                f"{packed} is damaged ({error}), expected to unpack to {published}. Delete it and "
                f"fetch it again: {INSTALL}"
            ) from error
        published.check(content, f"{packed}, unpacked,", INSTALL)
        return content, str(packed)
