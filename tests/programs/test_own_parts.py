"""Scores, likelihoods and samplers of one's own, by the names that the programs take."""

from __future__ import annotations

import re
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from inference.drawing import sampling
from inference.folders.checkpoints import latest_checkpoint
from inference.folders.loading import load_trained
from inference.folders.runs import Run
from inference.settings import names
from inference.settings.options import Training
from inference.settings.plan import build
from inference.train import train
from models import Digits, Toy
from models.base import SCORES
from pyro_mdm import CLD, Denoiser, DiffusionModel, RawScore, likelihoods
from pyro_mdm.samplers import EulerMaruyama
from tests.brief import SHORT
from tests.programs.running import ROOT, TINY, run_program

EXAMPLES = {
    "score": "inference.scores.beside_the_prior:BesideThePrior",
    "likelihood": "inference.likelihoods.heavy_tails:HeavyTails",
    "sampler": "inference.samplers.flow:Flow",
}

OWN = """
import torch
from pyro_mdm import Denoiser, RawScore
from pyro_mdm.likelihoods import Gaussian
from pyro_mdm.networks import MLP
from pyro_mdm.samplers import EulerMaruyama


class Half(RawScore):
    def score_at(self, diffusion, y, at):
        return super().score_at(diffusion, y, at) / 2


class Shifted(Denoiser):
    pass


def fitted(problem, diffusion):
    return Denoiser.fit(problem.network(*problem.event_shape * 2), problem.fit_x() + 1)


wide = Gaussian(prior_variance=9.0)


def still(diffusion, score, shape, generator=None, steps=1):
    return torch.full(shape, float(steps))


def euler(steps):
    return EulerMaruyama(steps + 1)


def of_the_problem(problem):
    return Denoiser.fit(problem.network(2, 2), problem.train)


made = Denoiser(MLP(2))


def none(diffusion, score, shape, generator=None, steps=1):
    pass


class PerDimension(Gaussian):
    def __call__(self, diffusion, score, y, event_dim):
        return super().__call__(diffusion, score, y, event_dim).base_dist
"""


@pytest.fixture
def options(tmp_path: Path, few_pictures: None) -> dict[str, Any]:
    (tmp_path / "tiny.py").write_text(TINY)
    (tmp_path / "own.py").write_text(OWN)
    few = SHORT | {"draws": 2, "num_samples": 4, "batch_size": 16, "test_size": 16}
    return few | {"model": f"{tmp_path}/tiny.py:Tiny", "guide": "cld"}


def settings_of(options: dict[str, Any]) -> dict[str, Any]:
    """What a run with these options has in its config.yaml."""
    return asdict(Training(**options))


def of_x(model: DiffusionModel, x: torch.Tensor) -> torch.Tensor:
    """Score and decoder at some states."""
    y = torch.stack([x, -x], 1)
    law = model.likelihood(model.diffusion, model.score_function, y, 1)
    with torch.no_grad():
        score = model.score(y, torch.full((len(x),), 0.5, dtype=torch.float64))
        return torch.cat([score.flatten(), law.log_prob(x)])


@pytest.mark.slow
def test_the_examples_are_trained_resumed_and_opened(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    run, again = tmp_path / "run", tmp_path / "again"
    words = [f"--{name}={value}" for name, value in (options | EXAMPLES).items()]
    run_program("train", *words, f"--run={run}")
    assert {kind: Run.open(run).config[kind] for kind in EXAMPLES} == EXAMPLES

    shutil.copytree(run, again)
    for file in [*again.glob("checkpoints/step-*4.*"), again / "samples.png"]:
        file.unlink()
    run_program("train", "--resume", again)  # from step 2
    for file in ("samples.png", "model.safetensors"):
        assert (again / file).read_bytes() == (run / file).read_bytes(), file
    one, other = (latest_checkpoint(folder / "checkpoints") for folder in (run, again))
    assert one.step == other.step == 4 and one.tensors.keys() == other.tensors.keys()
    assert all(torch.equal(one.tensors[name], other.tensors[name]) for name in one.tensors)

    found = {kind: names.find(kind, name) for kind, name in EXAMPLES.items()}
    model = load_trained(run)[1].model
    assert type(model.score_function) is found["score"]
    assert type(model.likelihood) is found["likelihood"]
    own = {one.__name__: one for one in found.values()}
    opened, x = DiffusionModel.from_pretrained(run, classes=own), torch.randn(8, 2)
    assert torch.equal(*(of_x(m, x) for m in (model, opened)))
    run_program("sample", run, "--sampler", EXAMPLES["sampler"], "--steps", "8")
    assert (run / "samples-Flow-8-0.png").is_file()


@pytest.mark.parametrize("kind", EXAMPLES)
def test_examples_are_short(kind: str) -> None:
    module = EXAMPLES[kind].partition(":")[0].replace(".", "/")
    assert len((ROOT / f"{module}.py").read_text().splitlines()) <= 30


def test_the_flow_transports_noise_to_gaussian_data() -> None:
    """With the exact score of N(0, 4), of the deviation 2 up to the step's error."""
    diffusion = CLD(max_log_snr=5.0)
    score = Denoiser(Zero(), torch.zeros(2), torch.full((2,), 4.0))  # F = 0: exact
    model = DiffusionModel(diffusion, score, event_shape=(2,))
    x = sampling.draw(model, 1000, sampler=EXAMPLES["sampler"], steps=128, batch_size=1000)
    assert float((x.std(0) / 2 - 1).abs().max()) < 5 / (2 * 1000) ** 0.5 + 0.02
    assert float(x.mean(0).abs().max()) < 5 * 2 / 1000**0.5


class Zero(torch.nn.Module):
    def forward(self, x: torch.Tensor, log_snr: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(x)


def test_files_of_ones_own_are_kept_and_found_from_any_folder(
    tmp_path: Path, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    own = {"score": "own.py:Half", "likelihood": "own.py:wide", "sampler": "own.py:still"}
    train(**options | own, run=tmp_path / "run")
    monkeypatch.chdir("/")
    assert (tmp_path / "run" / "sources" / "own.py").read_text() == OWN
    run, programs, _ = load_trained(tmp_path / "run")
    assert {kind: run.config[kind] for kind in own} == {
        kind: f"{tmp_path}/{name}" for kind, name in own.items()
    }
    assert type(programs.model.score_function).__name__ == "Half"
    assert float(programs.model.likelihood.prior_variance) == 9.0
    train(resume=tmp_path / "run")


def test_a_file_is_run_once_unless_it_changes(tmp_path: Path, options: dict[str, Any]) -> None:
    """However many of its names are used; a dataclass in it finds itself."""
    file = tmp_path / "counted.py"
    text = OWN + (
        "from dataclasses import dataclass, KW_ONLY\nfrom pathlib import Path\n\n"
        "with Path(__file__).with_suffix('.log').open('a') as f:\n    f.write('run ')\n\n"
        "@dataclass\nclass Kept:\n    _: KW_ONLY\n    a: int = 1\n"
    )
    file.write_text(text)
    own = {"score": f"{file}:Half", "likelihood": f"{file}:wide"}
    build(Training.from_config(settings_of(options) | own))
    assert file.with_suffix(".log").read_text() == "run "
    assert names.find("likelihood", f"{file}:wide") is names.find("likelihood", f"{file}:wide")
    file.write_text(text + "\nnew = wide\n")
    assert names.find("likelihood", f"{file}:new").prior_variance == 9.0
    assert file.with_suffix(".log").read_text() == "run run "


@pytest.mark.parametrize("name", ["models.py", "torch.py"])
def test_a_file_may_be_called_like_a_package(
    name: str, tmp_path: Path, options: dict[str, Any]
) -> None:
    (tmp_path / name).write_text(TINY + OWN)
    own = {"model": f"{tmp_path}/{name}:Tiny", "likelihood": f"{tmp_path}/{name}:wide"}
    assert (
        float(
            build(Training.from_config(settings_of(options | own))).model.likelihood.prior_variance
        )
        == 9.0
    )
    assert not hasattr(torch, "wide")


def test_files_of_one_name_are_all_kept(tmp_path: Path, options: dict[str, Any]) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "own.py").write_text(OWN + "\n# a\n")
    own = {"score": f"{tmp_path}/own.py:Half", "likelihood": f"{tmp_path}/a/own.py:wide"}
    train(**options | own | {"steps": 1}, run=tmp_path / "run")
    kept = {path.read_text() for path in (tmp_path / "run" / "sources").glob("*own.py")}
    assert kept == {OWN, OWN + "\n# a\n"}


@pytest.mark.parametrize(
    ("kind", "name", "message"),
    [
        ("score", "of_the_problem", r"of_the_problem is called with \(problem, diffusion\), and"),
        ("score", "made", r"own.py:made is Denoiser\(…\), expected a Score: a subclass, a"),
        ("likelihood", "PerDimension", r"PerDimension has log_prob of shape \(2, 2\) for 2 data"),
    ],
)
def test_a_part_that_does_not_fit_is_refused(
    kind: str, name: str, message: str, tmp_path: Path, options: dict[str, Any]
) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        build(Training.from_config(settings_of(options) | {kind: f"{tmp_path}/own.py:{name}"}))


def test_a_sampler_must_return_states(tmp_path: Path, options: dict[str, Any]) -> None:
    model = build(Training.from_config(settings_of(options))).model
    shaped = r"returned None, expected y_ε of shape \(3, 2, 2\), \(n, K, \*event_shape\)"
    with pytest.raises(TypeError, match=shaped):
        sampling.draw(model, 3, sampler=f"{tmp_path}/own.py:none", steps=5)


def test_what_a_name_may_stand_for(tmp_path: Path, options: dict[str, Any]) -> None:
    """Classes and functions of scores, objects of likelihoods, functions of samplers."""
    own = f"{tmp_path}/own.py"
    config = settings_of(options)
    plain = build(Training.from_config(config)).model
    half = build(Training.from_config(config | {"score": f"{own}:Half"})).model.score_function
    assert isinstance(half, RawScore) and half.network(torch.ones(1, 4), torch.zeros(1)).shape[1]
    shifted = build(Training.from_config(config | {"score": f"{own}:Shifted"})).model.score_function
    assert torch.equal(shifted.data_mean, plain.score_function.data_mean)
    fitted = build(Training.from_config(config | {"score": f"{own}:fitted"})).model.score_function
    assert torch.allclose(fitted.data_mean, plain.score_function.data_mean + 1)

    one = build(Training.from_config(config | {"likelihood": f"{own}:wide"})).model.likelihood
    two = build(Training.from_config(config | {"likelihood": f"{own}:wide"})).model.likelihood
    assert one is not two and float(one.prior_variance) == float(two.prior_variance) == 9.0

    diffusion = CLD()
    made = sampling.make_sampler(f"{own}:euler", 7, diffusion)
    assert isinstance(made, EulerMaruyama) and made.steps == 8
    x = sampling.draw(plain, 3, sampler=f"{own}:still", steps=5)  # y_ε is 5 for all variables
    assert x.shape == (3, 2)
    assert type(sampling.make_sampler("euler", 7, diffusion)) is EulerMaruyama


@pytest.mark.parametrize("guide", ["learned", "cld"])
def test_a_denoiser_of_ones_own_has_the_end_of_a_learned_guide(
    guide: str, tmp_path: Path, options: dict[str, Any]
) -> None:
    """Named by its class or made by a function; and so on when it is opened again."""
    own, ends = f"{tmp_path}/own.py", {}
    for name in ("denoiser", f"{own}:Shifted", f"{own}:fitted", f"{own}:Half"):
        folder = tmp_path / name.rpartition(":")[2]
        train(**options | {"guide": guide, "score": name, "steps": 1}, run=folder)
        diffusion = load_trained(folder)[1].model.diffusion
        ends[folder.name] = round(diffusion.terminal_log_snr.item(), 6)
    denoiser = ends.pop("denoiser")
    assert ends["Shifted"] == ends["fitted"] == denoiser
    assert (denoiser == -10.0) == (guide == "learned")
    assert (ends["Half"] == denoiser) == (guide == "cld")


def test_built_in_scores_are_in_one_list(monkeypatch: pytest.MonkeyPatch) -> None:
    """A new one is a line there: all that programs do with it follows."""
    monkeypatch.setitem(SCORES, "half", type("Half", (RawScore,), {}))
    model = Toy().build(CLD(max_log_snr=9.0), score=SCORES["half"])
    assert type(model.score_function).__name__ == "Half"
    assert names.find("score", "half") is SCORES["half"]
    assert set(Toy.scores) < set(Digits().scores) == set(SCORES) - {"half", "mixed"}  # of tables


@pytest.mark.parametrize("name", names.LIKELIHOODS)
def test_a_built_in_likelihood_serves_levels_or_densities(
    name: str, options: dict[str, Any]
) -> None:
    config = settings_of(options) | {"model": "digits", "likelihood": name}
    of_levels = name in ("discretized_gaussian", "network_posterior")
    for protocol in ("discrete", "dequantized"):
        this = config | {"protocol": protocol}
        if of_levels == (protocol == "discrete"):
            found = build(Training.from_config(this)).model.likelihood
            assert type(found) is names.LIKELIHOODS[name]
            if name == "discretized_gaussian":
                assert len(found.levels) == 17
        else:
            with pytest.raises((TypeError, ValueError), match=f"--likelihood {name}"):
                build(Training.from_config(this))


def test_trying_a_likelihood_draws_nothing(options: dict[str, Any]) -> None:
    """The weights of a run are the same, whatever its decoder."""
    config = settings_of(options) | {"model": "digits", "protocol": "dequantized"}
    states = []
    for likelihood in (None, "tweedie", "gaussian"):
        torch.manual_seed(0)
        states.append(
            build(
                Training.from_config(config | {"likelihood": likelihood})
            ).model.score_function.state_dict()
        )
        states[-1]["next"] = torch.rand(3)
    for state in states[1:]:
        assert all(torch.equal(state[key], value) for key, value in states[0].items())
    assert isinstance(
        build(Training.from_config(config | {"likelihood": "tweedie"})).model.likelihood,
        likelihoods.Tweedie,
    )


def test_names_are_told_wherever_they_can_be_given(capsys: pytest.CaptureFixture[str]) -> None:
    """In the helps of the programs and on the page of train."""
    lists = {"score": SCORES, "likelihood": names.LIKELIHOODS, "sampler": names.SAMPLERS}
    text = (ROOT / "docs" / "programs" / "train.md").read_text()
    helps = {}
    for program in ("train", "sample"):
        with pytest.raises(SystemExit):
            run_program(program, "--help")
        helps[program] = capsys.readouterr().out
    for option, known in lists.items():
        (row,) = re.findall(rf"\n\| `--{option}` \| (.*) \| `inference/", text)
        assert sorted(re.findall(r"`(\w+)`", row)) == sorted(known)
        for program in ["train", *(["sample"] if option == "sampler" else [])]:
            found = re.search(rf"\n  --{option} .*?(?=\n  --)", helps[program], re.DOTALL)
            assert found is not None
            assert not [name for name in known if not re.search(rf"\b{name}\b", found[0])]


@pytest.mark.parametrize("option", names.NAMED)
def test_a_built_in_is_named_as_on_the_command_line_or_as_in_python(option: str) -> None:
    for name, builtin in names.NAMED[option].items():
        assert names.find(option, builtin.__name__) is builtin
        assert names.canonical_name(option, builtin.__name__) == name
        assert names.canonical_name(option, name) == name
        with pytest.raises(names.NameNotFoundError, match=f"did you mean {name}"):
            names.find(option, f"{name.upper()}x")
    with pytest.raises(names.NameNotFoundError, match="unknown"):
        names.find(option, "Nobody")


@pytest.mark.slow
def test_a_run_has_one_name_for_a_guide_whatever_it_was_called(tiny: str, tmp_path: Path) -> None:
    for name, run in (("learned", "one"), ("LearnedDiffusion", "two")):
        train(**SHORT | {"model": tiny, "guide": name, "figures": False}, run=tmp_path / run)
    one, two = (Run.open(tmp_path / run).config for run in ("one", "two"))
    assert one == two and one["guide"] == "learned"
