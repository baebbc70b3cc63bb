"""Mistakes with the programs: each ends in a sentence that says what to do, and leaves nothing.

The words of a command line are read as a shell would, with {own} for a folder of data sets, guides
and files that are wrong in one thing each, and {run} for a finished run.
"""

from __future__ import annotations

import gzip
import re
import shlex
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from inference import report
from inference.train import train
from tests.programs import run_program

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

POINTS = "train --model {own}/own.py:Points --accelerator cpu"
PICTURES = "train --model {own}/own.py:Pictures --accelerator cpu"
CASES: dict[str, tuple[str, int, str]] = {
    # words that are no option or no value of one
    "an option misspelt": ("train --stpes 3", 2, "no option --stpes; did you mean --steps"),
    "hyphens": ("train --batch-size 3", 2, "no option --batch-size; did you mean --batch_size"),
    "one hyphen": ("train -seed 3", 2, "there is no option -seed; did you mean --seed"),
    "an option of another program": ("inspect --learned_from cld", 2, "no option --learned_from"),
    "no value": ("train --guide --seed 1", 2, "--guide has no value, expected a name"),
    "no value at the end": ("train --steps", 2, "--steps has no value, expected an integer"),
    "no number": ("train --steps many", 2, "--steps is 'many', expected an integer"),
    "a fraction": ("train --steps 10.5", 2, r"--steps is '10\.5', expected an integer"),
    "not an integer": ("train --steps 1.5e1", 2, r"--steps is '1\.5e1', expected an integer"),
    "not a number": ("train --learning_rate nan", 2, "--learning_rate is 'nan', expected a number"),
    "no number at all": ("train --steps nan", 2, "--steps is 'nan', expected an integer"),
    "no choice": ("train --decay cosin", 2, "expected cosine or constant; did you mean cosine"),
    "not true or false": ("train --holdout maybe", 2, "--holdout is 'maybe', expected true or"),
    "neither of two kinds": ("train --probes few", 2, "'few', expected exact or an integer"),
    "a torn list": ("train --stationary_variance '[1'", 2, r"'\[1', expected a number, \[a num"),
    "a list of words": ("train --stationary_variance '[[a]]'", 2, r"expected a number"),
    "a word without an option": ("train digits", 2, "'digits' belongs to no option"),
    "an option without hyphens": (
        "train steps=3",
        2,
        "'steps=3' belongs to no option; .* --name value",
    ),
    "a run by two names": ("evaluate a --run b", 2, "'a' belongs to no option"),
    "two runs": ("sample a b", 2, "'b' belongs to no option"),
    "no runs": ("compare", 2, "runs is missing, expected one path or more"),
    "no table": ("experiment", 2, "table is missing, expected digits, mnist5k"),
    "no such table": ("experiment digit", 2, "--table is 'digit', .*; did you mean digits"),
    "no config": ("train --config no.yaml", 2, r"--config no\.yaml: File does not exist"),
    "a torn config": (
        "train --config {own}/torn.yaml",
        2,
        r"torn\.yaml: Problems .* in line 1, col",
    ),
    "a list as config": ("train --config {own}/list.yaml", 2, "expected options as name: value"),
    "config misspelt": ("train --config {own}/stpes.yaml", 2, "no option is called stpes; did"),
    "config no number": ("train --config {own}/many.yaml", 2, "yaml: --steps is 'many', expected"),
    "config no truth": ("train --config {own}/truth.yaml", 2, "--holdout is '3', expected true or"),
    # names
    "no such guide": (f"{POINTS} --guide clt", 1, r"unknown guide 'clt' \(did you mean cld\?\)"),
    "no such model": ("train --model digit", 1, r"unknown model 'digit' \(did you mean digits\?"),
    "a file alone": ("train --model own.py", 1, r"own\.py' \(which class .*\? own\.py:Name\)"),
    "no such file": (f"{POINTS} --guide no.py:A", 1, r"--guide: there is no file .*no\.py"),
    "no such module": ("train --model nowhere:A", 1, "--model: there is no module 'nowhere'"),
    "no such class": ("train --model {own}/own.py:Point", 1, "has no 'Point'; it defines .*Points"),
    "no diffusion": (f"{POINTS} --guide {{own}}/own.py:three", 1, "returns 3, expected a"),
    "no data set": ("train --model pyro_mdm:CLD", 1, "is the class CLD, expected a subclass of"),
    "a function as data": ("train --model {own}/own.py:of", 1, "is a function, expected a"),
    "a run as a guide": (f"{POINTS} --guide run:a", 1, "which inference.inspect and --reuse take"),
    "a run to learn from": (f"{POINTS} --learned_from run:a", 1, "run:a is the diffusion that a"),
    "no guide to learn from": (f"{POINTS} --learned_from cdl", 1, r"did you mean cld\?"),
    # data sets of one's own
    "no name": ("train --model {own}/own.py:Nameless", 1, "Nameless has no name; .* name ="),
    "no start": ("train --model {own}/own.py:Endless", 1, r"has no max_log_snr; .* = 9\.0"),
    "no load": ("train --model {own}/own.py:Loadless", 1, "defines neither load, all data in a"),
    "no holdout": ("train --model {own}/own.py:Closed", 1, "does not take holdout; let its"),
    "no data": ("train --model {own}/own.py:Forgetful", 1, "__init__ does not call super"),
    "numbers alone": ("train --model {own}/own.py:Scalars", 1, r"\(80,\), .*\(1,\): data\[:, None"),
    "another shape": ("train --model {own}/own.py:Wrong", 1, r"\(80, 2\), .*event_shape = \(3,\)"),
    "not finite": ("train --model {own}/own.py:Hollow", 1, r"have \d+ numbers of 160 that are not"),
    "a list": ("train --model {own}/own.py:Listed", 1, "are a list, expected a tensor or a NumPy"),
    "labels": ("train --model {own}/own.py:Labelled", 1, "are a tuple, .* without labels"),
    "texts": ("train --model {own}/own.py:Texts", 1, "are of dtype <U1, expected numbers"),
    "complex": ("train --model {own}/own.py:Complex", 1, "dtype complex64, expected real numbers"),
    "empty": ("train --model {own}/own.py:Empty", 1, "points: there are no training data"),
    "few": ("train --model {own}/own.py:Few", 1, "Few has 4 validation data, expected at least 8"),
    "two parts": (
        "train --model {own}/own.py:Halves",
        1,
        "split returned a tuple of 2, expected",
    ),
    "an object": ("train --model {own}/own.py:ready --network a", 1, "--network a is for images"),
    "floats in [0, 1]": ("train --model {own}/own.py:Unit", 1, r"float32 from 0 to 1.*\*"),
    "floats in [-1, 1]": ("train --model {own}/own.py:Signed", 1, r"\(\(images \+ 1\) / 2 \* 255"),
    "floats of codes": ("train --model {own}/own.py:Whole", 1, r"levels: images\.to\(torch\.uint8"),
    "more levels": (
        "train --model {own}/own.py:Coarse",
        1,
        r"to 255, expected 0 … 16; set",
    ),
    "below 0": ("train --model {own}/own.py:Negative", 1, "int16 from -128 to 127, expected 0 …"),
    "truths": ("train --model {own}/own.py:Black", 1, "are bool, expected .* with num_levels = 2"),
    "channels last": ("train --model {own}/own.py:Last", 1, r"\(\d+, 8, 8, 3\), .*movedim\(3, 1\)"),
    "no channels": ("train --model {own}/own.py:Flat", 1, r"\(\d+, 8, 8\), .* images\[:, None\]"),
    "odd sizes": ("train --model {own}/own.py:Odd", 1, r"9×9 pixels do not suit .*to 8×8, or use"),
    # files
    "no files": ("train --model images", 1, "needs --data PATH: a folder of images"),
    "no such data": ("train --model images --data no", 1, "--data no is not there; expected"),
    "a text": (
        "train --model images --data {own}/own.py",
        1,
        "neither a folder nor an .npz file",
    ),
    "no part": (
        "train --model images --data {own}/keras.npz",
        1,
        "x_train, x_test; expected train",
    ),
    "one more": ("train --model images --data {own}/more.npz", 1, "tset may be images of no known"),
    "scaled": ("train --model images --data {own}/scaled.npz", 1, r"found arr_0 float64 .*uint8"),
    "few images": ("train --model images --data {own}/pngs", 1, "has 1 images .*expected at least"),
    "IDX labels": ("train --model images --data {own}/a-idx3-ubyte", 1, "three or four sizes"),
    "IDX torn": ("train --model images --data {own}/b-idx3-ubyte.gz", 1, r"ubyte\.gz is damaged: "),
    "IDX of test": ("train --model images --data {own}/idx", 1, "t10k.* but no file of training"),
    "missing files": ("train --model mnist --data no", 1, "is missing; expected .* To fetch it: "),
    # options that do not go together, have no effect, or make no sense
    "levels of points": (f"{POINTS} --protocol discrete", 1, "--protocol discrete is for images"),
    "files of points": (f"{POINTS} --data a", 1, "--data a is for data sets that are read from"),
    "size of one's own": (f"{PICTURES} --image_size 4", 1, "--image_size 4 is for images of your"),
    "no such network": (f"{PICTURES} --network big", 1, "'big', expected one of small for"),
    "a margin alone": (f"{PICTURES} --logit_margin 0.05", 1, "give --protocol dequantized too"),
    "a large margin": (
        f"{PICTURES} --protocol dequantized --logit_margin 0.5",
        1,
        r"--logit_margin is 0\.5, expected a number in \[0, 0\.5\)",
    ),
    "points flipped": (f"{POINTS} --flip", 1, "--flip mirrors images; .* has none"),
    "no such score": (
        f"{POINTS} --score nois",
        1,
        r"unknown score 'nois' \(did you mean noise\?\)",
    ),
    "levels of none": (f"{POINTS} --score discrete", 1, "expected 'default' .* for points"),
    "a file of no score": (f"{POINTS} --score no.py:A", 1, r"--score: there is no file .*no\.py"),
    "no score in it": (f"{POINTS} --score {{own}}/own.py:Scroe", 1, "has no 'Scroe'; it defines"),
    "a guide as a score": (
        f"{POINTS} --score pyro_mdm:CLD",
        1,
        "is the class CLD, expected a Score",
    ),
    "a number as a score": (
        f"{POINTS} --score {{own}}/own.py:no_score",
        1,
        "no_score returns 3, expected a Score",
    ),
    "a needy score": (
        f"{POINTS} --score {{own}}/own.py:Needy",
        1,
        "Needy cannot be made of a .*'depth'",
    ),
    "a score of levels": (
        f"{POINTS} --score pyro_mdm:DiscreteDenoiser",
        1,
        "DiscreteDenoiser is for images whose levels .* and points has none",
    ),
    "a denoiser of paths": (
        f"{POINTS} --guide {{own}}/own.py:simulated --score pyro_mdm:Denoiser",
        1,
        "score is '.*Denoiser', which is made of the closed-form .* Simulated has none; use",
    ),
    "no such likelihood": (
        f"{POINTS} --likelihood gauss",
        1,
        "unknown likelihood 'gauss'.*gaussian",
    ),
    "a file of no likelihood": (f"{POINTS} --likelihood no.py:A", 1, "--likelihood: there is no f"),
    "a score as a likelihood": (
        f"{POINTS} --likelihood pyro_mdm:RawScore",
        1,
        "is the class RawScore, expected a Likelihood: a subclass",
    ),
    "a needy likelihood": (
        f"{POINTS} --likelihood {{own}}/own.py:NeedyLikelihood",
        1,
        "cannot be called with .*'width'",
    ),
    "levels of points by likelihood": (
        f"{POINTS} --likelihood discretized_gaussian",
        1,
        "is for images with levels, and points is continuous; use gaussian",
    ),
    "a density of levels": (
        f"{PICTURES} --likelihood gaussian",
        1,
        "gaussian is a density, .* or --protocol dequantized",
    ),
    "a posterior of no denoiser": (
        f"{POINTS} --likelihood network_posterior",
        1,
        "--likelihood network_posterior: NetworkPosterior needs a score",
    ),
    "a decoder of paths": (
        f"{POINTS} --guide {{own}}/own.py:simulated --likelihood tweedie",
        1,
        "--likelihood tweedie: a score gives back a denoiser by the closed-form law",
    ),
    "two decoders": (
        f"{PICTURES} --protocol dequantized --decoder tweedie --likelihood gaussian",
        1,
        "--decoder tweedie and --likelihood gaussian both say",
    ),
    "no such sampler": (
        f"{POINTS} --sampler eular",
        1,
        r"unknown sampler 'eular' \(did you mean eul",
    ),
    "a file of no sampler": (f"{POINTS} --sampler no.py:A", 1, "--sampler: there is no file"),
    "a guide as a sampler": (
        f"{POINTS} --sampler pyro_mdm:CLD",
        1,
        "is the class CLD, expected a Sampler: a subclass",
    ),
    "a sampler of closed forms": (
        f"{POINTS} --guide {{own}}/own.py:simulated --sampler pyro_mdm.samplers:Ancestral",
        1,
        "--sampler pyro_mdm.samplers:Ancestral: Ancestral needs the closed-form",
    ),
    "samples by no sampler": ("sample {run} --sampler flwo", 1, "unknown sampler 'flwo'"),
    "times of a denoiser": (f"{POINTS} --times vpsde", 1, "--times is vpsde, which is for scores"),
    "K of CLD": (f"{POINTS} --guide cld --num_variables 3", 1, "--num_variables is for --guide"),
    "no variables": (f"{POINTS} --num_variables 0", 1, "num_variables is 0, expected"),
    "a high rank": (f"{POINTS} --rank 3", 1, "rank is 3, expected"),
    "a start of its own": (
        f"{POINTS} --guide {{own}}/own.py:early --max_log_snr 9",
        1,
        "--max_log_snr is 9, but .*early sets its own start, log SNR 5; leave out --max_log_snr",
    ),
    "an end of its own": (
        f"{POINTS} --guide {{own}}/own.py:simulated --min_log_snr -8",
        1,
        "--min_log_snr is -8, but .*simulated sets its own end, .*; leave out --min_log_snr",
    ),
    "ends turned round": (f"{POINTS} --min_log_snr 10", 1, "min_log_snr 10.* must be below"),
    "three of two variances": (
        f"{POINTS} --stationary_variance '[1, 2, 3]'",
        1,
        r"expected a number, 2 variances or 2 rows",
    ),
    "a clock left so": (
        f"{POINTS} --learn_beta --diffusion_learning_rate 0",
        1,
        "--learn_beta has no effect with --diffusion_learning_rate 0",
    ),
    "matrices left so": (
        f"{POINTS} --time_varying --diffusion_learning_rate 0",
        1,
        "--time_varying has no effect with --diffusion_learning_rate 0",
    ),
    "steps of CLD": (f"{POINTS} --guide cld --step_size 0.1", 1, "--step_size is for nonlinear"),
    "probes without divergence": (
        f"{POINTS} --guide {{own}}/own.py:simulated --objective local_dsm --probes 2",
        1,
        "--probes has no effect: with --objective local_dsm",
    ),
    "a law of no probes": (
        f"{POINTS} --guide {{own}}/own.py:simulated --probes exact --probe_law gaussian",
        1,
        "--probe_law has no effect with --probes exact",
    ),
    "gradients of a fixed guide": (
        f"{POINTS} --guide {{own}}/own.py:simulated --backpropagation adjoint",
        1,
        "--backpropagation has no effect: no gradient",
    ),
    "gradients of a frozen guide": (
        f"{POINTS} --guide {{own}}/own.py:drift --backpropagation adjoint "
        "--diffusion_learning_rate 0",
        1,
        "--backpropagation has no effect: no gradient",
    ),
    "channels of points": (f"{POINTS} --channels_last", 1, "--channels_last has no effect on MLP"),
    "nothing to overwrite": (f"{POINTS} --overwrite", 1, "--overwrite replaces a run in .*--run"),
    "a large batch": (f"{POINTS} --batch_size 81", 1, "is 81, expected at most the 80 training"),
    "muon for points": (
        f"{POINTS} --optimizer muon",
        1,
        "--optimizer is muon, .* has none; use adam",
    ),
    "an uneven batch": (f"{POINTS} --micro_batches 3", 1, "expected a multiple of 3"),
    "no steps": (f"{POINTS} --steps 0", 1, "--steps is 0, expected a positive number"),
    "a negative warm-up": (f"{POINTS} --warmup -1", 1, "--warmup is -1, expected 0 or more"),
    "negative decay": (
        f"{POINTS} --weight_decay -1e-2",
        1,
        r"--weight_decay is -0\.01, expected 0",
    ),
    "a rate that is none": (f"{POINTS} --learning_rate 0", 1, r"--learning_rate is 0\.0, expected"),
    "averaged for ever": (f"{POINTS} --ema_decay 1", 1, r"--ema_decay is 1\.0, expected a number"),
    "few test data": (f"{POINTS} --test_size 3", 1, "--test_size is 3, expected at least 8 data"),
    "no such compiler": (f"{POINTS} --compile gcc", 1, "--compile is 'gcc', expected one of "),
    "no such accelerator": (
        f"{POINTS} --accelerator tpux",
        1,
        "--accelerator is 'tpux', expected one of auto",
    ),
    # folders
    "a run in the way": (f"{POINTS} --run {{run}}", 1, "already holds a run; continue it with"),
    "a folder of others": (f"{POINTS} --run {{own}}", 1, "is not a run folder and holds .*; it is"),
    "a file as a run": (f"{POINTS} --run {{own}}/own.py", 1, "is a file, expected a folder for"),
    "resume with others": ("train --resume {run} --steps 3", 1, "own settings; leave out --steps"),
    "resume nothing": ("train --resume {own}", 1, r"is not a run folder: it has no config\.yaml"),
    "evaluate nothing": ("evaluate no", 1, "no is not a run folder"),
    "no run": ("evaluate", 1, "neither a run nor --reuse"),
    "a guide without reuse": ("evaluate {run} --guide cld", 1, "--guide needs --reuse; .* alone"),
    "reuse without a guide": ("sample --reuse {run}", 1, "needs --guide NAME, the diffusion to"),
    "reuse misspelt": ("evaluate --reuse {run} --guide clt", 1, r"did you mean cld\?"),
    "reuse too clean": (
        "evaluate --reuse {run} --guide cld --max_log_snr 12",
        1,
        "start at log SNR 12, but .*set --max_log_snr 9 or less",
    ),
    "no draws": ("evaluate {run} --draws 0", 1, "--draws is 0, expected a positive number"),
    "no samples": ("sample {run} --num_samples 0", 1, "--num_samples is 0, expected a positive"),
    "a picture of another kind": ("sample {run} --out a.jpg", 1, r"ends in \.png or \.npy"),
    "no folder": ("sample {run} --out no/a.png", 1, "there is no folder no; make it first"),
    "one run twice": ("compare {run} {run}", 1, "is given twice; name each run once"),
    "no width": ("compare {run} --half_width -1", 1, r"--half_width is -1\.0, expected a"),
    "inspect misspelt": ("inspect --guide cld,mlada", 1, r"'mlada' \(did you mean malda\?\)"),
    "inspect rank of CLD": (
        "inspect --guide cld --rank 1",
        1,
        "--rank is for --guide learned, and",
    ),
    "inspect a run's ends": (
        "inspect --model {own}/own.py:Points --guide run:{run} --min_log_snr -8",
        1,
        "--min_log_snr is -8, but run:.* ended with its own",
    ),
    "inspect a start of its own": (
        "inspect --model {own}/own.py:Points --guide {own}/own.py:early --max_log_snr 8",
        1,
        "early sets its own start, log SNR 5",
    ),
    "no workers": ("experiment digits --workers 0", 1, "--workers is 0, expected a positive"),
}


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
    for name in ("pngs", "idx"):
        (own / name).mkdir()
    Image.fromarray(images[0]).save(own / "pngs" / "a.png")
    (own / "a-idx3-ubyte").write_bytes(struct.pack(">2i", 0x801, 30) + bytes(30))
    content = struct.pack(">4i", 0x803, 30, 8, 8) + images.tobytes()
    (own / "b-idx3-ubyte.gz").write_bytes(gzip.compress(content)[:-9])
    (own / "idx" / "t10k-images-idx3-ubyte").write_bytes(content)
    run = tmp_path_factory.mktemp("runs") / "run"
    few = {"draws": 1, "num_samples": 1, "sampler_steps": 1, "accelerator": "cpu"}
    with pytest.MonkeyPatch.context() as patch:
        for name in ("draw_training", "draw_end"):
            patch.setattr(report, name, lambda *arguments: None)
        train(f"{own}/own.py:Points", "vpsde", run=run, **few)
    return {"own": own, "run": run}


@pytest.mark.parametrize("name", CASES)
def test_a_mistake_is_explained_and_leaves_nothing(
    name: str,
    places: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    line, status, pattern = CASES[name]
    before = {place: sorted(place.rglob("*")) for place in places.values()}
    monkeypatch.chdir(tmp_path)
    program, *words = shlex.split(line.format(**places))
    with pytest.raises(SystemExit) as caught:
        run_program(program, *words)
    if status == 2:
        assert caught.value.code == 2
        message = capsys.readouterr().err.removesuffix("\n--help lists the options\n")
    else:
        message = str(caught.value.code)  # which Python prints, with exit status 1
    assert re.match(rf"error: .*{pattern}", message, re.DOTALL), message
    assert "\n" not in message
    assert not list(tmp_path.iterdir())
    for place, found in before.items():
        kept = [path for path in sorted(place.rglob("*")) if "__pycache__" not in path.parts]
        assert kept == [path for path in found if "__pycache__" not in path.parts]


def test_there_are_many() -> None:
    assert len(CASES) >= 100
    assert len({line for line, _, _ in CASES.values()}) == len(CASES)
