"""Files and options that mean harm: every reader × what a file may be, and programs × numbers.

A file may also claim more than it has, which is not believed before memory is taken, or be of
another format than its name says, of which no other program is started. All end in words, and soon:
pipes that nobody writes to, texts nested 100,000 times, numbers of 400 digits, aliases of YAML that
unfold without end, and configurations of a billion layers.
"""

from __future__ import annotations

import io
import os
import signal
import struct
import subprocess
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from PIL import Image
from torch import nn

from inference.drawing.observations import chosen_measurement, read
from inference.drawing.pieces import read_pieces
from inference.folders.checkpoints import load_checkpoint
from inference.folders.config import load_yaml, read_settings
from inference.folders.records import read_lines, read_sealed
from inference.machine.processes import start
from inference.posteriors.hierarchy import read_units
from inference.posteriors.observations import read_observation
from inference.settings.names import find
from inference.simulators.linear_gaussian import LINEAR_GAUSSIAN
from models.images import FORMATS, Images, read_pixels
from models.tabular import read_table
from pyro_mdm import CLD, VPSDE, Denoiser, DiffusionModel, pretrained
from pyro_mdm.imported import from_pipeline
from pyro_mdm.networks import MLP, UNet
from pyro_mdm.posteriors.stored import HEADER, read_draws
from pyro_mdm.pretrained import TENSORS, PretrainedError
from pyro_mdm.support.checks import DataError
from pyro_mdm.support.files import DEPTH, json_of, regular
from pyro_mdm.support.saved import peek, read_saved
from pyro_mdm.tables import Table
from pyro_mdm.tables.rows import TableRows
from pyro_mdm.training import Trainer
from pyro_mdm.varying import TimeVaryingLearnedDiffusion
from tests.programs.running import run_program
from tests.saved_files import rewrite

SECONDS = 30
"""The processor's time after which a reader hangs; they take a hundredth of a second."""
DIGITS = "1" * 400


@pytest.fixture(autouse=True)
def no_hang() -> Iterator[None]:
    def end(*_: Any) -> None:
        pytest.fail("it hangs")

    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(4 * SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def trained(path: Path) -> object:
    weights = nn.Parameter(torch.zeros(2))
    return Trainer([weights], steps=2, checkpoint=path)


def measured(path: Path) -> object:
    return read(path, chosen_measurement("denoise", None, None), (1, 8, 8))


READERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "table": (read_table, "a.csv"),
    "table of parquet": (read_table, "a.parquet"),
    "table of a run": (read_table, "a.json"),
    "pieces": (lambda path: [*read_pieces(str(path), 8)], "a.csv"),
    "pieces of parquet": (lambda path: [*read_pieces(str(path), 8)], "a.parquet"),
    "observation": (lambda path: read_observation(path, LINEAR_GAUSSIAN), "a.json"),
    "observation in a table": (lambda path: read_observation(path, LINEAR_GAUSSIAN), "a.csv"),
    "units": (lambda path: read_units(path, ("x",)), "a.json"),
    "units in a table": (lambda path: read_units(path, ("x",)), "a.csv"),
    "settings": (lambda path: read_settings(path.parent), "config.yaml"),
    "record": (read_sealed, "results.json"),
    "checkpoint": (load_checkpoint, "step-00000001.safetensors"),
    "model": (lambda path: DiffusionModel.from_pretrained(path.parent), TENSORS),
    "posterior": (lambda path: read_saved(path, "a posterior"), "posterior.safetensors"),
    "draws": (lambda path: read_draws(path.parent, ["x"]), HEADER),
    "pipeline": (lambda path: from_pipeline(path.parent, torch.zeros(9, 2)), "model_index.json"),
    "picture": (read_pixels, "a.png"),
    "images": (lambda path: Images(data=path), "a.npz"),
    "measurement": (measured, "a.npy"),
    "code": (lambda path: find("guide", f"{path}:G"), "mine.py"),
    "trainer": (trained, "checkpoint.pt"),
}
CONTENTS: dict[str, bytes | None] = {
    "a pipe": None,
    "nothing": b"",
    "deep lists": b"[" * 10**5,
    "deep objects": b'{"a":' * 10**5 + b"1" + b"}" * 10**5,
    "deep and whole": b"[" * 900 + b"]" * 900,
    "a number of 400 digits": b'{"x": [' + DIGITS.encode() + b"]}",
    "a number of 5,000 digits": b'{"x": ' + b"1" * 5000 + b"}",
    "an exponent of 400": b'{"x": [1e400]}',
    "infinity": b'{"x": [Infinity, Infinity]}',
    "no UTF-8": b"x,y\n\xff,1\n",
    "zeros": bytes(100),
    "a list": b"[]",
    "a ragged table": b"x,y\n1,2\n1,2,3\n",
    "an infinite column": b"x\ninf\n" + DIGITS.encode() + b"\n",
}
WORDS = (RuntimeError, ValueError, TypeError, LookupError, OSError, SyntaxError)
"""The kinds of errors that programs print; of them RecursionError is a RuntimeError."""
ALONE = ("code", "trainer")
"""Readers of pipes alone: code of the user's raises what it does, and torch explains the rest."""
READ = {("record", "infinity"), ("record", "a list")}
READ |= {("settings", "infinity"), ("settings", "an exponent of 400")}
"""What is read beside tables of text: entries of other names are for whoever looks for them."""
CASES = [
    (reader, content)
    for reader in READERS
    for content in CONTENTS
    if reader not in ALONE or content == "a pipe"
]


@pytest.mark.parametrize(("reader", "content"), CASES)
def test_readers_end_in_words(reader: str, content: str, tmp_path: Path) -> None:
    function, name = READERS[reader]
    data = CONTENTS[content]
    (tmp_path / "folder").mkdir()
    path = tmp_path / "folder" / name
    if data is None:
        os.mkfifo(path)
    else:
        path.write_bytes(data)
    try:
        function(path)
    except WORDS as error:
        assert not isinstance(error, RecursionError), repr(error)
        assert len(str(error)) > 10, repr(error)
    else:
        assert name.endswith(".csv") or (reader, content) in READ, "it was read"


def test_what_is_regular(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("file")
    assert regular(tmp_path / "link") == tmp_path / "link"
    os.mkfifo(pipe := tmp_path / "pipe")
    for path, kind in ((tmp_path, "a folder"), (Path(os.devnull), "a device"), (pipe, "a pipe")):
        with pytest.raises(OSError, match=f"{kind}, expected a regular file; copy it to one"):
            regular(path)


# -- files that are not what they say --------------------------------------------------------------

HUGE = 10**7
EPS = (
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n0 0 8 8 rectfill\nshowpage\n"
)
LATIN = "na\xefve,b\n1,2\n".encode("latin-1") * 30


def npy(shape: tuple[int, ...], numbers: int, kind: str = "|u1") -> bytes:
    """An .npy file that claims a shape, and has so many bytes."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        file, {"descr": kind, "fortran_order": False, "shape": shape}
    )
    return file.getvalue() + bytes(numbers)


def npz(content: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("train.npy", content)
    return file.getvalue()


def picture(side: int, mode: str = "1", form: str = "png") -> bytes:
    file = io.BytesIO()
    Image.new(mode, (side, side)).save(file, form)
    return file.getvalue()


def png_that_claims(side: int) -> bytes:
    """A PNG of eight pixels a side whose header says another, with a checksum that is right."""
    content = bytearray(picture(8))
    content[16:24] = struct.pack(">II", side, side)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    return bytes(content)


def images(path: Path) -> object:
    return Images(data=path)


def pieces(path: Path) -> object:
    return list(read_pieces(str(path), 16))


CLAIMS: dict[str, tuple[Callable[[Path], object], str, bytes, str]] = {
    # more than there is
    "npz": (images, "a.npz", npz(npy((HUGE, 28, 28), 30_000)), "cannot be read as arrays"),
    "npz of nothing": (images, "a.npz", npz(npy((2**40, 2**20), 0)), "cannot be read as arrays"),
    "npy": (measured, "a.npy", npy((HUGE, 10**5), 64, "<f8"), "cannot be read as an array"),
    "picture": (read_pixels, "a.png", png_that_claims(8193), "8,193×8,193 pixels, expected at"),
    "picture of one bit": (read_pixels, "a.png", picture(8193), "expected at most 67,108,864"),
    # another format
    "EPS as a picture": (read_pixels, "a.png", EPS, "a.png is no image that can be read"),
    "EPS as a measurement": (measured, "a.jpg", EPS, "a.jpg is no image that can be read"),
    "text as a picture": (read_pixels, "a.jpg", LATIN, "is no image that can be read"),
    "ICO as a picture": (read_pixels, "a.bmp", picture(16, "RGB", "ico"), "is no image that"),
    "picture as npz": (images, "a.npz", picture(8), "cannot be read as arrays"),
    "text as npz": (images, "a.npz", npz(LATIN), "expected uint8"),
    "picture as npy": (measured, "a.npy", picture(8), "cannot be read as an array"),
    "picture as CSV": (read_table, "a.csv", picture(8), "a.csv"),
    "picture as pieces": (pieces, "a.csv", picture(8), "a.csv"),
    "text as parquet": (read_table, "a.parquet", LATIN, "cannot be read as a table"),
    "text as pieces of parquet": (pieces, "a.parquet", LATIN, "cannot be read as a table"),
    # not UTF-8
    "CSV": (read_table, "a.csv", LATIN, "cannot be read as a table"),
    "pieces of CSV": (pieces, "a.csv", LATIN, "cannot be read as a table"),
    "table of a run": (read_table, "a.json", LATIN, "cannot be read as a table"),
}


@pytest.mark.quick
@pytest.mark.parametrize("case", CLAIMS)
def test_a_file_that_is_not_what_it_says_is_named(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ghostscript is started by PIL for an EPS, whatever its name."""
    reader, name, content, message = CLAIMS[case]
    (tmp_path / name).write_bytes(content)
    monkeypatch.setattr(subprocess, "check_call", lambda *_, **__: pytest.fail("it runs a program"))
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("it runs a program"))
    with pytest.raises(DataError, match=message) as caught:
        reader(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)


@pytest.mark.quick
@pytest.mark.parametrize("form", FORMATS)
def test_pictures_of_all_formats_are_read(form: str, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(picture(8, "L", form))  # whatever the suffix
    assert read_pixels(tmp_path / "a.png").shape[1:] == (8, 8)


@pytest.mark.quick
def test_whole_arrays_are_read(tmp_path: Path) -> None:
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "a.npz", train=np.zeros((30, 8, 8), np.uint8))
        assert len(Images(data=tmp_path / "a.npz").train) == 27


def test_settings_that_are_not_utf_8_are_named(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_bytes(LATIN)
    with pytest.raises(RuntimeError, match=r"config.yaml cannot be read as YAML"):
        read_settings(tmp_path)


# -- texts -----------------------------------------------------------------------------------------

YAML = {
    "deep": "[" * 10**5,
    "deep blocks": "- " * 20_000 + "1",
    "a list within itself": "&a [*a]",
    "a number of 400 digits": f"x: {DIGITS}",
    "a number of 5,000 digits": "x: " + "1" * 5000,
    "a number in base 60": "x: " + "1:" * 400 + "1",
    "no day": "x: 2024-13-45",
    "code": "x: !!python/object/apply:os.system [ls]",
    "aliases": "\n".join(
        [
            "a0: &a0 [x, x]",
            *(f"a{i}: &a{i} [{', '.join(9 * [f'*a{i - 1}'])}]" for i in range(1, 30)),
        ]
    ),
}


@pytest.mark.parametrize("text", YAML.values(), ids=YAML)
def test_yaml_ends_in_words(text: str) -> None:
    with pytest.raises(yaml.YAMLError):
        load_yaml(text)


def test_json_is_read_as_far_as_programs_follow() -> None:
    assert json_of(b"[" * DEPTH + b"]" * DEPTH) is not None
    assert json_of('{"a": [1, -2, 1e3, 18446744073709551615]}') == {"a": [1, -2, 1e3, 2**64 - 1]}
    assert json_of("1" + "0" * 30) == 1e30 and read_lines(Path("none"), set()) == []


# -- tables ----------------------------------------------------------------------------------------

N = 60
BASE = np.random.default_rng(0).normal(size=N)
COLUMNS: dict[str, Any] = {
    "2**62": 2**62 + 7 * np.arange(N),
    "few of 2**62": 2**62 + np.arange(N) % 3,
    "unsigned": np.uint64(2**64 - 1) - np.arange(N, dtype=np.uint64),
    "Python's": np.array([10**30 + k for k in range(N)], dtype=object),
    "400 digits": np.array([10**400 + k for k in range(N)], dtype=object),
    "1e-300": BASE * 1e-300,
    "subnormal": BASE * 1e-320,
    "1e300": BASE * 1e300,
    "one of 1e300": np.append(BASE[1:], 1e300),
    "infinity": np.append(BASE[1:], np.inf),
    "complex": BASE + 1j,
}


@pytest.mark.parametrize("values", COLUMNS.values(), ids=COLUMNS)
@pytest.mark.parametrize("kind", [None, "continuous", "ordinal", "mixed", "integer", "rounded"])
def test_a_column_that_float64_cannot_compute_with_is_refused(
    values: Any, kind: str | None
) -> None:
    frame = pd.DataFrame({"x": values, "y": BASE})
    with pytest.raises(DataError, match="column 'x' "):
        TableRows(frame, columns=kind and f"x={kind}")
    if kind is None:
        with pytest.raises(DataError, match="column 'x' "):
            Table(steps=1).fit(frame)
        assert [c.name for c in TableRows(frame, columns="x=drop").columns] == ["y"]


# -- models ----------------------------------------------------------------------------------------

MODELS: dict[str, Callable[[], DiffusionModel]] = {
    "MLP": lambda: DiffusionModel(CLD(), Denoiser(MLP(2, hidden=4, depth=1)), event_shape=(2,)),
    "UNet": lambda: DiffusionModel(
        VPSDE(), Denoiser(UNet(1, base=4, groups=2, multipliers=(1,))), event_shape=(1, 4, 4)
    ),
    "varying": lambda: DiffusionModel(
        TimeVaryingLearnedDiffusion(2, cells=8), Denoiser(MLP(2, hidden=4)), event_shape=(2,)
    ),
}


def sizes(node: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The places of all whole numbers in a configuration."""
    if type(node) is int:
        yield place
    for key, inner in (
        node.items()
        if isinstance(node, dict)
        else enumerate(node)
        if isinstance(node, list)
        else ()
    ):
        yield from sizes(inner, (*place, key))


@pytest.mark.parametrize("value", [10**6, 10**9, 2**62, -(2**62)])
@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_sizes_of_a_configuration_take_neither_time_nor_memory(
    make: Callable[[], DiffusionModel], value: int, tmp_path: Path
) -> None:
    make().save_pretrained(tmp_path)
    path = tmp_path / TENSORS
    whole = path.read_bytes()
    places = list(sizes(peek(path)["model"]))
    assert len(places) > 3
    said = []
    for place in places:

        def change(content: Any, tensors: object, place: tuple[Any, ...] = place) -> None:
            node = content["model"]
            for key in place[:-1]:
                node = node[key]
            node[place[-1]] = value

        path.write_bytes(whole)
        rewrite(path, change)
        try:
            DiffusionModel.from_pretrained(tmp_path)
        except PretrainedError as error:
            said.append(str(error))
    assert not any("frame #" in message for message in said)
    assert value != 10**9 or any("far larger than what" in message for message in said)
    path.write_bytes(whole)
    DiffusionModel.from_pretrained(tmp_path)


def test_so_many_layers_as_take_too_much_together_are_refused() -> None:
    with (
        pytest.raises(PretrainedError, match="at most 1,000 entries"),
        pretrained._AtMost(1000, 100),
    ):
        for _ in range(11):
            torch.empty(10, 10)
    with pytest.raises(PretrainedError, match="at most 99 entries"), pretrained._AtMost(99, 100):
        torch.eye(10)
    generator = torch.Generator().manual_seed(0)
    with pretrained._AtMost(1000, 100) as most:
        makers = (
            *(
                torch.zeros(2, 3),
                torch.linspace(0, 1, 6),
                torch.arange(6),
                torch.zeros(6).new_ones(6),
            ),
            *(torch.randn(6, generator=generator), torch.randperm(6, generator=generator)),
            *(torch.tril_indices(2, 2), torch.zeros_like(torch.empty(6)), torch.full((6,), 1.0)),
        )
    assert most.left == 1000 - sum(t.numel() for t in makers) - 12  # two others were made


# -- options and the environment -------------------------------------------------------------------

OPTIONS = ["steps", "seed", "learning_rate", "batch_size", "min_log_snr", "draws", "num_samples"]


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize(
    "value", [DIGITS, "-" + DIGITS, "1e999", "-1e999", "inf", "nan", str(2**64)]
)
def test_numbers_that_nothing_holds_are_no_options(option: str, value: str, tmp_path: Path) -> None:
    if value == str(2**64) and option in ("learning_rate", "min_log_snr"):
        pytest.skip("a float holds it")
    with pytest.raises(SystemExit) as caught:
        run_program(
            *("train", "--model", "toy", "--guide", "vpsde", "--run", tmp_path / "run"),
            *(f"--{option}={value}", "--figures", "false"),
        )
    assert caught.value.code == 2 and not (tmp_path / "run").exists()


def test_a_pipe_of_options_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.yaml")
    with pytest.raises(SystemExit) as caught:
        run_program("train", "--config", tmp_path / "a.yaml")
    assert caught.value.code == 2


@pytest.mark.parametrize("value", ["0", "-1", "two", "1.5", "1" * 30, " "])
@pytest.mark.parametrize("name", ["WORLD_SIZE", "LOCAL_WORLD_SIZE"])
def test_a_number_of_processes_that_is_none_is_refused(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=f"{name} is '{value}', expected a"):
        start("cpu")


@pytest.mark.parametrize("value", ["1", "-1", "x", "9" * 30])
def test_a_rank_beyond_the_processes_is_refused(
    value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", value)
    with pytest.raises(ValueError, match=f"RANK is '{value}', expected a number from 0 to 0"):
        start("cpu")


@pytest.mark.parametrize("suffix", [".json", ".csv"])
@pytest.mark.parametrize("value", ["1e999", "-1e999", "1e39", DIGITS])
def test_an_infinite_observation_is_refused_at_the_door(
    value: str, suffix: str, tmp_path: Path
) -> None:
    """Before anything is trained; 1e39 is infinite in float32."""
    path = tmp_path / f"a{suffix}"
    path.write_text(f'{{"x": [{value}, 1]}}' if suffix == ".json" else f"x\n{value}\n1\n")
    with pytest.raises(SystemExit) as caught:
        run_program("posterior", "--simulator", "linear_gaussian", "--data", path)
    assert "--data" in str(caught.value.code)
