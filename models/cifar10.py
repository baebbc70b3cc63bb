"""CIFAR-10: 60,000 photographs of 32×32 pixels in colour, as torchvision stores them.

Krizhevsky 2009, *Learning multiple layers of features from tiny images*.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from models.base import FileImages
from models.files import DataError, Published, python_command, unpickle_arrays

if TYPE_CHECKING:
    from torchvision.datasets import CIFAR10 as Official


class CIFAR10(FileImages):
    """Photographs, x_j ∈ linspace(-1, 1, 256), with tilts of a pixel's histogram and a U-Net.

    50,000 training images (45,000 with ``holdout``, the last 5,000 kept) and 10,000 test images.
    Files are read from ``<data>/cifar-10-batches-py``, the folder inside the published archive.
    They are pickles, and are read without calling anything that they name.

    Raises:
        DataError: a file is missing, is not the published one (MD5), or does not hold images.
    """

    name = "cifar10"
    event_shape = (3, 32, 32)
    steps = 20_000
    contexts = ("labels",)

    def parts(self) -> tuple[Tensor, Tensor]:
        # a row is 1,024 values of red, then green, then blue, each row by row of the image
        train, test = (array.view(-1, 3, 32, 32) for array in self._read("data", (3 * 32 * 32,)))
        return train, test

    def labels(self) -> tuple[Tensor, Tensor]:
        return self._read("labels", ())

    def _read(self, key: str, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """An entry of the training and the test files, (n, *shape) each."""
        from torchvision.datasets import CIFAR10 as official

        lists = (official.train_list, official.test_list)
        train, test = (self._joined(official, files, key, shape) for files in lists)
        return train, test

    def _joined(
        self, official: type[Official], files: list[list[str]], key: str, shape: tuple[int, ...]
    ) -> Tensor:
        # torchvision's own class would unpickle the files; this only fetches them
        fetch = python_command(
            "from torchvision.datasets.utils import download_and_extract_archive as fetch; "
            f"fetch({official.url!r}, {str(self.root)!r}, md5={official.tgz_md5!r})"
        )
        batches = []
        for name, md5 in files:
            path = self.root / official.base_folder / name
            Published(name, md5).check(path, str(path), fetch)
            arrays = unpickle_arrays(path)
            wanted = arrays.get(key)
            if wanted is None or wanted.shape[1:] != shape:
                shapes = {name: array.shape for name, array in arrays.items()}
                sizes = ", ".join(["n", *map(str, shape)])
                raise DataError(f"{path}: found arrays {shapes}, expected {key!r} of ({sizes})")
            batches.append(wanted)
        return torch.from_numpy(np.concatenate(batches))
