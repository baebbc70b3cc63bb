"""ImageNet at 32×32 pixels in colour, in the two versions of the literature.

They were downsampled by different methods, so that their bits/dim are not comparable:

- ``imagenet32_old``: van den Oord, Kalchbrenner & Kavukcuoglu 2016, *Pixel recurrent neural
  networks*; 1,281,149 training and 49,999 validation images, PNG files in two tar archives.
  Image-net.org no longer offers them; they are on Academic Torrents.
- ``imagenet32_new``: Chrabaszcz, Loshchilov & Hutter 2017, *A downsampled variant of ImageNet as an
  alternative to the CIFAR datasets*, arXiv:1707.08819; 1,281,167 and 50,000 images, NumPy arrays in
  two zip archives from image-net.org.

On the two: https://github.com/tensorflow/datasets/issues/4662.
"""

from __future__ import annotations

import io
import os
import shlex
import tarfile
import zipfile
import zlib
from abc import abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm

from models.base import FileImages
from pyro_mdm.support.checks import DataError
from pyro_mdm.support.files import temporary
from pyro_mdm.support.splits import spread

Pixels = NDArray[np.uint8]

TORRENT = "https://academictorrents.com/details/bf62f5051ef878b9c357e6221e879629a9b4b172"
DOWNLOAD = "https://image-net.org/data/downsample"

DAMAGE = (OSError, ValueError, EOFError, KeyError, tarfile.TarError, zipfile.BadZipFile, zlib.error)
"""The errors of files that are damaged."""

BATCH = 1024
"""The number of images that are decoded at a time."""


class ImageNet32(FileImages):
    """The base of both versions; use :class:`ImageNet32Old` or :class:`ImageNet32New`.

    The official validation set is ``test``, as in the literature. With ``holdout`` 10,000 images
    spread evenly over the official training set are kept for validation.

    The first use decodes the images into ``<data>/imagenet32/<name>-train.npy`` (3.9 GB) and
    ``-test.npy``. Validation images come last, so that every part is a slice of a memory-mapped
    file.

    Raises:
        DataError: an archive is missing, damaged, or does not have the right number of images.
    """

    event_shape = (3, 32, 32)
    steps = 50_000
    held_out = 10_000

    sizes: ClassVar[dict[str, int]]
    """The number of images in the official training set (train) and validation set (test)."""

    archives: ClassVar[dict[str, str]]
    """The files that hold them."""

    @property
    def folder(self) -> Path:
        """The folder of archives and decoded images."""
        return self.root / "imagenet32"

    @abstractmethod
    def decode(self, archive: Path) -> Iterator[Pixels]:
        """The images of an archive in batches, (n, 3, 32, 32), in a fixed order."""

    @abstractmethod
    def fetch(self, archive: Path) -> str:
        """Advice on how to get an archive, in words."""

    def parts(self) -> tuple[Tensor, Tensor]:
        return self._images("train", self.held_out), self._images("test", 0)

    def _images(self, name: str, held_out: int) -> Tensor:
        """The images of an official set, those that may be held out last."""
        path = self.folder / f"{self.name}-{name}.npy"
        try:
            if not path.exists():
                self._write(path, name, held_out)
            return torch.from_numpy(np.load(path, mmap_mode="c", allow_pickle=False))
        except (OSError, ValueError, EOFError) as error:
            raise DataError(
                f"decoded images {path} cannot be used: {error}. Delete the file, and it is made "
                "again"
            ) from error

    def _write(self, path: Path, name: str, held_out: int) -> None:
        archive, n = self.folder / self.archives[name], self.sizes[name]
        if not archive.is_file():
            raise DataError(
                f"{archive} is not there, the {name} images of {self.name}. To get it: "
                f"{self.fetch(archive)}"
            )
        last = spread(n, held_out).numpy() if held_out else np.empty(0, np.int64)
        row = np.argsort(np.concatenate([np.setdiff1d(np.arange(n), last), last]))
        count, decoded = 0, temporary(path)
        try:
            shape = (n, *self.event_shape)
            images = np.lib.format.open_memmap(decoded, "w+", np.uint8, shape)
            with tqdm(total=n, desc=path.stem, unit="image", leave=False, disable=None) as bar:
                for batch in self.decode(archive):
                    rows = row[count : count + len(batch)]
                    images[rows] = batch[: len(rows)]
                    count += len(batch)
                    bar.update(len(batch))
            if count != n:
                raise DataError(f"{archive} has {count:,} images, expected {n:,} of {self.name}")
            images.flush()
            os.replace(decoded, path)
        except DAMAGE as error:
            raise DataError(
                f"{archive} cannot be decoded to {path}: {error}. If it is damaged, delete it and "
                f"get it again: {self.fetch(archive)}"
            ) from error
        finally:
            decoded.unlink(missing_ok=True)


class ImageNet32Old(ImageNet32):
    """The version of 2016, "small" ImageNet, with 1,281,149 training and 49,999 test images.

    Read from ``train_32x32.tar`` and ``valid_32x32.tar`` in ``<data>/imagenet32``. Images are in
    the order of their file names.
    """

    name = "imagenet32_old"
    sizes: ClassVar = {"train": 1_281_149, "test": 49_999}
    archives: ClassVar = {"train": "train_32x32.tar", "test": "valid_32x32.tar"}

    def fetch(self, archive: Path) -> str:
        return (
            f"image-net.org no longer offers it; download “Downsampled ImageNet 32x32” from "
            f"{TORRENT} and put {archive.name} into {self.folder}"
        )

    def decode(self, archive: Path) -> Iterator[Pixels]:
        members = []
        with tarfile.open(archive, "r:") as tar:
            while (member := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # or a million stay in memory
                if member.isfile() and member.name.endswith(".png"):
                    members.append((member.name, member.offset_data, member.size))
        members.sort()
        with open(archive, "rb") as file:
            for start in range(0, len(members), BATCH):
                batch = []
                for name, offset, size in members[start : start + BATCH]:
                    file.seek(offset)
                    batch.append(_pixels(name, file.read(size)))
                yield np.stack(batch)


def _pixels(name: str, content: bytes) -> Pixels:
    """The pixels of a PNG file, (3, 32, 32)."""
    try:
        with Image.open(io.BytesIO(content), formats=("PNG",)) as image:
            pixels = np.asarray(image.convert("RGB"))
    except Exception as error:  # a damaged image can raise anything
        raise ValueError(f"{name} is no image that can be read: {error}") from error
    if pixels.shape != (32, 32, 3):
        raise ValueError(f"{name} has {pixels.shape[0]}×{pixels.shape[1]} pixels, not 32×32")
    return pixels.transpose(2, 0, 1)


class ImageNet32New(ImageNet32):
    """The version of 2017, of all of ILSVRC 2012, with 1,281,167 training and 50,000 test images.

    Read from ``Imagenet32_train_npz.zip`` and ``Imagenet32_val_npz.zip`` in ``<data>/imagenet32``.
    Images are in the order of the files in them.
    """

    name = "imagenet32_new"
    sizes: ClassVar = {"train": 1_281_167, "test": 50_000}
    archives: ClassVar = {"train": "Imagenet32_train_npz.zip", "test": "Imagenet32_val_npz.zip"}

    def fetch(self, archive: Path) -> str:
        return (
            f"curl -fL --create-dirs -o {shlex.quote(str(archive))} {DOWNLOAD}/{archive.name} "
            "(should image-net.org ask for it, log in at https://image-net.org/login and save that "
            f"address as {archive})"
        )

    def decode(self, archive: Path) -> Iterator[Pixels]:
        with zipfile.ZipFile(archive) as opened:
            names = [name for name in opened.namelist() if name.endswith(".npz")]
            for name in sorted(names, key=_number):
                with np.load(io.BytesIO(opened.read(name)), allow_pickle=False) as arrays:
                    rows = arrays["data"]  # 1,024 values of red, then green, then blue
                if rows.dtype != np.uint8 or rows.shape[1:] != (3 * 32 * 32,):
                    raise ValueError(
                        f"{name} has 'data' {rows.dtype} {rows.shape}, expected uint8 (n, 3072)"
                    )
                yield rows.reshape(-1, 3, 32, 32)


def _number(name: str) -> tuple[int, str]:
    """The key that sorts ``…_batch_2.npz`` before ``…_batch_10.npz``."""
    return len(name), name
