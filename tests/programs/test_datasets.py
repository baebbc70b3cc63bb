"""Data sets read from files: each from small files of the very same formats, written here."""

from __future__ import annotations

import functools
import gzip
import hashlib
import io
import json
import os
import pickle
import re
import shlex
import shutil
import struct
import sys
import tarfile
import threading
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import torchvision
from numpy.typing import NDArray
from PIL import Image

from models import (
    CIFAR10,
    MNIST,
    DataError,
    FashionMNIST,
    ImageNet32New,
    ImageNet32Old,
    Images,
    fashion_mnist,
    imagenet32,
    mnist as mnist_module,
)
from models.base import FileImages, ImageProblem
from models.files import (
    Published,
    cached,
    idx_images,
    idx_labels,
    python_command,
    unpickle_arrays,
)
from pyro_mdm import MDM_ELBO, VPSDE, DiffusionGuide
from pyro_mdm.conditioning import Labels
from pyro_mdm.support.splits import spread
from tests.mistakes import Bomb, refused

Array = NDArray[Any]


def pixels(n: int, *shape: int, seed: int = 0) -> Array:
    """Images of which no two rows, columns or channels are alike."""
    return np.random.default_rng([seed, n, *shape]).integers(256, size=(n, *shape), dtype=np.uint8)


def same(tensor: torch.Tensor, array: Array) -> bool:
    return tensor.dtype == torch.uint8 and np.array_equal(tensor.numpy(), array)


def md5(data: bytes) -> str:
    return hashlib.md5(data).hexdigest()


# -- writers of the formats ------------------------------------------------------------------------


def write_idx(path: Path, images: Array) -> None:
    """Big-endian: two zero bytes, type 8 (unsigned byte), number of sizes, sizes, values."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sizes = struct.pack(f">{images.ndim}I", *images.shape)
    path.write_bytes(struct.pack(">BBBB", 0, 0, 8, images.ndim) + sizes + images.tobytes())


def labels_of(images: Array) -> Array:
    """All of 0, 1, 2, and another for an image than for those beside it."""
    return (np.arange(len(images)) % 3).astype(np.uint8)


class Python2Pickler(pickle._Pickler):
    """Protocol 2 as Python 2 wrote it: text and bytes are its str, NumPy is that of its day."""

    dispatch: ClassVar = dict(pickle._Pickler.dispatch)

    def save_python2_str(self, value: str | bytes) -> None:
        raw = value.encode("latin1") if isinstance(value, str) else value
        short = len(raw) < 256
        self.write(b"U" + bytes([len(raw)]) if short else b"T" + struct.pack("<i", len(raw)))
        self.write(raw)
        self.memoize(value)

    dispatch[str] = dispatch[bytes] = save_python2_str

    def save_global(self, value: Any, name: str | None = None) -> None:
        module = value.__module__.replace("numpy._core", "numpy.core")
        self.write(f"c{module}\n{name or value.__name__}\n".encode())
        self.memoize(value)


def python2_pickle(value: Any) -> bytes:
    file = io.BytesIO()
    Python2Pickler(file, protocol=2).dump(value)
    return file.getvalue()


def cifar_batch(images: Array, number: int) -> dict[str, Any]:
    rows = np.stack([np.concatenate([plane.ravel() for plane in image]) for image in images])
    names = [f"photo_s_{i:06}.png" for i in range(len(images))]
    label = f"training batch {number} of 5"
    labels = labels_of(images).tolist()
    return {"batch_label": label, "labels": labels, "data": rows, "filenames": names}


def png(image: Array) -> bytes:
    """(C, H, W) as a PNG file."""
    file = io.BytesIO()
    Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0)).save(file, "PNG")
    return file.getvalue()


def write_tar(path: Path, folder: str, files: dict[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        entry = tarfile.TarInfo(folder)
        entry.type = tarfile.DIRTYPE
        tar.addfile(entry)
        for name, content in files.items():
            entry = tarfile.TarInfo(f"{folder}/{name}")
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))


def npz(images: Array) -> bytes:
    file = io.BytesIO()
    rows = images.reshape(len(images), 3, -1).reshape(len(images), 3072)
    np.savez(file, data=rows, labels=np.arange(len(images)), mean=rows.mean(0))
    return file.getvalue()


# -- the data sets, small --------------------------------------------------------------------------


@dataclass
class Small:
    """A data set of few images: the class, where its files are, and what must be read from them."""

    kind: type[FileImages]
    root: Path
    train: Array
    test: Array
    held_out: list[int]
    file: Path  # a file of the training part
    algorithm: str  # of its checksum
    get: str  # in messages: how to get the file
    check_again: Callable[[], None]  # make the checksums those of the files as they are now

    def load(self, **options: Any) -> FileImages:
        return self.kind(data=self.root, **options)


def small_idx(
    kind: type[FileImages],
    module: Any,
    root: Path,
    patch: pytest.MonkeyPatch,
    *,
    debian: bool = False,
) -> Small:
    """MNIST or Fashion-MNIST; ``debian``: the latter as Debian has it, packed elsewhere."""
    train, test = pixels(30, 1, 28, 28), pixels(7, 1, 28, 28)
    raw, packed = root / kind.__name__ / "raw", root / "usr"
    for name, images in (("train", train), ("t10k", test)):
        write_idx(raw / f"{name}-images-idx3-ubyte", images[:, 0])
        write_idx(raw / f"{name}-labels-idx1-ubyte", labels_of(images))
    published = {}
    for what, files in (("images", module.IMAGES), ("labels", module.LABELS)):
        contents = {file.name: (raw / file.name).read_bytes() for file in files}
        published[what] = [Published(n, md5(c), size=len(c)) for n, c in contents.items()]
    patch.setattr(kind, "published", published)
    patch.setattr(kind, "held_out", 4)
    fetch = f"from torchvision.datasets import {kind.__name__}; "
    get = f"python -c \"{fetch}{kind.__name__}('{root}', download=True)\""
    file = raw / "train-images-idx3-ubyte"
    if kind is FashionMNIST:
        patch.setattr(fashion_mnist, "DEBIAN", packed)
        get += f", or on Debian and Ubuntu {fashion_mnist.INSTALL}"
    if debian:
        packed.mkdir()
        for path in raw.iterdir():
            (packed / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
        shutil.rmtree(raw.parent)
        file = packed / f"{file.name}.gz"
    return Small(kind, root, train, test, [26, 27, 28, 29], file, "MD5", get, lambda: None)


def small_cifar10(root: Path, patch: pytest.MonkeyPatch, num_test: int = 7) -> Small:
    train, test = pixels(30, 3, 32, 32), pixels(num_test, 3, 32, 32)
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    names = [f"data_batch_{k}" for k in range(1, 6)]
    for k, name in enumerate(names):
        batch = cifar_batch(train[6 * k : 6 * k + 6], k + 1)
        (folder / name).write_bytes(python2_pickle(batch))
    (folder / "test_batch").write_bytes(python2_pickle(cifar_batch(test, 1)))

    def check_again() -> None:
        def listed(names: list[str]) -> list[list[str]]:
            return [[name, md5((folder / name).read_bytes())] for name in names]

        patch.setattr(torchvision.datasets.CIFAR10, "train_list", listed(names))
        patch.setattr(torchvision.datasets.CIFAR10, "test_list", listed(["test_batch"]))

    check_again()
    patch.setattr(CIFAR10, "held_out", 4)
    get = (
        'python -c "from torchvision.datasets.utils import download_and_extract_archive as fetch; '
        f"fetch('https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz', '{root}', "
        "md5='c58f30108f718f92721af3b95e74349a')\""
    )
    file = folder / "data_batch_3"
    return Small(CIFAR10, root, train, test, [26, 27, 28, 29], file, "MD5", get, check_again)


def small_old(root: Path, patch: pytest.MonkeyPatch) -> Small:
    train, test = pixels(30, 3, 32, 32), pixels(7, 3, 32, 32)
    folder = root / "imagenet32"
    for part, images in (("train", train), ("valid", test)):
        files = {f"{i:07}.png": png(image) for i, image in enumerate(images)}
        shuffled = {name: files[name] for name in sorted(files, key=lambda n: md5(n.encode()))}
        write_tar(folder / f"{part}_32x32.tar", f"{part}_32x32", shuffled)

    def check_again() -> None:
        for part, published in imagenet32.OLD.items():
            raw = (folder / published.name).read_bytes()
            digest = hashlib.sha256(raw).hexdigest()
            known = Published(published.name, digest, "SHA-256", len(raw))
            patch.setitem(imagenet32.OLD, part, known)

    check_again()
    patch.setattr(ImageNet32Old, "sizes", {"train": 30, "test": 7})
    patch.setattr(ImageNet32Old, "held_out", 4)
    file = folder / "train_32x32.tar"
    get = (
        "https://academictorrents.com/details/bf62f5051ef878b9c357e6221e879629a9b4b172 and put "
        f"train_32x32.tar into {folder}"
    )
    held = spread(30, 4).tolist()
    return Small(ImageNet32Old, root, train, test, held, file, "SHA-256", get, check_again)


def small_new(root: Path, patch: pytest.MonkeyPatch, num_test: int = 7) -> Small:
    train, test = pixels(30, 3, 32, 32), pixels(num_test, 3, 32, 32)
    folder = root / "imagenet32"
    folder.mkdir(parents=True)
    files = {"val_data.npz": npz(test)}
    for k in range(10):
        files[f"train_data_batch_{k + 1}.npz"] = npz(train[3 * k : 3 * k + 3])
    for part in ("train", "val"):
        chosen = {name: content for name, content in files.items() if name.startswith(part)}
        archive = folder / f"Imagenet32_{part}_npz.zip"
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as opened:
            for name, content in chosen.items():
                opened.writestr(name, content)
    for part, all_published in imagenet32.NEW.items():
        known = [Published(p.name, md5(files[p.name])) for p in all_published]
        patch.setitem(imagenet32.NEW, part, known)
    patch.setattr(ImageNet32New, "sizes", {"train": 30, "test": num_test})
    patch.setattr(ImageNet32New, "held_out", 4)
    get = (
        f"curl -fL --create-dirs -o '{folder}/Imagenet32_train_npz.zip' "
        "https://image-net.org/data/downsample/Imagenet32_train_npz.zip"
    )
    held = spread(30, 4).tolist()
    file = folder / "Imagenet32_train_npz.zip"
    return Small(ImageNet32New, root, train, test, held, file, "MD5", get, lambda: None)


SOURCES: dict[str, Callable[[Path, pytest.MonkeyPatch], Small]] = {
    "mnist": functools.partial(small_idx, MNIST, mnist_module),
    "fashion": functools.partial(small_idx, FashionMNIST, fashion_mnist),
    "fashion, Debian": functools.partial(small_idx, FashionMNIST, fashion_mnist, debian=True),
    "cifar10": small_cifar10,
    "old": small_old,
    "new": small_new,
}
PLAIN = [name for name in SOURCES if name != "fashion, Debian"]  # those with the file's own


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Small]:
    return lambda name: SOURCES[name](tmp_path / "my data", monkeypatch)


# -- values and parts ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SOURCES)
def test_values_arrive_pixel_by_pixel_in_the_right_parts(name, make):
    small = make(name)
    whole, held = small.load(), small.load(holdout=True)
    n, kept = len(small.train), len(small.held_out)
    rest = [i for i in range(n) if i not in small.held_out]

    # ImageNet's held-out images come last; the others' are last anyway
    assert same(whole.train, small.train[rest + small.held_out])
    assert whole.validation.shape == (0, *whole.event_shape)
    assert same(held.train, small.train[rest])
    assert same(held.validation, small.train[small.held_out])
    assert len(held.train) == n - kept and len(held.validation) == kept
    for problem in (whole, held):
        assert same(problem.test, small.test)
        assert problem.event_shape == problem.train.shape[1:]


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_the_small_network_gives_a_bound(name, make):
    problem = make(name).load(holdout=True, network="small")
    diffusion = VPSDE(max_log_snr=problem.max_log_snr)
    model = problem.build(diffusion)
    assert model.event_shape == problem.event_shape
    x = problem.to_model_space(problem.train[:4])
    loss = MDM_ELBO()(model, DiffusionGuide(diffusion))(x)
    assert bool(loss.isfinite())
    loss.backward()
    outlet = model.score_function.network.outlet[-1]
    assert bool(outlet.weight.grad.any())


def test_the_default_folder_is_data(make, monkeypatch):
    small = make("mnist")
    (small.root.parent / "elsewhere").mkdir()
    shutil.copytree(small.root, small.root.parent / "elsewhere" / "data")
    monkeypatch.chdir(small.root.parent / "elsewhere")
    assert same(MNIST().test, small.test)
    assert same(MNIST(data=str(small.root)).test, small.test)


# -- missing and damaged files ---------------------------------------------------------------------


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize("name", SOURCES)
def test_a_missing_file_is_named_with_what_to_run(name, make):
    small = make(name)
    small.file.unlink()
    with pytest.raises(DataError) as caught:
        small.load()
    assert small.file.name in str(caught.value) and small.get in str(caught.value)
    shutil.rmtree(small.root)
    with pytest.raises(DataError) as caught:
        small.load()
    assert small.get in str(caught.value)
    assert not small.root.exists()  # looking for it leaves nothing behind


@pytest.mark.parametrize("damage", [flip, truncate])
@pytest.mark.parametrize("name", PLAIN)
def test_a_damaged_file_is_named_with_both_checksums(name, damage, make):
    small = make(name)
    before = small.file.read_bytes()
    damage(small.file)
    after = small.file.read_bytes()
    with pytest.raises(DataError, match=r"(?s)is damaged.*found.*expected.*Delete it") as caught:
        small.load()
    message = str(caught.value)
    assert str(small.file) in message and small.get in message
    if small.file.suffix != ".zip":  # inside an archive it is the members that have checksums
        name = small.algorithm.lower().replace("-", "")
        for content in (before, after):
            assert f"{small.algorithm} {hashlib.new(name, content).hexdigest()}" in message
        assert f"{len(after):,} bytes" in message


def test_a_damaged_or_other_packed_file_is_named(make):
    small = make("fashion, Debian")
    whole, name = small.file.read_bytes(), re.escape(str(small.file))
    right, install = small.kind.published["images"][0].digest, re.escape(fashion_mnist.INSTALL)

    def no_deflate(path: Path) -> None:
        path.write_bytes(whole[:10] + b"\x07" + whole[11:])  # there is no type 3 of blocks

    for damage in (flip, truncate, no_deflate):
        small.file.write_bytes(whole)
        damage(small.file)
        pattern = rf"{name} is damaged .*expected to unpack to 23,536 bytes with MD5 {right}.*"
        with pytest.raises(DataError, match=pattern + install):
            small.load()
    other = bytearray(gzip.decompress(whole))
    other[1000] ^= 1
    small.file.write_bytes(gzip.compress(bytes(other)))
    pattern = rf"{name}, unpacked, is damaged or another file: found .*{md5(other)}.*{right}.*"
    with pytest.raises(DataError, match=pattern + install):
        small.load()


def test_fashion_mnist_of_the_data_folder_comes_before_debians(make):
    small = make("fashion, Debian")
    raw = small.root / "FashionMNIST" / "raw" / "train-images-idx3-ubyte"
    raw.parent.mkdir(parents=True)
    raw.write_bytes(b"damaged")
    with pytest.raises(DataError, match=rf"{re.escape(str(raw))} is damaged"):
        small.load()
    raw.write_bytes(gzip.decompress(small.file.read_bytes()))
    small.file.write_bytes(b"damaged")
    assert same(small.load().train, small.train)  # the test images are Debian's


@pytest.mark.parametrize("name", ["mnist", "fashion", "fashion, Debian", "cifar10"])
def test_labels_are_those_of_the_images_of_each_part(name, make):
    small = make(name)
    problem = small.load(holdout=True)
    problem.condition_on("labels")
    (train, held, test) = (problem.part(part) for part in ("train", "validation", "test"))
    expected = labels_of(small.train)
    kept = [i for i in range(30) if i not in small.held_out]
    for part, images, labels in (
        (train, small.train[kept], expected[kept]),
        (held, small.train[small.held_out], expected[small.held_out]),
        (test, small.test, labels_of(small.test)),
    ):
        assert same(part.data, images) and part.context.tolist() == labels.tolist()
    assert isinstance(problem.context, Labels) and problem.context.num_classes == 3


def test_what_is_no_file_of_images_or_labels_is_named(make):
    small = make("mnist")
    small.file.with_name("t10k-labels-idx1-ubyte").write_bytes(b"damaged")
    header = struct.pack(">4i", 0x803, 2, 28, 28)
    whole = header + bytes(2 * 28 * 28)
    labels = struct.pack(">2i", 0x801, 8) + bytes(8)
    refused(
        DataError,
        (lambda: small.load().condition_on("labels"), "t10k-labels-idx1-ubyte is damaged or an"),
        (lambda: idx_labels(whole, "a file"), "expected an IDX file of labels, unsigned bytes of"),
        *(
            (lambda raw=raw: idx_images(raw, "a file", (28, 28)), "a file: expected an IDX file of")
            for raw in (b"", b"short", labels, whole[:-1], whole + b"0")
        ),
        (lambda: idx_images(whole, "it", (32, 32)), r"of \(28, 28\) pixels, expected \(32, 32\)"),
    )


@pytest.mark.skipif(
    not fashion_mnist.DEBIAN.is_dir(), reason="the package dataset-fashion-mnist is not installed"
)
def test_fashion_mnist_of_debian_is_torchvisions(tmp_path):
    problem = FashionMNIST(data=tmp_path, holdout=True)
    sizes = [len(part) for part in (problem.train, problem.validation, problem.test)]
    assert sizes == [55_000, 5_000, 10_000]
    images = torch.cat([problem.train, problem.validation]).float() / 255
    # as is widely used to normalize it
    assert images.mean().item() == pytest.approx(0.2860, abs=5e-5)
    assert images.std().item() == pytest.approx(0.3530, abs=5e-5)
    # torchvision's compressed files are Debian's but for the header, which has a time and the name
    known = dict(torchvision.datasets.FashionMNIST.resources)
    for name, seconds in (("train", "dee9a759"), ("t10k", "f3e9a759")):
        name = f"{name}-images-idx3-ubyte"
        header = bytes.fromhex(f"1f8b0808{seconds}0003") + name.encode() + b"\0"
        packed = (fashion_mnist.DEBIAN / f"{name}.gz").read_bytes()
        assert md5(header + packed[10:]) == known[f"{name}.gz"]


def test_a_wrong_file_inside_a_whole_zip_is_named(make):
    small = make("new")
    with zipfile.ZipFile(small.file) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    other = npz(pixels(3, 3, 32, 32, seed=1))
    with zipfile.ZipFile(small.file, "w") as archive:
        for name, content in (files | {"train_data_batch_2.npz": other}).items():
            archive.writestr(f"some/folder/{name}", content)
    right = md5(files["train_data_batch_2.npz"])
    pattern = rf"train_data_batch_2\.npz in .*found .*MD5 {md5(other)}.*expected MD5 {right}"
    with pytest.raises(DataError, match=pattern):
        small.load()
    with zipfile.ZipFile(small.file, "w") as archive:
        archive.writestr("train_data_batch_1", b"pickle")
    with pytest.raises(DataError, match=r"holds train_data_batch_1, expected .*_batch_1\.n"):
        small.load()


@pytest.mark.parametrize("count", [29, 31])
@pytest.mark.parametrize("name", ["old", "new"])
def test_another_number_of_images_is_refused(name, count, make, monkeypatch):
    small = make(name)
    monkeypatch.setattr(small.kind, "sizes", {"train": count, "test": 7})
    with pytest.raises(DataError, match=rf"30.*expected .*\b{count}\b|found 30 .*expected {count}"):
        small.load()
    assert not list((small.root / "imagenet32").glob("*.npy"))
    assert not list((small.root / "imagenet32").glob(".*"))  # nor anything half done


def test_a_file_of_an_archive_that_is_no_such_image(make):
    small = make("old")
    whole = {f"{i:07}.png": png(image) for i, image in enumerate(small.train)}
    other = png(pixels(1, 3, 31, 32)[0])
    for wrong, message in (
        (other[:-100], "is no image that can be read"),
        (other, "has 31×32 pix"),
    ):
        write_tar(small.file, "train_32x32", whole | {"0000011.png": wrong})
        small.check_again()
        with pytest.raises(DataError, match=rf"0000011.png in .*train_32x32.tar {message}"):
            small.load()


def test_commands_can_be_pasted_whatever_the_folder_is_called():
    for root in ("data", "my data", "it's", 'a "b"', "$HOME/`x`", "C:\\data"):
        program = f"print({root!r})"
        words = shlex.split(python_command(program))
        assert words == ["python", "-c", program]
    assert python_command("MNIST('data')") == "python -c \"MNIST('data')\""


def test_the_published_numbers_are_those_of_the_publishers():
    assert mnist_module.IMAGES[0].size == 16 + 60_000 * 28 * 28
    assert mnist_module.IMAGES[1].size == 16 + 10_000 * 28 * 28
    # of the contents; test_fashion_mnist_of_debian_is_torchvisions
    for ours, mnist in zip(fashion_mnist.IMAGES, mnist_module.IMAGES, strict=True):
        assert (ours.name, ours.size) == (mnist.name, mnist.size) and ours.digest != mnist.digest
    assert (MNIST.held_out, CIFAR10.held_out, ImageNet32Old.held_out) == (5_000, 5_000, 10_000)
    assert ImageNet32Old.sizes == {"train": 1_281_149, "test": 49_999}
    assert ImageNet32New.sizes == {"train": 1_281_167, "test": 50_000}


# -- nothing that is read runs code ----------------------------------------------------------------


def test_a_malicious_pickle_with_the_right_checksum_is_refused(tmp_path, make):
    mark = tmp_path / "owned"
    small = make("cifar10")
    batch = cifar_batch(pixels(6, 3, 32, 32), 3)
    for bomb in (batch | {"data": Bomb(mark)}, batch | {"labels": [Bomb(mark)]}, Bomb(mark)):
        raw = pickle.dumps(bomb, protocol=2)
        pickle.loads(raw)
        assert mark.is_dir()  # it does work
        mark.rmdir()
        small.file.write_bytes(raw)
        small.check_again()
        with pytest.raises(DataError, match=r"batch_3 is not read: it wants to call .*\.mkdir"):
            small.load()
        assert not mark.exists()


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (b"cos\nsystem\n(S'echo'\ntR.", r"os\.system"),
        (b"(S'echo'\nios\nsystem\n.", r"os\.system"),
        (b"\x80\x02cbuiltins\neval\n(U\x011tR.", r"builtins\.eval"),
        (b"\x80\x02c__builtin__\neval\n(U\x011tR.", r"builtins\.eval|__builtin__\.eval"),
        (b"\x80\x02ccopyreg\n_reconstructor\n.", r"copyreg\._reconstructor"),
        (b"\x80\x02cnumpy\nload\n(U\x01xtR.", r"numpy\.load"),
        (b"\x80\x04\x8c\x05numpy\x8c\x07ndarray.\x93.", r"not read"),
        (b"\x80\x04\x8c\x05numpy\x8c\x10ndarray.tofile.x\x93.", r"numpy\.ndarray\.tofile"),
        (b"\x80\x02c_codecs\nencode\n(U\x01xU\x04zlibtR.", r"_codecs\.encode"),
        (b"\x80\x02cnumpy\ndtype\n(U\x02u1tR.", r"not read"),
        (b"\x80\x02\x82\x01.", r"not read"),
        (b"\x80\x02U\x01xQ.", r"persistent"),
        (b"", r"not read"),
        (b"\x80\x02}q\x00(U", r"not read"),
    ],
)
def test_no_name_in_a_pickle_is_looked_up(program, message, tmp_path):
    path = tmp_path / "batch"
    path.write_bytes(program)
    with pytest.raises(DataError, match=message):
        unpickle_arrays(path)


def test_arrays_of_objects_are_refused(tmp_path):
    path = tmp_path / "batch"
    for array, dtype in ((np.array([None, "x"], dtype=object), "O8"), (np.arange(3.0), "f8")):
        path.write_bytes(python2_pickle({"data": array}))
        with pytest.raises(DataError, match=rf"dtype '{dtype}', expected bytes"):
            unpickle_arrays(path)


def test_a_cifar_batch_without_images(make):
    small = make("cifar10")
    small.file.write_bytes(python2_pickle({"data": pixels(6, 12), "labels": [1]}))
    small.check_again()
    with pytest.raises(DataError, match=r"data_batch_3: found arrays .*\(6, 12\).*of \(n, 3072\)"):
        small.load()


def test_a_malicious_npz_is_refused(tmp_path, make, monkeypatch):
    mark = tmp_path / "owned"
    file = io.BytesIO()
    np.savez(file, data=np.array([Bomb(mark)], dtype=object))
    small = make("new")
    known = imagenet32.NEW["train"]
    with zipfile.ZipFile(small.file, "w") as archive:
        for published in known:
            archive.writestr(published.name, file.getvalue())
    known[:] = [Published(p.name, md5(file.getvalue())) for p in known]
    with pytest.raises(
        DataError, match=r"train_data_batch_1\.npz in .* has no array 'data'.*allow_pi"
    ):
        small.load()

    path = tmp_path / "own.npz"
    path.write_bytes(file.getvalue())
    with pytest.raises(DataError, match=r"own\.npz cannot be read.*allow_pickle=False"):
        Images(data=path)
    assert not mark.exists()


def test_a_malicious_cache_is_refused(tmp_path, make):
    mark = tmp_path / "owned"
    small = make("old")
    small.load()
    cache = small.root / "imagenet32" / "imagenet32_old-train.npy"
    np.save(cache, np.array([Bomb(mark)], dtype=object), allow_pickle=True)
    record = json.loads(cache.with_suffix(".json").read_text())
    raw, status = cache.read_bytes(), cache.stat()
    record |= {"bytes": len(raw), "mtime_ns": status.st_mtime_ns}
    cache.with_suffix(".json").write_text(
        json.dumps(record | {"sha256": hashlib.sha256(raw).hexdigest()})
    )
    assert same(small.load().test, small.test)
    assert not mark.exists()


# -- ImageNet's decoded files ----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["old", "new"])
def test_the_second_time_the_decoded_file_is_enough(name, make):
    small = make(name)
    first = small.load(holdout=True)
    folder = small.root / "imagenet32"
    decoded = {f"{small.kind.name}-{part}" for part in ("train", "test")}
    for path in folder.iterdir():
        if path.stem not in decoded:
            path.unlink()
    times = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.npy")}
    second = small.load(holdout=True)
    for part in ("train", "validation", "test"):
        assert torch.equal(getattr(first, part), getattr(second, part))
    assert times == {path.name: path.stat().st_mtime_ns for path in folder.glob("*.npy")}

    record = json.loads((folder / f"{small.kind.name}-train.json").read_text())
    raw = (folder / f"{small.kind.name}-train.npy").read_bytes()
    assert record["sha256"] == hashlib.sha256(raw).hexdigest() and record["bytes"] == len(raw)
    assert record["about"]["images"] == small.kind.name
    assert len(record["made_from"]) == (10 if name == "new" else 1)
    if sys.platform == "linux":  # the images are in no memory but the file's
        assert f"{small.kind.name}-train.npy" in Path("/proc/self/maps").read_text()


def test_writing_to_the_images_leaves_the_file_alone(make):
    small = make("new")
    problem = small.load()
    cache = small.root / "imagenet32" / "imagenet32_new-train.npy"
    before = cache.read_bytes()
    problem.train[:] = 7
    del problem
    assert cache.read_bytes() == before


def flip_json(path: Path) -> None:
    path.with_suffix(".json").write_text("{")


def of_another(path: Path) -> None:
    record = json.loads(path.with_suffix(".json").read_text())
    record["about"]["images"] = "imagenet32_new"
    path.with_suffix(".json").write_text(json.dumps(record))


@pytest.mark.parametrize("damage", [flip, truncate, Path.unlink, flip_json, of_another])
def test_a_damaged_decoded_file_is_made_again(damage, make, capsys):
    small = make("old")
    kept = small.load().train.clone()
    cache = small.root / "imagenet32" / "imagenet32_old-train.npy"
    damage(cache)
    assert torch.equal(small.load().train, kept)
    told = "imagenet32_old-train.npy" in capsys.readouterr().err
    assert told == (damage is not Path.unlink)


def test_a_copy_of_a_decoded_file_is_believed_after_a_look(make, monkeypatch):
    small = make("old")
    kept = small.load().train.clone()
    small.file.unlink()
    cache = small.root / "imagenet32" / "imagenet32_old-train.npy"
    os.utime(cache, ns=(1, 1))
    assert torch.equal(small.load().train, kept)
    assert cache.stat().st_mtime_ns != 1  # so that the next look is a short one


@pytest.mark.parametrize("name", ["old", "new"])
def test_the_two_versions_are_told_apart(name, make):
    small = make(name)
    other: type[FileImages] = ImageNet32New if name == "old" else ImageNet32Old
    for _ in range(2):  # by the published files, then by the decoded ones alone
        with pytest.raises(DataError) as caught:
            other(data=small.root)
        message = str(caught.value)
        for word in (other.name, "not comparable", f"--model {small.kind.name}", small.file.stem):
            assert word in message
        small.load()
        small.file.unlink()
        small.file = small.root / "imagenet32" / f"{small.kind.name}-train.npy"


def test_of_several_processes_one_decodes(tmp_path):
    calls, results = [], []

    def slow(sources: list[dict[str, Any]]) -> list[Array]:
        calls.append(1)
        time.sleep(0.2)
        sources.append({"file": "nothing"})
        return [pixels(2, 1, 2, 2), pixels(1, 1, 2, 2)]

    def load() -> None:
        path = tmp_path / "sub" / "images.npy"
        results.append(cached(path, {"images": "few"}, (3, 1, 2, 2), slow))

    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    expected = np.concatenate([pixels(2, 1, 2, 2), pixels(1, 1, 2, 2)])
    assert len(calls) == 1 and len(results) == 4
    assert all(same(result, expected) for result in results)


def test_where_decoded_files_cannot_be_kept(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"images\.npy, where decoded images are kept, cannot be"):
        cached(tmp_path / "file" / "images.npy", {}, (1, 1, 2, 2), lambda _: [pixels(1, 1, 2, 2)])
    with pytest.raises(DataError, match=r"found images uint8 \(1, 3, 2\), expected uint8 \(1, 2,"):
        cached(tmp_path / "images.npy", {}, (1, 1, 2, 2), lambda _: [pixels(1, 1, 3, 2)])
    with pytest.raises(DataError, match=r"images: found 2 images, expected 1"):
        cached(tmp_path / "images.npy", {}, (1, 1, 2, 2), lambda _: [pixels(2, 1, 2, 2)])


# -- images of one's own ---------------------------------------------------------------------------


def write_images(folder: Path, images: Array, suffix: str = ".png") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(images):
        mode = image[0] if len(image) == 1 else image.transpose(1, 2, 0)
        Image.fromarray(mode).save(folder / f"{i:03}{suffix}", lossless=True)


by_order = functools.partial(Images.split_by, None)
"""Own images, split by index, so that one knows which image is where."""


def by_index(images: Array, holdout: bool) -> tuple[Array, Array, Array]:
    index = np.arange(len(images)) % 10
    validation = (index == 8) & holdout
    return images[(index != 0) & ~validation], images[validation], images[index == 0]


def check_parts(problem: ImageProblem, train: Array, validation: Array, test: Array) -> None:
    assert same(problem.train, train) and same(problem.test, test)
    assert same(problem.validation, validation)
    assert problem.event_shape == train.shape[1:] and problem.num_levels == 256


@pytest.mark.parametrize("holdout", [False, True])
@pytest.mark.parametrize(
    ("channels", "suffix"),
    [(1, ".png"), (1, ".bmp"), (3, ".png"), (3, ".PNG"), (3, ".bmp"), (3, ".webp"), (3, ".tiff")],
)
def test_a_folder_of_images(channels, suffix, holdout, tmp_path):
    images = pixels(23, channels, 8, 10)
    write_images(tmp_path / "a", images[:12], suffix)
    write_images(tmp_path / "b" / "deep", images[12:], suffix)
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "a" / "._000.png").write_bytes(b"no image either")
    check_parts(by_order(data=tmp_path, holdout=holdout), *by_index(images, holdout))


def test_jpegs_and_grey_among_colour(tmp_path):
    ramp = np.linspace(0, 255, 16, dtype=np.uint8)
    red = np.zeros((16, 16, 3), np.uint8)
    red[..., 0] = ramp  # brighter to the right
    for i in range(30):
        Image.fromarray(red).save(tmp_path / f"{i:02}.jpg", quality=95, subsampling=0)
    Image.fromarray(np.tile(ramp[:, None], (1, 16))).save(tmp_path / "00.png")  # sorts second
    problem = by_order(data=str(tmp_path))
    assert problem.event_shape == (3, 16, 16)
    grey, red_one = problem.train[0].int(), problem.train[1].int()
    assert same(problem.train[0], np.tile(ramp[None, :, None], (3, 1, 16)))
    assert (grey[:, 15] > grey[:, 0]).all()
    assert red_one[0, :, 15].min() > 240 and red_one[0, :, 0].max() < 15
    assert red_one[2].max() < 40  # blue is not red


def test_transparent_turned_and_palette_images(tmp_path):
    colours = pixels(1, 3, 8, 8)[0].transpose(1, 2, 0)
    alpha = np.full((8, 8, 1), 255, np.uint8)
    alpha[0, 1] = 0
    for i in range(20):
        Image.fromarray(colours).save(tmp_path / f"{i:02}.png")
    Image.fromarray(np.concatenate([colours, alpha], -1)).save(tmp_path / "01.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90° clockwise to see it upright
    Image.fromarray(np.rot90(colours).copy()).save(tmp_path / "02.png", exif=exif)
    palette = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8), "P")
    palette.putpalette([v for i in range(64) for v in (i, 2 * i, 3 * i)])
    palette.save(tmp_path / "03.png")
    train = by_order(data=tmp_path).train  # without the first
    on_white = colours.copy()
    on_white[0, 1] = 255
    assert same(train[0], on_white.transpose(2, 0, 1))
    assert same(train[1], colours.transpose(2, 0, 1))
    values = np.arange(64, dtype=np.uint8).reshape(8, 8)
    assert same(train[2], np.stack([values, 2 * values, 3 * values]))


def test_grey_with_transparency_stays_grey(tmp_path):
    values = pixels(20, 8, 8)
    for i, image in enumerate(values):
        alpha = np.full_like(image, 255)
        alpha[3, 4] = 0
        both = np.stack([image, alpha], -1)
        Image.fromarray(both, "LA").save(tmp_path / f"{i:02}.png")
    values[:, 3, 4] = 255
    problem = by_order(data=tmp_path)
    assert problem.event_shape == (1, 8, 8)
    assert same(problem.test, values[::10, None])


@pytest.mark.parametrize("kind", ["folder", "npz"])
@pytest.mark.parametrize(
    ("validation", "test"), [("validation", "test"), ("val", None), ("valid", None), (None, "test")]
)
def test_parts_by_name(kind, validation, test, tmp_path):
    parts = {"train": pixels(30, 3, 8, 8)}
    if validation is not None:
        parts[validation] = pixels(7, 3, 8, 8, seed=1)
    if test is not None:
        parts[test] = pixels(5, 3, 8, 8, seed=2)
    path = tmp_path / ("parts.npz" if kind == "npz" else "parts")
    if kind == "npz":
        np.savez(path, labels=np.arange(3), **parts)
    else:
        for name, images in parts.items():
            write_images(path / name / "class", images)
    train = parts["train"]
    index = np.arange(30) % 10
    tested = train[index == 0] if test is None else parts["test"]
    rest = index != 0 if test is None else np.ones(30, bool)

    held = by_order(data=path, holdout=True)
    if validation is None:
        check_parts(held, train[rest & (index != 8)], train[index == 8], tested)
    else:
        check_parts(held, train[rest], parts[validation], tested)
    whole = by_order(data=path)
    everything = train[rest]
    if validation is not None:
        everything = np.concatenate([everything, parts[validation]])
    check_parts(whole, everything, train[:0], tested)


def blank(**shapes: tuple[int, ...]) -> dict[str, Array]:
    return {name: np.zeros(shape, np.uint8) for name, shape in shapes.items()}


@pytest.mark.parametrize("layout", ["nhw", "nhwc", "nchw", "nhw1", "n1hw"])
def test_every_layout_of_arrays(layout, tmp_path):
    channels = 3 if layout in ("nhwc", "nchw") else 1
    images = pixels(25, channels, 8, 10)
    array = {"nhw": images[:, 0], "nhwc": images.transpose(0, 2, 3, 1), "nchw": images}.get(layout)
    if array is None:
        array = images if layout == "n1hw" else images.transpose(0, 2, 3, 1)
    np.savez_compressed(tmp_path / "own.npz", whatever=array)
    problem = by_order(data=tmp_path / "own.npz", holdout=True)
    check_parts(problem, *by_index(images, True))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (blank(x=(30, 64)), r"found x uint8 \(30, 64\), expected"),
        (blank(x=(30, 4, 8, 8)), r"found x uint8 \(30, 4, 8, 8\), expected"),
        (blank(x=(30, 3, 8, 3)), r"could be both"),
        (blank(x=(19, 8, 8)), r"has 19 images, expected at least 20"),
        ({}, r"has arrays \(none\); expected train"),
        (blank(train=(30, 8, 8), test=(9, 8, 8, 3)), r"channels: \{'train': 1, 'test': 3\}"),
        (blank(train=(30, 8, 8), test=(9, 8, 9)), r"(?s)own.npz is 8×8.*test in .* 8×9.*e_size N"),
        (blank(train=(30, 8, 8), test=(0, 8, 8)), r"has no images for test"),
        (blank(train=(30, 8, 8), val=(9, 8, 8), valid=(9, 8, 8)), r"has both val and valid"),
    ],
)
def test_arrays_that_are_no_images(arrays, message, tmp_path):
    np.savez(tmp_path / "own.npz", **arrays)
    with pytest.raises(DataError, match=message):
        Images(data=tmp_path / "own.npz")


def test_an_npz_that_is_cut_short(tmp_path):
    path = tmp_path / "own.npz"
    for save, damage in ((np.savez, truncate), (np.savez_compressed, flip)):
        save(path, x=pixels(30, 8, 8))
        damage(path)
        with pytest.raises(DataError, match=r"own\.npz cannot be read"):
            Images(data=path)


def test_images_of_different_sizes(tmp_path):
    write_images(tmp_path / "a", pixels(15, 3, 8, 12))
    write_images(tmp_path / "b", pixels(15, 3, 20, 16))
    pattern = r"(?s)a/000\.png is 8×12 .height × width. and .*b/000\.png 20×16.*--image_size N"
    with pytest.raises(DataError, match=pattern):
        by_order(data=tmp_path)
    problem = by_order(data=tmp_path, image_size=8)
    assert problem.event_shape == (3, 8, 8)
    # 8×12 is only cut: columns 2 to 9, every row
    assert same(problem.train[0], pixels(15, 3, 8, 12)[1, :, :, 2:10])


@pytest.mark.parametrize("kind", ["folder", "npz"])
def test_images_are_cut_square_and_scaled_with_antialiasing(kind, tmp_path):
    height, width = 32, 48
    row, column = np.mgrid[:height, :width]
    checker = ((row + column) % 2 * 255).astype(np.uint8)  # grey, from afar
    checker[:, : width // 2] //= 2  # darker on the left
    images = np.repeat(checker[None, None], 20, 0)
    if kind == "folder":
        write_images(tmp_path / "own", images)
        problem = Images(data=tmp_path / "own", image_size=8)
    else:
        np.savez(tmp_path / "own.npz", images[:, 0])
        problem = Images(data=tmp_path / "own.npz", image_size=8)
    assert problem.event_shape == (1, 8, 8)
    x = problem.test[0, 0].int()
    inside = x[1:-1, 1:3], x[1:-1, 5:7]
    assert (inside[0] - 64).abs().max() <= 4 and (inside[1] - 128).abs().max() <= 4


def idx(images: Array) -> bytes:
    """An IDX file of unsigned bytes."""
    return struct.pack(f">4B{images.ndim}i", 0, 0, 8, images.ndim, *images.shape) + images.tobytes()


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("axes", [3, 4])
def test_idx_files_of_ones_own(packed, axes, tmp_path):
    train, test = pixels(30, 3, 8, 10), pixels(25, 3, 8, 10, seed=1)
    if axes == 3:
        train, test = train[:, :1], test[:, :1]

    def write(name: str, images: Array) -> Path:
        content = idx(images[:, 0] if axes == 3 else images)
        path = tmp_path / (f"{name}.gz" if packed else name)
        path.write_bytes(gzip.compress(content) if packed else content)
        return path

    one = write(f"own.idx{axes}-ubyte", train)
    problem = by_order(data=one, holdout=True)
    index = np.arange(30) % 10
    check_parts(problem, train[(index != 0) & (index != 8)], train[index == 8], train[index == 0])
    one.unlink()
    write(f"emnist-letters-train-images-idx{axes}-ubyte", train)
    write(f"t10k-images-idx{axes}-ubyte", test)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(np.zeros(30, np.uint8)))
    problem = by_order(data=tmp_path)
    check_parts(problem, train, train[:0], test)
    assert problem.event_shape == train.shape[1:]


def test_of_idx_files_that_are_there_packed_too_one_is_read(tmp_path):
    images = pixels(30, 1, 8, 8)
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx(images[:, 0]))
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(b"torn")
    check_parts(by_order(data=tmp_path), images[np.arange(30) % 10 != 0], images[:0], images[::10])
    (tmp_path / "more-train-idx3-ubyte").write_bytes(idx(images[:, 0]))
    with pytest.raises(DataError, match=r"has both more-train.* and train-images.* for train"):
        by_order(data=tmp_path)


def test_folders_that_cannot_be_used(tmp_path):
    def folder(name: str) -> Callable[[], Images]:
        return lambda: Images(data=tmp_path / name)

    def with_bad(content: Callable[[Path], object]) -> Callable[[], Images]:
        path = tmp_path / "broken" / "007.png"

        def call() -> Images:
            content(path)
            return Images(data=path.parent)

        return call

    images = pixels(30, 3, 8, 8)
    for name in ("parts/train", "parts/other", "tested/test", "broken"):
        write_images(tmp_path / name, images)
    sixteen_bits = Image.fromarray(np.zeros((8, 8), np.uint16))
    refused(
        (ValueError, DataError),
        (lambda: Images(data=tmp_path, image_size=0), r"--image_size is 0"),
        (folder("parts"), r"has the parts train, but .*other/000\.png is in none"),
        (folder("tested"), r"has test but no train"),
        (with_bad(truncate), r"007\.png is no image that can be read"),
        (with_bad(lambda path: path.write_bytes(b"no")), r"007\.png is no image that can be read"),
        (with_bad(sixteen_bits.save), r"007\.png has pixels of mode 'I;16', expected 8 bits"),
    )


def test_links_to_folders_are_followed_and_loops_are_not(tmp_path):
    images = pixels(20, 3, 8, 8)
    write_images(tmp_path / "elsewhere", images)
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "loop").symlink_to(tmp_path / "own")
    check_parts(by_order(data=tmp_path / "own"), *by_index(images, False))
