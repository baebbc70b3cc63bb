"""Every kind of saved thing × damage and × kills: it is refused in words, or it is one that was
saved, whole."""

from __future__ import annotations

import builtins
import contextlib
import functools
import hashlib
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from inference.folders import checkpoints as ck
from inference.folders.config import PENDING, read_settings
from inference.folders.output import check_out
from inference.folders.records import write_json
from inference.folders.runs import CONTENT, Run, RunError
from inference.machine import environment
from pyro_mdm import VPSDE, Denoiser, DiffusionModel
from pyro_mdm.networks import MLP
from pyro_mdm.posteriors import AmortizedLikelihood, AmortizedPosterior, read_draws, simulate
from pyro_mdm.posteriors.members import LikelihoodMembers
from pyro_mdm.pretrained import PretrainedError, load_state
from pyro_mdm.support import files
from pyro_mdm.support.files import replacing
from pyro_mdm.tables import Table
from pyro_mdm.training import Trainer
from tests.programs.running import checkpoint
from tests.programs.test_reliability import end, start
from tests.saved_files import kind_of

REFUSED = (PretrainedError, ck.CheckpointError)


def program() -> None:
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    pyro.sample("x", dist.Normal(a, 1.0))


def digest(tensors: Mapping[str, Tensor], *rest: object) -> str:
    """A digest of tensors by name, and of what has a text."""
    content = hashlib.sha256(repr(rest).encode())
    for name in sorted(tensors):
        content.update(name.encode() + tensors[name].detach().contiguous().numpy().tobytes())
    return content.hexdigest()


class Kind(NamedTuple):
    save: Callable[[Path, int], object]
    """Save the thing of a number in a folder, over one that is there."""
    read: Callable[[Path], str]
    """A digest of what is in the folder."""


def model_of(seed: int) -> DiffusionModel:
    torch.manual_seed(seed)
    denoiser = Denoiser(MLP(2, hidden=4, depth=1), torch.zeros(2), torch.ones(2))
    return DiffusionModel(VPSDE(max_log_snr=9.0 + seed / 8), denoiser)


def read_model(folder: Path) -> str:
    model = DiffusionModel.from_pretrained(folder)
    return digest(model.state_dict(), model.diffusion.max_log_snr)


@functools.cache
def learned(kind: Any, seed: int) -> Any:
    draws = simulate(program, 40, seed=seed, vectorized=True)
    torch.manual_seed(seed)
    return kind(program, ["a"], ["x"], draws)


def read_posterior(folder: Path) -> str:
    posterior = AmortizedPosterior.from_pretrained(folder, program)
    return digest(posterior.state_dict(), posterior.model.diffusion.max_log_snr)


def save_members(folder: Path, seed: int) -> None:
    """Two members of an even number, and three of an odd one."""
    members = [learned(AmortizedLikelihood, 10 * seed + place) for place in range(2 + seed % 2)]
    LikelihoodMembers(members).save_pretrained(folder)


def save_table(folder: Path, seed: int) -> None:
    table = TABLES.get(seed)
    if table is None:
        torch.manual_seed(seed)
        values = torch.randn(30, 2).double().round(decimals=3)
        frame = pd.DataFrame({"a": values[:, 0].tolist(), "b": values[:, 1].tolist()})
        table = TABLES[seed] = Table(steps=1).fit(frame)
    table.save_pretrained(folder)


TABLES: dict[int, Table] = {}


def read_table(folder: Path) -> str:
    table = Table.from_pretrained(folder)
    return digest(table.model.state_dict() | {"rows": table.rows.train}, table.names)


def trainer_of(folder: Path, seed: int) -> Trainer:
    torch.manual_seed(seed)
    return Trainer(nn.Linear(2, 2), steps=9, checkpoint=folder / "state")


def save_trainer(folder: Path, seed: int) -> None:
    (folder / "state").unlink(missing_ok=True) if seed == 1 else None
    trainer = trainer_of(folder, seed)
    trainer.step(sum(weight.square().sum() for weight in trainer.weights) * seed)
    trainer.look(float(-seed))


def read_trainer(folder: Path) -> str:
    if not (folder / "state").exists():
        raise PretrainedError("nothing is there, and training begins anew")
    trainer = trainer_of(folder, 0)
    return digest({str(i): w for i, w in enumerate(trainer.weights)}, trainer.best)


def read_checkpoint(folder: Path) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it goes back to an earlier one
        latest = ck.latest_checkpoint(folder)
    return digest(latest.tensors, latest.step, latest.state)


KINDS = {
    "model": Kind(lambda folder, seed: model_of(seed).save_pretrained(folder), read_model),
    "posterior": Kind(
        lambda folder, seed: learned(AmortizedPosterior, seed).save_pretrained(folder),
        read_posterior,
    ),
    "likelihood": Kind(
        lambda folder, seed: learned(AmortizedLikelihood, seed).save_pretrained(folder),
        lambda folder: digest(
            AmortizedLikelihood.from_pretrained(folder, program).state_dict(),
        ),
    ),
    "members": Kind(
        save_members,
        lambda folder: digest(LikelihoodMembers.from_pretrained(folder, program).state_dict()),
    ),
    "table": Kind(save_table, read_table),
    "trainer": Kind(save_trainer, read_trainer),
    "checkpoint": Kind(
        lambda folder, seed: ck.save_checkpoint(folder, checkpoint(seed)), read_checkpoint
    ),
    "simulations": Kind(
        lambda folder, seed: simulate(program, 5, seed=seed, folder=folder, batch_size=2),
        lambda folder: digest(read_draws(folder, ["a", "x"])),
    ),
}
"""What is saved as one file; simulations are a file for each batch."""
ONE_FILE = [name for name in KINDS if name != "simulations"]


@pytest.fixture(scope="module", params=KINDS)
def saves(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A kind, its folder of number 1 and another of number 2, and their digests."""
    kind, folder = KINDS[request.param], tmp_path_factory.mktemp(request.param)
    digests = []
    for number in (1, 2):
        kind.save(folder / str(number), number)
        digests.append(kind.read(folder / str(number)))
    assert digests[0] != digests[1]
    return request.param, kind, folder, digests


@contextlib.contextmanager
def restored(path: Path) -> Iterator[bytes]:
    """The content of a file, which is put back."""
    content = path.read_bytes()
    try:
        yield content
    finally:
        path.unlink(missing_ok=True)
        path.write_bytes(content)


def refused_in_words(kind: Kind, path: Path) -> None:
    with pytest.raises((ValueError, ck.CheckpointError)) as caught:
        kind.read(path.parent)
    assert str(path.parent) in str(caught.value) or "begins anew" in str(caught.value)


# -- damaged ---------------------------------------------------------------------------------------


def flips(content: bytes) -> Iterator[int]:
    """Places of the length, the header and the tensors."""
    header = 8 + int.from_bytes(content[:8], "little")
    yield from (*range(0, 9, 4), *range(9, header, 1 + header // 12))
    yield from range(header, len(content), 1 + (len(content) - header) // 8)


def test_any_flipped_bit_is_refused(saves: Any) -> None:
    _, kind, folder, _ = saves
    for path in sorted((folder / "1").iterdir()):
        with restored(path) as content:
            for place in flips(content):
                flipped = bytearray(content)
                flipped[place] ^= 1 << place % 8
                path.write_bytes(bytes(flipped))
                refused_in_words(kind, path)


def test_a_file_that_is_shorter_longer_or_lost_is_refused(saves: Any) -> None:
    _, kind, folder, _ = saves
    for path in sorted((folder / "1").iterdir()):
        with restored(path) as content:
            n = len(content)
            for length in (0, 7, 8, 99, n // 2, n - 1):
                path.write_bytes(content[:length])
                refused_in_words(kind, path)
            for more in (b"\0", content):
                path.write_bytes(content + more)
                refused_in_words(kind, path)
            path.unlink()
            refused_in_words(kind, path)


def test_a_file_of_another_save_is_refused_or_that_save(saves: Any) -> None:
    name, kind, folder, digests = saves
    for path, other in zip(
        sorted((folder / "1").iterdir()), sorted((folder / "2").iterdir()), strict=True
    ):
        with restored(path):
            shutil.copy(other, path)
            if name in ONE_FILE:
                assert kind.read(folder / "1") == digests[1]
            else:
                refused_in_words(kind, path)
    assert kind.read(folder / "1") == digests[0]


def test_a_file_of_another_kind_is_refused(saves: Any, tmp_path: Path) -> None:
    """With a right checksum, as what it is not."""
    _, kind, folder, _ = saves
    for path in sorted((folder / "1").iterdir()):
        with restored(path):
            ck.save_checkpoint(tmp_path, checkpoint(7))
            Trainer(nn.Linear(1, 1), steps=1, checkpoint=tmp_path / "state").fit(
                lambda: torch.zeros((), requires_grad=True)
            ) if not (tmp_path / "state").exists() else None
            for other in tmp_path.iterdir():
                if kind_of(other) == kind_of(folder / "1" / path.name):
                    continue
                with restored(path):
                    shutil.copy(other, path)
                    with pytest.raises((ValueError, ck.CheckpointError), match="expected"):
                        kind.read(folder / "1")


# -- killed ----------------------------------------------------------------------------------------


class Snapshots:
    """Copies of a folder before everything that a process does to files, and in its middle.

    A process that was killed there would have left the folder so. What leaves it as the last copy
    has it is not copied again.
    """

    def __init__(self, folder: Path, out: Path) -> None:
        self.folder, self.out = folder, out
        self.last, self.n, self.copying = dict[Path, bytes | None](), 0, False

    def take(self) -> None:
        if self.copying:
            return
        self.copying = True
        content = {
            path.relative_to(self.folder): path.read_bytes() if path.is_file() else None
            for path in sorted(self.folder.rglob("*"))
        }
        if content != self.last or self.n == 0:
            shutil.copytree(self.folder, self.out / f"{self.n:04}")
            self.last, self.n = content, self.n + 1
        self.copying = False

    def watch(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*arguments: Any, **options: Any) -> Any:
            self.take()
            result = function(*arguments, **options)
            self.take()
            return result

        return watched

    def open(self, path: Path, mode: str = "r", **options: Any) -> Any:
        self.take()
        file = builtins.open(path, mode, **options)  # noqa: SIM115
        self.take()
        return WatchedFile(file, self) if "w" in mode else file

    def install(self) -> None:
        """For the rest of this process."""
        for name in ("open", "close", "fsync", "replace", "unlink", "rmdir"):
            setattr(os, name, self.watch(getattr(os, name)))
        for name in ("unlink", "mkdir"):
            setattr(Path, name, self.watch(getattr(Path, name)))
        vars(files)["open"] = self.open


class WatchedFile:
    """A file that is written in halves, each of which reaches the system."""

    def __init__(self, file: Any, snapshots: Snapshots) -> None:
        self.file, self.snapshots = file, snapshots

    def write(self, data: bytes) -> None:
        for half in (data[: len(data) // 2], data[len(data) // 2 :]):
            self.snapshots.take()
            self.file.write(half)
            self.file.flush()
        self.snapshots.take()

    def flush(self) -> None:
        self.file.flush()

    def fileno(self) -> int:
        return int(self.file.fileno())

    def __enter__(self) -> WatchedFile:
        return self

    def __exit__(self, *error: object) -> None:
        self.file.close()
        self.snapshots.take()


def killed_everywhere(base: Path, work: Callable[[Path], object]) -> Iterator[Path]:
    """Copies of a folder as ``work`` leaves it if it is killed at each operation; at last, whole.

    The process is another one, which has ended: what names it names none that writes.
    """
    folder, out = base.with_name("working"), base.with_name("killed")
    shutil.copytree(base, folder)

    def watched() -> None:
        torch.set_num_threads(1)  # a fork has no other threads
        snapshots = Snapshots(folder, out)
        snapshots.install()
        work(folder)
        snapshots.take()

    assert end(start(watched)) == 0
    yield from sorted(out.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("before", [1, None], ids=["over another", "new"])
@pytest.mark.parametrize("name", ["model", "members", "table", "trainer", "checkpoint"])
def test_killed_at_any_point_of_a_save_the_old_or_the_new_is_whole(
    name: str, before: int | None, tmp_path: Path
) -> None:
    """And the next save works, and leaves nothing of the kill."""
    kind, base = KINDS[name], tmp_path / "base"
    base.mkdir()
    numbers = dict[str, int]()
    for number in (1, 2, 3):  # a training goes on from its own checkpoint
        kind.save(base, number)
        numbers[kind.read(base)] = number
    shutil.rmtree(base)
    base.mkdir()
    if before is not None:
        kind.save(base, before)
    elif name == "trainer":
        numbers |= {fresh_trainer(tmp_path, number): number for number in (2,)}
    seen = []
    for folder in killed_everywhere(base, lambda folder: kind.save(folder, 2)):
        try:
            seen.append(numbers[kind.read(folder)])
        except REFUSED:
            assert before is None
            seen.append(0)
        if name == "checkpoint":
            for path in folder.glob("step-*"):
                ck.load_checkpoint(path)  # what calls itself a checkpoint is one
        if name != "trainer":
            kind.save(folder, 3)
            assert numbers[kind.read(folder)] == 3
            assert not list(folder.glob(".*"))
    assert len(seen) > 6 and seen == sorted(seen), len(seen)
    assert set(seen) == {before or 0, 2}


def fresh_trainer(tmp_path: Path, number: int) -> str:
    """What a training of that number without another before it comes to."""
    (tmp_path / "fresh").mkdir()
    save_trainer(tmp_path / "fresh", number)
    return read_trainer(tmp_path / "fresh")


@pytest.mark.slow
def test_killed_at_any_point_simulations_go_on_to_the_same_draws(tmp_path: Path) -> None:
    kind, base = KINDS["simulations"], tmp_path / "base"
    base.mkdir()
    kind.save(tmp_path / "whole", 1)
    whole, refusals = kind.read(tmp_path / "whole"), 0
    for folder in killed_everywhere(base, lambda folder: kind.save(folder, 1)):
        try:
            assert kind.read(folder) == whole
        except ValueError as error:
            refusals += 1
            assert str(folder) in str(error)
        kind.save(folder, 1)
        assert kind.read(folder) == whole and not list(folder.glob(".*"))
    assert refusals > 30


@pytest.mark.slow
def test_files_of_one_writing_are_never_beside_those_of_an_earlier_one(tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    names = ("draws.csv", "picture.png", "other.png")

    def write_all(folder: Path, content: bytes) -> None:
        with replacing() as write:
            for name in names:
                write(folder / name, [content])

    write_all(base, b"old")
    seen = []
    for folder in killed_everywhere(base, lambda folder: write_all(folder, b"new")):
        contents = {path.read_bytes() for name in names if (path := folder / name).exists()}
        assert len(contents) == 1
        seen += contents
        write_all(folder, b"next")
        assert {path.read_bytes() for path in folder.iterdir()} == {b"next"}
    assert set(seen) == {b"old", b"new"}


@pytest.mark.slow
def test_a_run_that_was_being_replaced_is_the_old_or_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And never files of both; other files of the folder stay."""
    monkeypatch.setattr(environment, "_git", lambda *arguments: None)
    monkeypatch.setattr(environment, "_packages", lambda: {})
    base = tmp_path / "base"
    with Run.create(base, {"seed": 1}) as run:
        run.metrics.log(3, "train", {"bits_per_dim": 2.0})
        run.metrics.record(3, "train", {})
        run.save(checkpoint(3))
        write_json(run.folder / "results.json", {"steps": 3})
    (base / "notes.txt").write_text("mine")
    record = {path.name: path.read_bytes() for path in base.iterdir() if path.is_file()}
    outcomes = []
    for folder in killed_everywhere(
        base, lambda folder: Run.create(folder, {"seed": 2}, overwrite=True)
    ):
        try:
            run = Run.open(folder)
        except RunError as error:
            assert "--resume" in str(error) and (folder / PENDING).exists()
            outcomes.append("neither")
        else:
            outcomes.append("old" if run.config["seed"] == 1 else "new")
        if outcomes[-1] == "old":
            assert run.latest().step == 3
            assert all(
                (folder / name).read_bytes() == content
                for name, content in record.items()
                if name not in (".lock", ".writer.json")
            )
            continue
        with Run.resume(folder) as run:
            assert (
                run.config["seed"] == 2 and not run.has_checkpoint and run.metrics.history() == []
            )
            assert not (folder / "results.json").exists()
        with Run.create(folder, {"seed": 3}, overwrite=True):
            assert Run.open(folder).config["seed"] == 3
        assert (folder / "notes.txt").read_text() == "mine"
    assert outcomes == sorted(outcomes, key=["old", "neither", "new"].index)
    assert set(outcomes) == {"old", "neither", "new"}


@pytest.mark.slow
def test_a_folder_in_which_a_run_was_beginning_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "_git", lambda *arguments: None)
    monkeypatch.setattr(environment, "_packages", lambda: {})
    (tmp_path / "base").mkdir()
    for folder in killed_everywhere(
        tmp_path / "base", lambda folder: Run.create(folder, {"seed": 1})
    ):
        if (folder / PENDING).exists():
            assert read_settings(folder)["seed"] == 1
        with Run.create(folder, {"seed": 2}):
            assert Run.open(folder).config["seed"] == 2
        assert not [path for path in folder.iterdir() if path.suffix in (".tmp", ".new")]


# -- a model and its checkpoints -------------------------------------------------------------------


def test_a_model_of_another_step_than_the_newest_checkpoint_is_refused(tmp_path: Path) -> None:
    """As a kill between both leaves it."""
    with Run.create(tmp_path / "run", {"seed": 1}) as run:
        folder = run.folder
        for step in (1, 2):
            run.save(with_weights(step, f"{step}"))
            run.save_model(model_of(step), step, f"{step}")
            assert read_model(folder)
        run.save(with_weights(3, "3"))
        newest = folder / "checkpoints" / "step-00000003.safetensors"
        for opens in (DiffusionModel.from_pretrained, Table.from_pretrained, load_state):
            with pytest.raises(
                PretrainedError, match=r"has not the weights of .*3.*go on with the run"
            ):
                opens(folder)
        for damaged in (newest.read_bytes()[:-1], b"", b"nothing"):
            with restored(newest):
                newest.write_bytes(damaged)  # which does not count
                assert read_model(folder)
        run.save_model(model_of(3), 3, "3")
        assert read_model(folder)
        run.save(with_weights(3, "the best of all"))  # of the same step
        with pytest.raises(PretrainedError, match="has not the weights"):
            DiffusionModel.from_pretrained(folder)
        shutil.rmtree(folder / "checkpoints")
        assert read_model(folder)


def with_weights(step: int, weights: str) -> ck.Checkpoint:
    return replace(checkpoint(step), state={"weights": weights})


# -- outputs that would destroy a record -----------------------------------------------------------


@pytest.mark.parametrize("name", CONTENT)
def test_no_output_may_replace_the_record_of_a_run(name: str, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("seed: 1")
    (tmp_path / "link").symlink_to(tmp_path / "run")
    for path in (tmp_path / "run" / name, tmp_path / "link" / name, tmp_path / "run" / name / "a"):
        with pytest.raises(RunError, match=r"is of the record of the run .*expected another"):
            check_out(path, [path.suffix] if path.suffix else (), overwrite=True)
    check_out(tmp_path / "run" / "mine.csv", [".csv"], overwrite=False)


# -- the simulator of a folder ---------------------------------------------------------------------

SCALE = {0: 1.0}


def helper() -> float:
    return SCALE[0]


def scaled() -> None:
    a = pyro.sample("a", dist.Normal(0.0, helper()))
    pyro.sample("x", dist.Normal(a, 1.0))


def with_other_name() -> None:
    pyro.sample("b", dist.Normal(pyro.sample("a", dist.Normal(0.0, 1.0)), 1.0))


def with_other_shape() -> None:
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    pyro.sample("x", dist.Normal(a * torch.ones(3), 1.0).to_event(1))


def with_other_number() -> None:
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    pyro.sample("x", dist.Normal(a, 1.01))


def that_fails() -> None:
    program()
    raise ArithmeticError("no convergence")


class Scaled(nn.Module):
    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def forward(self) -> None:
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(a, self.scale))


OTHERS: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
    "name": (program, with_other_name),
    "shape": (program, with_other_shape),
    "number": (program, with_other_number),
    "failure": (program, that_fails),
    "value that it holds": (Scaled(1.0), Scaled(1.5)),
}


@pytest.mark.parametrize("options", [{"batch_size": 2}, {"vectorized": True}], ids=str)
@pytest.mark.parametrize("case", OTHERS)
def test_a_folder_does_not_go_on_with_another_simulator(
    case: str, options: Any, tmp_path: Path
) -> None:
    first, other = OTHERS[case]
    if case == "failure" and "vectorized" in options:
        pytest.skip("the program's own error is raised, as without a folder")
    drawn = simulate(first, 5, seed=1, folder=tmp_path, **options)
    assert digest(simulate(first, 5, folder=tmp_path, **options)) == digest(drawn)
    for n in (5, 9):
        if "vectorized" in options and n == 9:
            continue  # which is another plate
        with pytest.raises(ValueError, match=r"run 0 .* expected those of the program that began"):
            simulate(other, n, folder=tmp_path, **options)
    assert digest(read_draws(tmp_path, list(drawn))) == digest(drawn)  # as it was


def test_a_change_elsewhere_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    simulate(scaled, 4, seed=1, folder=tmp_path / "a")
    with monkeypatch.context() as patch:
        patch.setitem(SCALE, 0, 2.0)
        with pytest.raises(ValueError, match="other sites, shapes or values now"):
            simulate(scaled, 4, folder=tmp_path / "a")
    simulate(scaled, 4, folder=tmp_path / "a")

    state = iter(range(99))

    def random() -> None:
        pyro.sample("a", dist.Normal(float(next(state)), 1.0))

    simulate(random, 2, seed=1, folder=tmp_path / "b")
    with pytest.warns(UserWarning, match="not determined by their seeds"):
        simulate(random, 4, folder=tmp_path / "b")
