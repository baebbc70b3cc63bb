"""ImageNet at 32×32 pixels in colour, in the two versions of the literature.

They were downsampled by different methods, so that their bits/dim are not comparable:

- ``imagenet32_old``: van den Oord, Kalchbrenner & Kavukcuoglu 2016, *Pixel recurrent neural
  networks*; 1,281,149 training and 49,999 validation images, PNG files in two tar archives.
  Image-net.org no longer offers them; they are on Academic Torrents.
- ``imagenet32_new``: Chrabaszcz, Loshchilov & Hutter 2017, *A downsampled variant of ImageNet as an
  alternative to the CIFAR datasets*, arXiv:1707.08819; 1,281,167 and 50,000 images, NumPy arrays in
  two zip archives from image-net.org.

On the two: https://github.com/tensorflow/datasets/issues/4662. The checksums of the old are those
of tensorflow/datasets.
"""

from __future__ import annotations

import io
import shlex
import tarfile
import zipfile
import zlib
from abc import abstractmethod
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from models.base import FileImages
from models.files import DataError, Published, cached
from pyro_mdm.support.splits import spread

Part = Literal["train", "test"]
Images = NDArray[np.uint8]
T = TypeVar("T")

OLD = {
    "train": Published(
        "train_32x32.tar",
        "244a323d48f8d72f65ad8b54658c01fed68d2d7bdc77ccb43da58c11e94224e5",
        "SHA-256",
        4_113_018_880,
    ),
    "test": Published(
        "valid_32x32.tar",
        "862e559462b24cf736212a19f6b0d47b55c2dc8ebdaa95ccecfe71260124c8f7",
        "SHA-256",
        161_474_560,
    ),
}
NEW = {
    "train": [
        Published("train_data_batch_1.npz", "464fde20de6eb44c28cc1a8c11544bb1"),
        Published("train_data_batch_2.npz", "bdb56e71882c3fd91619d789d5dd7c79"),
        Published("train_data_batch_3.npz", "83ff36d76ea26867491a281ea6e1d03b"),
        Published("train_data_batch_4.npz", "98ff184fe109d5c2a0f6da63843880c7"),
        Published("train_data_batch_5.npz", "62b8803e13c3e6de9498da7aaaae57c8"),
        Published("train_data_batch_6.npz", "e0b06665f890b029f1d8d0a0db26e119"),
        Published("train_data_batch_7.npz", "9731f469aac1622477813c132c5a847a"),
        Published("train_data_batch_8.npz", "60aed934b9d26b7ee83a1a83bdcfbe0f"),
        Published("train_data_batch_9.npz", "b96328e6affd718660c2561a6fe8c14c"),
        Published("train_data_batch_10.npz", "1dc618d544c554220dd118f72975470c"),
    ],
    "test": [Published("val_data.npz", "a8c04a389f2649841fb7a01720da9dd9")],
}
ZIPS = {"train": "Imagenet32_train_npz.zip", "test": "Imagenet32_val_npz.zip"}

TORRENT = "https://academictorrents.com/details/bf62f5051ef878b9c357e6221e879629a9b4b172"
DOWNLOAD = "https://image-net.org/data/downsample"

ORDER = 1
"""The version of the order of images in decoded files; files of another version are made again."""

BATCH = 1024  # images decoded at a time


class ImageNet32(FileImages):
    """The base of both versions; use :class:`ImageNet32Old` or :class:`ImageNet32New`.

    The official validation set is ``test``, as in the literature. With ``holdout`` 10,000 images
    spread evenly over the official training set are kept for validation.

    The first use decodes the images into ``<data>/imagenet32/<name>-train.npy`` (3.9 GB) and
    ``-test.npy``. Validation images come last, so that every part is a slice of a memory-mapped
    file.
    """

    event_shape = (3, 32, 32)
    steps = 50_000
    held_out = 10_000

    sizes: ClassVar[dict[str, int]]
    """The number of images in the official training set (train) and validation set (test)."""

    files: ClassVar[tuple[str, ...]]
    """The files and folders that hold them."""

    @property
    def folder(self) -> Path:
        """The folder of archives and decoded images."""
        return self.root / "imagenet32"

    def parts(self) -> tuple[Tensor, Tensor]:
        return self._images_of("train"), self._images_of("test")

    def _images_of(self, part_name: Part) -> Tensor:
        if not self.folder.is_dir():
            next(self.decode(part_name, []))  # raises: nothing is there, and nothing should be made
        held_out = self.held_out if part_name == "train" else 0
        return cached(
            self.folder / f"{self.name}-{part_name}.npy",
            {"images": self.name, "part": part_name, "order": ORDER, "last": held_out},
            (self.sizes[part_name], *self.event_shape),
            partial(self.decode, part_name),
        )

    @abstractmethod
    def decode(self, part: Part, sources: list[dict[str, Any]]) -> Iterator[Images]:
        """The images of ``part`` in batches, checked; appends their files to ``sources``."""

    def _last(self, part_name: Part) -> NDArray[np.int64]:
        """Sorted indices of the images that come last in the decoded file."""
        count = self.held_out if part_name == "train" else 0
        return spread(self.sizes[part_name], count).numpy() if count else np.empty(0, np.int64)

    def _missing(self, part_name: Part, looked_for: str, get: str) -> DataError:
        other = ImageNet32New if isinstance(self, ImageNet32Old) else ImageNet32Old
        names = (*other.files, *(f"{other.name}-{name}.npy" for name in ("train", "test")))
        there = [name for name in names if (self.folder / name).exists()]
        message = f"{self.folder} has no {part_name} images of {self.name}: "
        message += f"{looked_for} is not there. "
        if there:
            message += (
                f"It has {', '.join(there)} of {other.name}, which are other images: bits/dim of "
                f"the two are not comparable. If you want those: --model {other.name}. "
            )
        return DataError(f"{message}To get {self.name}: {get}")


class ImageNet32Old(ImageNet32):
    """The version of 2016, "small" ImageNet, with 1,281,149 training and 49,999 test images.

    Read from ``train_32x32.tar`` and ``valid_32x32.tar`` in ``<data>/imagenet32``. Images are in
    the order of their file names.

    Raises:
        DataError: files are missing, damaged, of the other version, or not the right number.
    """

    name = "imagenet32_old"
    sizes: ClassVar = {"train": 1_281_149, "test": 49_999}
    files = ("train_32x32.tar", "valid_32x32.tar")

    def decode(self, part: Part, sources: list[dict[str, Any]]) -> Iterator[Images]:
        published = OLD[part]
        path = self.folder / published.name
        get = (
            f"image-net.org no longer offers it; download “Downsampled ImageNet 32x32” from "
            f"{TORRENT} and put {published.name} into {self.folder}"
        )
        if not path.exists():
            raise self._missing(part, path.name, get)
        published.check(path, str(path), get)
        sources.append(published.description())
        yield from _decoded(self._tar(path, part))

    def _tar(self, path: Path, part_name: Part) -> Iterator[tuple[str, bytes]]:
        """The name and content of every image."""
        members = []
        with tarfile.open(path, "r:") as tar:
            while (member := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # or a million stay in memory
                if member.isfile() and member.name.endswith(".png"):
                    members.append((member.name, member.offset_data, member.size))
        if len(members) != self.sizes[part_name]:
            raise DataError(
                f"{path} holds {len(members):,} PNG files, expected the "
                f"{self.sizes[part_name]:,} of {self.name}"
            )
        with open(path, "rb") as file:
            for name, offset, size in self._ordered(sorted(members), part_name):
                file.seek(offset)
                yield f"{name} in {path}", file.read(size)

    def _ordered(self, items: list[T], part_name: Part) -> Iterator[T]:
        last = set(self._last(part_name).tolist())
        yield from (item for i, item in enumerate(items) if i not in last)
        yield from (items[i] for i in sorted(last))


def _decoded(files: Iterable[tuple[str, bytes]]) -> Iterator[Images]:
    batch = []
    for place, content in files:
        try:
            with Image.open(io.BytesIO(content), formats=("PNG",)) as image:
                pixels = np.asarray(image.convert("RGB"))
        except Exception as error:  # a damaged image can raise anything
            raise DataError(f"{place} is no image that can be read: {error}") from error
        if pixels.shape != (32, 32, 3):
            raise DataError(f"{place} has {pixels.shape[0]}×{pixels.shape[1]} pixels, not 32×32")
        batch.append(pixels.transpose(2, 0, 1))
        if len(batch) == BATCH:
            yield np.stack(batch)
            batch.clear()
    if batch:
        yield np.stack(batch)


class ImageNet32New(ImageNet32):
    """The version of 2017, of all of ILSVRC 2012, with 1,281,167 training and 50,000 test images.

    Read from ``Imagenet32_train_npz.zip`` and ``Imagenet32_val_npz.zip`` in ``<data>/imagenet32``.
    Images are in the order of the files in them.

    Raises:
        DataError: files are missing, damaged, of the other version, or not the right number.
    """

    name = "imagenet32_new"
    sizes: ClassVar = {"train": 1_281_167, "test": 50_000}
    files = tuple(ZIPS.values())

    def decode(self, part: Part, sources: list[dict[str, Any]]) -> Iterator[Images]:
        mask = np.zeros(self.sizes[part], dtype=bool)
        mask[self._last(part)] = True
        start, last = 0, []
        for place, images in self._arrays(part):
            stop = start + len(images)
            if stop > len(mask):
                raise DataError(
                    f"{place} brings the images to {stop:,}, expected {len(mask):,} of {self.name}"
                )
            chosen = mask[start:stop]
            last.append(images[chosen])
            yield images[~chosen]
            start = stop
        sources += [published.description() for published in NEW[part]]
        yield from last

    def _arrays(self, part_name: Part) -> Iterator[tuple[str, Images]]:
        """The images (n, 3, 32, 32) of every file in an archive, with its place."""
        archive = self.folder / ZIPS[part_name]
        get = (
            f"curl -fL --create-dirs -o {shlex.quote(str(archive))} {DOWNLOAD}/{archive.name} "
            "(should image-net.org ask for it, log in at https://image-net.org/login and save that "
            f"address as {archive})"
        )
        if not archive.exists():
            raise self._missing(part_name, archive.name, get)
        try:
            with zipfile.ZipFile(archive) as opened:
                members = {name.rsplit("/")[-1]: name for name in opened.namelist()}
                for published in NEW[part_name]:
                    place = f"{published.name} in {archive}"
                    if published.name not in members:
                        raise DataError(
                            f"{archive} holds {', '.join(sorted(members)) or 'nothing'}, expected "
                            f"{', '.join(p.name for p in NEW[part_name])}. To fetch it: {get}"
                        )
                    content = opened.read(members[published.name])
                    published.check(content, place, get)
                    yield place, _npz(content, place)
        except (zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise DataError(
                f"{archive} is damaged: found {archive.stat().st_size:,} bytes that are no whole "
                f"zip archive ({error}), expected one with "
                f"{', '.join(p.name for p in NEW[part_name])}. Delete it and fetch it again: {get}"
            ) from error


def _npz(content: bytes, place: str) -> Images:
    """The images (n, 3, 32, 32): a row is 1,024 values of red, then green, then blue."""
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            images = arrays["data"]
    except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{place} has no array 'data' that can be read: {error}") from error
    if images.dtype != np.uint8 or images.shape[1:] != (3 * 32 * 32,):
        raise DataError(
            f"{place}: found 'data' {images.dtype} {images.shape}, expected uint8 (n, 3072)"
        )
    return images.reshape(-1, 3, 32, 32)
