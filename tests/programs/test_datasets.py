"""Data sets read from files: each from small files of the very same formats, written here."""

from __future__ import annotations

import functools
import gzip
import hashlib
import io
import pickle
import shlex
import shutil
import struct
import sys
import tarfile
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
    official,
)
from models.base import FileImages, ImageProblem
from models.official import Official
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
    get: str  # in messages: how to get the file

    def load(self, **options: Any) -> FileImages:
        return self.kind(data=self.root, **options)


def small_idx(
    kind: type[Official], root: Path, patch: pytest.MonkeyPatch, *, debian: bool = False
) -> Small:
    """MNIST or Fashion-MNIST; ``debian``: the latter as Debian has it, packed elsewhere."""
    train, test = pixels(30, 1, 28, 28), pixels(7, 1, 28, 28)
    raw, packed = root / kind.__name__ / "raw", root / "usr"
    for name, images in (("train", train), ("t10k", test)):
        write_idx(raw / f"{name}-images-idx3-ubyte", images[:, 0])
        write_idx(raw / f"{name}-labels-idx1-ubyte", labels_of(images))
    patch.setattr(kind, "held_out", 4)
    patch.setattr(official, "DEBIAN", packed)
    file = raw / "train-images-idx3-ubyte"
    if debian:
        packed.mkdir()
        for path in raw.iterdir():
            (packed / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
        shutil.rmtree(raw.parent)
        file = packed / f"{file.name}.gz"
    return Small(kind, root, train, test, [26, 27, 28, 29], file, fetch_of(kind, root))


def fetch_of(kind: type[Official], root: Path) -> str:
    name = kind.__name__
    program = f"from torchvision.datasets import {name} as kind; kind('{root}', download=True)"
    return f"python -c {shlex.quote(program)}"


def small_cifar10(root: Path, patch: pytest.MonkeyPatch, num_test: int = 7) -> Small:
    train, test = pixels(30, 3, 32, 32), pixels(num_test, 3, 32, 32)
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    names = [f"data_batch_{k}" for k in range(1, 6)]
    for k, name in enumerate(names):
        batch = cifar_batch(train[6 * k : 6 * k + 6], k + 1)
        (folder / name).write_bytes(python2_pickle(batch))
    (folder / "test_batch").write_bytes(python2_pickle(cifar_batch(test, 1)))

    meta = folder / "batches.meta"
    meta.write_bytes(python2_pickle({"label_names": ["a", "b", "c"]}))

    def listed(names: list[str]) -> list[list[str]]:
        return [[name, md5((folder / name).read_bytes())] for name in names]

    published = torchvision.datasets.CIFAR10
    patch.setattr(published, "train_list", listed(names))
    patch.setattr(published, "test_list", listed(["test_batch"]))
    patch.setattr(published, "meta", published.meta | {"md5": md5(meta.read_bytes())})
    patch.setattr(CIFAR10, "held_out", 4)
    file = folder / "data_batch_3"
    return Small(CIFAR10, root, train, test, [26, 27, 28, 29], file, fetch_of(CIFAR10, root))


def small_old(root: Path, patch: pytest.MonkeyPatch) -> Small:
    train, test = pixels(30, 3, 32, 32), pixels(7, 3, 32, 32)
    folder = root / "imagenet32"
    for part, images in (("train", train), ("valid", test)):
        files = {f"{i:07}.png": png(image) for i, image in enumerate(images)}
        shuffled = {name: files[name] for name in sorted(files, key=lambda n: md5(n.encode()))}
        write_tar(folder / f"{part}_32x32.tar", f"{part}_32x32", shuffled)

    patch.setattr(ImageNet32Old, "sizes", {"train": 30, "test": 7})
    patch.setattr(ImageNet32Old, "held_out", 4)
    file = folder / "train_32x32.tar"
    get = (
        "https://academictorrents.com/details/bf62f5051ef878b9c357e6221e879629a9b4b172 and put "
        f"train_32x32.tar into {folder}"
    )
    held = spread(30, 4).tolist()
    return Small(ImageNet32Old, root, train, test, held, file, get)


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
    patch.setattr(ImageNet32New, "sizes", {"train": 30, "test": num_test})
    patch.setattr(ImageNet32New, "held_out", 4)
    get = (
        f"curl -fL --create-dirs -o '{folder}/Imagenet32_train_npz.zip' "
        "https://image-net.org/data/downsample/Imagenet32_train_npz.zip"
    )
    held = spread(30, 4).tolist()
    file = folder / "Imagenet32_train_npz.zip"
    return Small(ImageNet32New, root, train, test, held, file, get)


SOURCES: dict[str, Callable[[Path, pytest.MonkeyPatch], Small]] = {
    "mnist": functools.partial(small_idx, MNIST),
    "fashion": functools.partial(small_idx, FashionMNIST),
    "fashion, Debian": functools.partial(small_idx, FashionMNIST, debian=True),
    "cifar10": small_cifar10,
    "old": small_old,
    "new": small_new,
}


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
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("damage", [flip, truncate, Path.unlink])
@pytest.mark.parametrize("name", [name for name in SOURCES if name != "fashion, Debian"])
def test_what_cannot_be_read_is_told_with_what_to_run(name, damage, make):
    small = make(name)
    if name in ("mnist", "fashion") and damage is flip:
        return  # a pixel, and nobody has a checksum of the unpacked files
    damage(small.file)
    with pytest.raises(DataError) as caught:
        small.load()
    assert small.get in str(caught.value)
    if small.root.name in str(caught.value):  # nothing half done is left
        assert not list(small.root.rglob("*.npy")) and not list(small.root.rglob(".*"))


def test_a_damaged_file_of_debian_is_named_and_leaves_nothing(make):
    small = make("fashion, Debian")
    truncate(small.file)
    with pytest.raises(DataError, match="fetch it"):
        small.load()
    assert not list((small.root / "FashionMNIST" / "raw").iterdir())


def test_fashion_mnist_of_the_data_folder_comes_before_debians(make):
    small = make("fashion, Debian")
    small.load()
    shutil.rmtree(small.file.parent)
    assert same(small.load().train, small.train)


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


@pytest.mark.parametrize("count", [29, 31])
@pytest.mark.parametrize("name", ["old", "new"])
def test_another_number_of_images_is_refused(name, count, make, monkeypatch):
    small = make(name)
    monkeypatch.setattr(small.kind, "sizes", {"train": count, "test": 7})
    with pytest.raises(DataError, match=rf"has 30 images, expected {count}"):
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
        with pytest.raises(DataError, match=rf"train_32x32.tar .*0000011.png {message}"):
            small.load()


def test_the_published_numbers_are_those_of_the_publishers():
    assert (MNIST.held_out, CIFAR10.held_out, ImageNet32Old.held_out) == (5_000, 5_000, 10_000)
    assert ImageNet32Old.sizes == {"train": 1_281_149, "test": 49_999}
    assert ImageNet32New.sizes == {"train": 1_281_167, "test": 50_000}


# -- nothing that is read runs code ----------------------------------------------------------------


def test_pickles_are_not_read_before_their_checksums(tmp_path, make):
    mark, small = tmp_path / "owned", make("cifar10")
    small.file.write_bytes(pickle.dumps(Bomb(mark), protocol=2))
    with pytest.raises(DataError, match="reads no CIFAR10"):
        small.load()
    assert not mark.exists()


def test_arrays_with_pickles_are_refused(tmp_path, make):
    mark, small = tmp_path / "owned", make("new")
    bomb = np.array([Bomb(mark)], dtype=object)
    file = io.BytesIO()
    np.savez(file, data=bomb)
    with zipfile.ZipFile(small.file, "w") as archive:
        archive.writestr("train_data_batch_1.npz", file.getvalue())
    with pytest.raises(DataError, match=r"train_npz\.zip cannot be decoded.*allow_pi"):
        small.load()
    np.save(small.root / "imagenet32" / "imagenet32_new-train.npy", bomb, allow_pickle=True)
    with pytest.raises(DataError, match=r"new-train\.npy cannot be used.*Delete the file"):
        small.load()
    path = tmp_path / "own.npz"
    path.write_bytes(file.getvalue())
    with pytest.raises(DataError, match=r"own\.npz cannot be read.*allow_pickle=False"):
        Images(data=path)
    assert not mark.exists()


# -- ImageNet's decoded files ----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["old", "new"])
def test_the_second_time_the_decoded_file_is_enough(name, make):
    small = make(name)
    first = small.load(holdout=True)
    folder = small.root / "imagenet32"
    for path in folder.iterdir():
        if path.suffix != ".npy":
            path.unlink()
    before = (folder / f"{small.kind.name}-train.npy").read_bytes()
    second = small.load(holdout=True)
    for part in ("train", "validation", "test"):
        assert torch.equal(getattr(first, part), getattr(second, part))
    if sys.platform == "linux":  # the images are in no memory but the file's
        assert f"{small.kind.name}-train.npy" in Path("/proc/self/maps").read_text()
    second.train[:] = 7  # in memory alone
    assert (folder / f"{small.kind.name}-train.npy").read_bytes() == before


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
