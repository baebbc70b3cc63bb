"""Mistakes with the programs: each ends in a sentence that says what to do, and leaves nothing.

The words of a command line are read as a shell would, with {own} for a folder of data sets, guides
and files that are wrong in one thing each, {it} for its own.py, and {run} for a finished run.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from inference.train import train
from inference.training import report
from tests.programs.running import run_program

OWN = """
import numpy as np
import torch
from models.base import ImageProblem, Problem
from pyro_mdm import CLD, LearnedDrift, RawScore, Simulated, Simulation
from pyro_mdm.likelihoods import Gaussian
from pyro_mdm.networks import MLP

BRIEF = Simulation(step_size=1 / 8, points=1)


def points(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def codes(*shape):
    return torch.randint(256, shape, generator=torch.Generator().manual_seed(0)).to(torch.uint8)


class Points(Problem):
    name = "points"
    max_log_snr = 9.0
    steps = 2
    batch_size = 16

    def load(self):
        return points(100, 2)

    def network(self, inputs, outputs):
        return MLP(inputs, hidden=8, depth=1, out_features=outputs)


class Pictures(ImageProblem):
    name = "pictures"

    def load(self):
        return codes(40, 1, 8, 8)


def of(kind, **changes):
    return type("Own", (kind,), changes)


Nameless = type("Nameless", (Problem,), {"load": Points.load, "network": Points.network})
Endless = of(Nameless, name="endless")
Scalars = of(Points, load=lambda self: points(100))
Wrong = of(Points, event_shape=(3,))
Hollow = of(Points, load=lambda self: points(100, 2).log())
Listed = of(Points, load=lambda self: [[1.0, 2.0]] * 100)
Labelled = of(Points, load=lambda self: (points(100, 2), torch.arange(100)))
Texts = of(Points, load=lambda self: np.array([["a", "b"]] * 100))
Complex = of(Points, load=lambda self: torch.complex(points(100, 2), points(100, 2)))
Empty = of(Points, load=lambda self: points(0, 2))
Few = of(Points, load=lambda self: points(40, 2))
Halves = of(Points, split=lambda self, holdout: (points(50, 2), points(50, 2)))
Loadless = type("Loadless", (Problem,), {"name": "x", "max_log_snr": 9.0, "network": None})


class Closed(Points):
    def __init__(self):
        super().__init__()


class Forgetful(Points):
    def __init__(self, *, holdout=False):
        self.holdout = holdout


ready = Points()
Unit = of(Pictures, load=lambda self: codes(40, 1, 8, 8) / 255)
Signed = of(Pictures, load=lambda self: codes(40, 1, 8, 8) / 127.5 - 1)
Whole = of(Pictures, load=lambda self: codes(40, 1, 8, 8).float())
Coarse = of(Pictures, num_levels=17)
Negative = of(Pictures, load=lambda self: codes(40, 1, 8, 8).to(torch.int16) - 128)
Last = of(Pictures, load=lambda self: codes(40, 8, 8, 3).numpy())
Flat = of(Pictures, load=lambda self: codes(40, 8, 8))
Odd = of(Pictures, load=lambda self: codes(40, 1, 9, 9))
Black = of(Pictures, load=lambda self: codes(40, 1, 8, 8) > 9)


def early():
    return CLD(max_log_snr=5.0)


def simulated(max_log_snr):
    return Simulated(CLD(max_log_snr=max_log_snr), BRIEF)


def drift(max_log_snr):
    return LearnedDrift(CLD(max_log_snr=max_log_snr), MLP(4, 8, 1), simulation=BRIEF)


def three():
    return 3


def no_score(problem, diffusion):
    return 3


class Needy(RawScore):
    def __init__(self, network, depth):
        super().__init__(network)


class NeedyLikelihood(Gaussian):
    def __init__(self, width):
        super().__init__()
"""

POINTS = "train --model {it}:Points --accelerator cpu"
PICTURES = "train --model {it}:Pictures --accelerator cpu"
SIMULATED = f"{POINTS} --guide {{it}}:simulated"
FROZEN = f"{POINTS} --diffusion_learning_rate 0"
GUIDES = "inference.guides"

USAGE: dict[str, str] = {
    "train --stpes 3": "no option --stpes; did you mean --steps",
    "train --batch-size 3": "no option --batch-size; did you mean --batch_size",
    "train -seed 3": "there is no option -seed; did you mean --seed",
    "inspect --learned_from cld": "no option --learned_from",
    "train --guide --seed 1": "--guide has no value, expected a name",
    "train --steps": "--steps has no value, expected an integer",
    "train --steps many": "--steps is 'many', expected an integer",
    "train --steps 10.5": "--steps is '10.5', expected an integer",
    "train --steps 1.5e1": "--steps is '1.5e1', expected an integer",
    "train --learning_rate nan": "--learning_rate is 'nan', expected a number",
    "train --steps nan": "--steps is 'nan', expected an integer",
    "train --decay cosin": "expected cosine or constant; did you mean cosine",
    "train --holdout maybe": "--holdout is 'maybe', expected true or",
    "train --precision 8-true": "--precision is '8-true', expected 32-true",
    "train --stationary_variance '[1'": r"'\[1', expected a number, \[a num",
    "train --stationary_variance '[[a]]'": "expected a number",
    "train digits": "'digits' belongs to no option",
    "train steps=3": "'steps=3' belongs to no option; .* --name value",
    "evaluate a --run b": "'a' belongs to no option",
    "sample a b": "'b' belongs to no option",
    "compare": "runs is missing, expected one path or more",
    "experiment": "table is missing, expected digits, mnist5k",
    "experiment digit": "--table is 'digit', .*; did you mean digits",
    "train --config no.yaml": r"--config \./no.yaml: File does not exist",
    "train --config {own}/torn.yaml": "torn.yaml: Problems .* in line 1, col",
    "train --config {own}/list.yaml": "expected options as name: value",
    "train --config {own}/stpes.yaml": "no option is called stpes; did",
    "train --config {own}/many.yaml": "yaml: --steps is 'many', expected",
    "train --config {own}/truth.yaml": "--holdout is '3', expected true or",
}
"""Command lines whose words are no options or no values, and fragments of what is said."""

REFUSED: dict[str, str] = {
    # names
    f"{POINTS} --guide clt": r"unknown guide 'clt' \(did you mean cld\?\)",
    f"{POINTS} --guide diffuse": "'diffuse': use one of vpsde, cld, malda, alda, hold, ve, ",
    "train --model digit": r"unknown model 'digit' \(did you mean digits\?",
    "train --model own.py": r"own.py' \(which class .*\? own.py:Name\)",
    f"{POINTS} --guide no.py:A": "--guide: there is no file .*no.py",
    "train --model nowhere:A": "--model: there is no module 'nowhere'",
    "train --model {it}:Point": "has no 'Point'; it defines .*Points",
    f"{POINTS} --guide {{it}}:three": "returns 3, expected a",
    "train --model pyro_mdm:CLD": "is the class CLD, expected a subclass of",
    "train --model {it}:of": "is a function, expected a",
    f"{POINTS} --guide run:a": "which only inference.inspect and --reuse take",
    f"{POINTS} --learned_from run:a": "run:a is the diffusion that a",
    f"{POINTS} --learned_from cdl": r"did you mean cld\?",
    # data sets of one's own
    "train --model {it}:Nameless": "Nameless has no name; .* name =",
    "train --model {it}:Endless": "has no max_log_snr; .* = 9.0",
    "train --model {it}:Loadless": "defines neither load, all data in a",
    "train --model {it}:Closed": "does not take holdout; let its",
    "train --model {it}:Forgetful": "__init__ does not call super",
    "train --model {it}:Scalars": r"\(80,\), .*\(1,\): data\[:, None",
    "train --model {it}:Wrong": r"\(80, 2\), .*event_shape = \(3,\)",
    "train --model {it}:Hollow": r"have \d+ numbers of 160 that are not",
    "train --model {it}:Listed": "are a list, expected a tensor or a NumPy",
    "train --model {it}:Labelled": "are a tuple, .* without labels",
    "train --model {it}:Texts": "are of dtype <U1, expected numbers",
    "train --model {it}:Complex": "dtype complex64, expected real numbers",
    "train --model {it}:Empty": "points: there are no training data",
    "train --model {it}:Few": "Few has 4 validation data, expected at least 8",
    "train --model {it}:Few --holdout false": "Few has 4 test data, expected at least 8",
    "train --model {it}:Halves": "split returned a tuple of 2, expected",
    "train --model {it}:ready --network a": "--network a is for images",
    "train --model {it}:Unit": r"float32 from 0 to 1.*\*",
    "train --model {it}:Signed": r"\(\(images \+ 1\) / 2 \* 255",
    "train --model {it}:Whole": r"levels: images.to\(torch.uint8",
    "train --model {it}:Coarse": "to 255, expected 0 … 16; set",
    "train --model {it}:Negative": "int16 from -128 to 127, expected 0 …",
    "train --model {it}:Black": "are bool, expected .* with num_levels = 2",
    "train --model {it}:Last": r"\(\d+, 8, 8, 3\), .*movedim\(3, 1\)",
    "train --model {it}:Flat": r"\(\d+, 8, 8\), .* images\[:, None\]",
    "train --model {it}:Odd": "9×9 pixels do not suit .*to 8×8, or use",
    # files
    "train --model images": "needs --data PATH: a folder of images",
    "train --model images --data no": "--data no is not there; expected",
    "train --model images --data {it}": "neither a folder nor an .npz file",
    "train --model images --data {own}/keras.npz": "x_train, x_test; expected train",
    "train --model images --data {own}/more.npz": "tset may be images of no known",
    "train --model images --data {own}/scaled.npz": "found arr_0 float64 .*uint8",
    "train --model images --data {own}/pngs": "has 1 images .*expected at least",
    "train --model mnist --data no": "reads no MNIST from no: .* fetch it: python -c ",
    # options that do not go together, have no effect, or make no sense
    f"{POINTS} --protocol discrete": "--protocol discrete is for images",
    f"{POINTS} --protocol dequantized": "is for images",
    "train --model mnist --image_size 3": "--image_size 3 is for images of your own; --model mnist",
    f"{POINTS} --data a": "--data a is for data sets that are read from",
    f"{PICTURES} --image_size 4": "--image_size 4 is for images of your",
    f"{PICTURES} --network big": "'big', expected one of small for",
    f"{PICTURES} --logit_margin 0.05": "give --protocol dequantized too",
    f"{PICTURES} --protocol dequantized --logit_margin 0.5": "--logit_margin is 0.5, expected a",
    f"{POINTS} --flip": "--flip mirrors images; .* has none",
    f"{POINTS} --score nois": r"unknown score 'nois' \(did you mean noise\?\)",
    f"{POINTS} --score magic": "use one of discrete, denoiser, noise, score, residual, mixed, or",
    f"{POINTS} --score discrete": "expected 'default' .* for points",
    f"{POINTS} --score no.py:A": "--score: there is no file .*no.py",
    f"{POINTS} --score {{it}}:Scroe": "has no 'Scroe'; it defines",
    f"{POINTS} --score pyro_mdm:CLD": "is the class CLD, expected a Score",
    f"{POINTS} --score {{it}}:no_score": "no_score returns 3, expected a Score",
    f"{POINTS} --score {{it}}:Needy": "Needy cannot be made of a .*'depth'",
    f"{POINTS} --score pyro_mdm:DiscreteDenoiser": "DiscreteDenoiser is for images whose levels",
    f"{SIMULATED} --score pyro_mdm:Denoiser": "score is '.*Denoiser', which",
    f"{POINTS} --likelihood gauss": "unknown likelihood 'gauss'.*gaussian",
    f"{POINTS} --likelihood no.py:A": "--likelihood: there is no f",
    f"{POINTS} --likelihood pyro_mdm:RawScore": "is the class RawScore, expected a Likelihood: a",
    f"{POINTS} --likelihood {{it}}:NeedyLikelihood": "cannot be called with .*'width'",
    f"{POINTS} --likelihood discretized_gaussian": "is for images with levels, and points is",
    f"{PICTURES} --likelihood gaussian": "gaussian is a density, .* or --protocol dequantized",
    f"{POINTS} --likelihood network_posterior": "--likelihood network_posterior: NetworkPosterior",
    f"{SIMULATED} --likelihood tweedie": "--likelihood tweedie: x̂ by a score",
    f"{POINTS} --sampler eular": r"unknown sampler 'eular' \(did you mean eul",
    f"{POINTS} --sampler no.py:A": "--sampler: there is no file",
    f"{POINTS} --sampler pyro_mdm:CLD": "is the class CLD, expected a Sampler: a subclass",
    f"{SIMULATED} --sampler pyro_mdm.samplers:Ancestral": "Ancestral needs closed-form",
    "sample {run} --sampler flwo": "unknown sampler 'flwo'",
    f"{POINTS} --times vpsde": "--times is vpsde, which is for scores",
    f"{POINTS} --guide cld --num_variables 3": "--num_variables is for --guide",
    f"{POINTS} --num_variables 0": "num_variables is 0, expected",
    f"{POINTS} --rank 3": "rank is 3, expected",
    f"{POINTS} --guide cld --rank 1": "--rank is for --guide learned",
    f"{POINTS} --guide cld --learned_from alda": "--learned_from is for --guide learned; cld",
    f"{POINTS} --learned_from alda --num_variables 2": "--num_variables is 2, but .* alda has 3",
    f"{POINTS} --learned_from malda --rank 1": "D of MALDA has rank 2",
    f"{POINTS} --learned_from {GUIDES}.relativistic:Relativistic": "which has no Q and D; expected",
    f"{POINTS} --guide {GUIDES}.published:cld_at_time --max_log_snr 9": "sets its own start",
    f"{POINTS} --guide {GUIDES}.published:learned2_at_time --min_log_snr -8": "is cut at the time",
    f"{POINTS} --guide {GUIDES}.published:learned2_at_time": "a denoiser takes as fixed; use",
    f"{POINTS} --guide {{it}}:early --max_log_snr 9": "--max_log_snr is 9, but .*early sets its",
    f"{SIMULATED} --min_log_snr -8": "--min_log_snr is -8, but .*simulated",
    f"{POINTS} --min_log_snr 10": "min_log_snr 10.* must be below",
    f"{POINTS} --stationary_variance '[1, 2, 3]'": "expected a number, 2 variances or 2 rows",
    f"{FROZEN} --learn_beta": "--learn_beta has no effect with --diffusion_learning_rate 0",
    f"{FROZEN} --time_varying": "--time_varying has no effect with --diffusion_learning_rate 0",
    f"{POINTS} --guide cld --step_size 0.1": "--step_size is for nonlinear",
    f"{POINTS} --points 2 --objective ism": "--points, --objective is for nonlinear",
    f"{SIMULATED} --step_size -1": "step_size is -1.0, expected a positive",
    f"{SIMULATED} --score noise": "score is 'noise', .* use residual .* or score",
    f"{SIMULATED} --score discrete": r"expected 'default' \(residual\) or one of den",
    f"{SIMULATED} --sampler splitting": "Splitting needs .*--sampler euler",
    f"{SIMULATED} --compile inductor": "--compile inductor .* --objective local_dsm",
    f"{SIMULATED} --decoder_in_loss false": "--decoder_in_loss false needs .*leave it out",
    f"{POINTS} --guide {{it}}:Points": "is the class Points, expected a Diffusion",
    f"{POINTS} --channels_last": "--channels_last has no effect on MLP",
    f"{POINTS} --overwrite": "--overwrite replaces a run in .*--run",
    f"{POINTS} --batch_size 81": "is 81, expected at most the 80 training",
    f"{POINTS} --optimizer muon": "--optimizer is muon, .* has none; use adam",
    f"{POINTS} --micro_batches 3": "expected a multiple of 3",
    f"{POINTS} --steps -1": "--steps is -1, expected a positive number, or 0 for a network",
    f"{POINTS} --warmup -1": "--warmup is -1, expected 0 or more",
    f"{POINTS} --learning_rate 0": "--learning_rate is 0.0, expected",
    f"{POINTS} --diffusion_learning_rate -0.1": "--diffusion_learning_rate is -0.1, expected a",
    f"{POINTS} --ema_decay 1": "--ema_decay is 1.0, expected a number",
    f"{POINTS} --test_size 3": "--test_size is 3, expected at least 8 data",
    f"{POINTS} --compile gcc": "--compile is 'gcc', expected one of ",
    f"{POINTS} --accelerator tpux": "--accelerator is 'tpux', expected one of auto",
    "train --model tabular --data wine --columns ash=boolean": 'say --columns "ash=categorical"',
    # folders
    f"{POINTS} --run {{run}}": "already holds a run; continue it with",
    f"{POINTS} --run {{own}}": "is not a run folder and holds .*; it is",
    f"{POINTS} --run {{it}}": "is a file, expected a folder for",
    "train --resume {run} --steps 9 --seed 3": "own settings, --steps apart; leave out --seed",
    "train --resume {run} --steps 1": "--steps is 1, the number in all, and .* has taken",
    "train --resume {own}": "is not a run folder: it has no config.yaml",
    "evaluate no": "no is not a run folder",
    "evaluate": "neither a run nor --reuse",
    "evaluate {run} --guide cld": "--guide needs --reuse; .* alone",
    "sample --reuse {run}": "needs --guide NAME, the diffusion to",
    "evaluate --reuse {run} --guide clt": r"did you mean cld\?",
    "evaluate --reuse {run} --guide cld --max_log_snr 12": "start at log SNR 12, but .*set --max_",
    "evaluate {run} --draws 0": "--draws is 0, expected a positive number",
    "sample {run} --num_samples 0": "--num_samples is 0, expected a positive",
    "sample {run} --out a.jpg": "ends in .png or .npy or .gif",
    "sample {run} --out no/a.png": "there is no folder no; make it first",
    "compare {run} {run}": "is given twice; name each run once",
    "compare {run} --half_width -1": "--half_width is -1.0, expected a",
    "inspect --guide cld,mlada": r"'mlada' \(did you mean malda\?\)",
    "inspect --guide cld --rank 1": "--rank is for --guide learned, and",
    "inspect --model {it}:Points --guide run:{run} --min_log_snr -8": "--min_log_snr is -8, but",
    "inspect --model {it}:Points --guide {it}:early --max_log_snr 8": "early sets its own start",
    "experiment digits --workers 0": "--workers is 0, expected a positive",
}
"""Others that cannot work."""


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folder of what is wrong, and a finished run; tests only read them."""
    own = tmp_path_factory.mktemp("own")
    (own / "own.py").write_text(OWN)
    configs = {"torn": "steps: [1", "list": "- 1", "stpes": "stpes: 3", "many": "steps: many"}
    for name, text in (configs | {"truth": "holdout: 3"}).items():
        (own / f"{name}.yaml").write_text(text)
    images = np.zeros((30, 8, 8), np.uint8)
    np.savez(own / "keras.npz", x_train=images, x_test=images)
    np.savez(own / "more.npz", train=images, tset=images)
    np.savez(own / "scaled.npz", images / 255)
    (own / "pngs").mkdir()
    Image.fromarray(images[0]).save(own / "pngs" / "a.png")
    run = tmp_path_factory.mktemp("runs") / "run"
    few = {"draws": 1, "num_samples": 1, "sampler_steps": 1, "accelerator": "cpu"}
    with pytest.MonkeyPatch.context() as patch:
        for name in ("draw_training", "draw_end"):
            patch.setattr(report, name, lambda *arguments: None)
        train(f"{own}/own.py:Points", "vpsde", run=run, **few)
    return {"own": own, "it": own / "own.py", "run": run}


@pytest.mark.parametrize(("line", "pattern"), (USAGE | REFUSED).items(), ids=USAGE | REFUSED)
def test_a_mistake_is_explained_and_leaves_nothing(
    line: str,
    pattern: str,
    places: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def kept() -> list[Path]:
        files = [path for place in places.values() for path in sorted(place.rglob("*"))]
        return [path for path in files if "__pycache__" not in path.parts]

    before = kept()
    monkeypatch.chdir(tmp_path)
    program, *words = shlex.split(line.format(**places))
    with pytest.raises(SystemExit) as caught:
        run_program(program, *words)
    if line in USAGE:
        assert caught.value.code == 2
        message = capsys.readouterr().err.removesuffix("\n--help lists the options\n")
    else:
        message = str(caught.value.code)  # which Python prints, with exit status 1
    assert re.match(rf"error: .*{pattern}", message, re.DOTALL), message
    assert "\n" not in message
    assert not list(tmp_path.iterdir()) and kept() == before
