"""What inspect says of a diffusion, against closed forms."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from scipy.optimize import brentq
from torch.distributions import MultivariateNormal, kl_divergence

from inference.commands.cli import command_line
from inference.folders.checkpoints import RunError
from inference.folders.fingerprints import fingerprint_of
from inference.folders.runs import Run
from inference.inspect import InspectOptions, figure, inspect
from inference.measuring.inspection import look, prior_kl_curve, table
from inference.settings.options import Training
from inference.settings.plan import build
from pyro_mdm import ALDA, CLD, VPSDE, LearnedDiffusion, LinearDiffusion
from pyro_mdm.diffusions.clocks import ConstantBeta, LinearBeta, log_snr_times
from pyro_mdm.support.measured import Measured
from tests.problems import normal
from tests.processes import Program, finish
from tests.programs.running import run_program

DATA = 0.8 * normal(1, 300, 2) @ torch.tensor([[1.0, 0.4], [0.0, 0.9]]).double() + 0.3

TOO_FAST = """
from pyro_mdm import LinearDiffusion


class TooFast(LinearDiffusion):
    def __init__(self, **options):
        super().__init__([[0.0, -1e30], [1e30, 0.0]], [[0.0, 0.0], [0.0, 1e30]], **options)


class TooSlow(LinearDiffusion):
    def __init__(self, **options):
        super().__init__([[0.0]], [[1e-7]], **options)
"""


def time_of(clock: float) -> float:
    """The s with 0.1 s + 9.95 s² = clock, of the default β."""
    return (-0.1 + math.sqrt(0.01 + 4 * 9.95 * clock)) / (2 * 9.95)


def test_vpsde_against_closed_forms() -> None:
    found = look("vpsde", VPSDE(max_log_snr=9.0), DATA)
    assert (found.num_variables, found.rank) == (1, 1)
    b = 0.1 + 9.95
    assert found.clock == pytest.approx(b)

    def log_snr(b: float) -> float:
        return -b - math.log(-math.expm1(-b))

    assert found.terminal_log_snr == pytest.approx(log_snr(b))
    assert found.cut_log_snr == pytest.approx(log_snr(0.1 * 1e-3 + 9.95e-6))
    assert found.start_log_snr == 9.0
    assert found.start_time == pytest.approx(time_of(math.log1p(math.exp(-9.0))))
    # λ = 5 and -5: a² = e^{-b} = 1 / (1 + e^{∓5})
    forming = time_of(math.log1p(math.exp(5.0))) - time_of(math.log1p(math.exp(-5.0)))
    assert found.forming == pytest.approx(forming)

    def kl(square: torch.Tensor, b: float) -> torch.Tensor:  # bits/dim
        return 0.5 * (math.exp(-b) * (square - 1) - math.log1p(-math.exp(-b))) / math.log(2)

    bits = kl(DATA.square().mean(1), b)
    assert found.prior_kl is not None
    assert found.prior_kl[0] == pytest.approx(float(bits.mean()), rel=1e-6)
    assert found.prior_kl[1] == pytest.approx(Measured.from_values(bits).standard_error, rel=1e-6)
    mixed = brentq(lambda b: float(kl(DATA.square().mean(), b)) - 1e-3, 0.1, 10.0)
    assert found.mixing_time == pytest.approx(time_of(mixed), rel=1e-6)
    assert found.eigenvalues == [pytest.approx(-0.5)]
    assert found.relaxation == pytest.approx(2.0)
    assert found.relaxation_time == pytest.approx(time_of(2.0))
    assert (found.damping, found.quality) == ("overdamped", None)
    assert found.condition is not None
    assert set(found.condition.values()) == {(1.0, 1.0)}
    assert found.errors == found.advice == []


def apart() -> LinearDiffusion:
    """Two equal modes that do not meet: a double eigenvalue with two eigenvectors."""
    return LinearDiffusion(torch.zeros(2, 2), 0.5 * torch.eye(2))


@pytest.mark.parametrize(
    ("make", "damping", "quality", "slowest"),
    [
        (lambda: CLD(), "critical", 0.5, -1.0),  # (μ + 1)²
        (lambda: CLD(mass=0.25), "critical", 0.5, -2.0),
        (lambda: CLD(friction=1.0), "underdamped", 1.0, -0.5),  # μ² + μ + 1
        (lambda: CLD(friction=4.0), "overdamped", 0.25, -2 + math.sqrt(3)),  # μ² + 4 μ + 1
        (lambda: LearnedDiffusion(2), "underdamped", math.sqrt(1.25), -0.5),  # (μ + ½)² + 1
        (apart, "overdamped", 0.5, -0.5),
        # a chain x - v_1 - v_2 damped at v_2, μ³ + 3√3 μ² … = (μ + √3)³ : all three meet
        (
            lambda: LinearDiffusion(
                [[0.0, -1.0, 0.0], [1.0, 0.0, -math.sqrt(8.0)], [0.0, math.sqrt(8.0), 0.0]],
                [[0.0] * 3, [0.0] * 3, [0.0, 0.0, 3 * math.sqrt(3.0)]],
            ),
            "critical",
            0.5,
            -math.sqrt(3.0),
        ),
    ],
    ids=["cld", "cld M=1/4", "under", "over", "learned", "apart", "triple"],
)
def test_damping_of_known_polynomials(
    make: Callable[[], LinearDiffusion], damping: str, quality: float, slowest: float
) -> None:
    diffusion = make()
    found = look("", diffusion, DATA)
    assert found.damping == damping
    assert found.quality == pytest.approx(quality, rel=1e-6)
    assert found.eigenvalues[0].real == pytest.approx(slowest, rel=1e-4)
    assert found.relaxation == pytest.approx(-1 / slowest, rel=1e-4)
    assert found.relaxation_time == pytest.approx(time_of(-1 / slowest), rel=1e-4)


def test_eigenvalues_are_printed_once_each() -> None:
    text = table([look("cld", CLD(), DATA), look("alda", ALDA(), DATA)])
    row = next(line for line in text.splitlines() if line.startswith("eigenvalues"))
    assert row.split("  ")[-2:] != row and "-1 (×2)" in row
    # ALDA: μ³ + μ² + 2 μ + 1
    roots = [complex(-0.21508, 1.30714), complex(-0.56984, 0.0)]
    assert all(abs(z**3 + z**2 + 2 * z + 1) < 1e-4 for z in roots)
    assert row.endswith("-0.215±1.31i, -0.57")


def test_condition_of_a_known_matrix() -> None:
    r, scale = 0.6, 3.0
    Sigma = [[1.0, r * scale], [r * scale, scale**2]]
    found = look("", CLD(stationary_variance=Sigma, beta=ConstantBeta(60.0)), DATA)
    root = math.sqrt((1 + 9) ** 2 / 4 - (9 - r**2 * 9))
    assert found.condition is not None
    assert found.condition["T"] == pytest.approx(((5 + root) / (5 - root), (1 + r) / (1 - r)))


def test_conditions_along_the_path_and_rounding() -> None:
    diffusion = ALDA(max_log_snr=13.0)
    found = look("alda", diffusion, DATA)
    assert found.condition is not None and found.amplification is not None
    grid = log_snr_times(diffusion, 65)
    numbers = []
    for s in grid:
        Sigma = diffusion.marginal(s).covariance
        d = Sigma.diagonal().rsqrt()
        correlation = d[:, None] * Sigma * d
        numbers.append([float(torch.linalg.cond(m)) for m in (Sigma, correlation)])
    worst = tuple(torch.tensor(numbers).amax(0).tolist())
    assert found.condition["worst"] == pytest.approx(worst, rel=1e-4)
    for where, i in (("ε", 0), ("mid", 32), ("T", 64)):
        assert found.condition[where] == pytest.approx(tuple(numbers[i]), rel=1e-4)
    assert 1 < found.amplification < 2e7
    assert found.step_amplification is not None and 1 < found.step_amplification < 2e7


# -- the prior -------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [VPSDE, CLD, ALDA])
def test_the_prior_kl_is_information_and_mismatch(make: Callable[..., LinearDiffusion]) -> None:
    diffusion = make(beta=LinearBeta(0.1, 4.0), stationary_variance=1.3, max_log_snr=9.0)
    found = look("", diffusion, DATA)
    end, K = diffusion.terminal, diffusion.num_variables
    mean, C = DATA.mean(0), torch.cov(DATA.T, correction=0)
    # y_T = (K, 2) of Gaussian data with these moments, flattened
    cov = torch.kron(end.covariance, torch.eye(2).double())
    cov = cov + torch.kron(end.mean[:, None] * end.mean, C)
    y = MultivariateNormal(torch.kron(end.mean, mean), cov)
    prior = MultivariateNormal(torch.zeros(2 * K).double(), 1.3 * torch.eye(2 * K).double())
    exact = float(kl_divergence(y, prior)) / (2 * math.log(2))
    assert found.mismatch == pytest.approx(exact, rel=1e-8)
    assert found.prior_kl is not None and 0 < exact < found.prior_kl[0]
    assert found.mixing_time == math.inf
    assert "raise β, or set --min_log_snr" in found.advice[0]


def test_the_curve_falls_and_ends_at_the_prior_kl() -> None:
    diffusion = CLD(max_log_snr=9.0)
    found = look("cld", diffusion, DATA)
    s = torch.linspace(float(diffusion.start_time), 1.0, 40, dtype=torch.float64)
    curve = prior_kl_curve(diffusion, DATA, s)
    assert bool((curve.diff() < 0).all())  # a Markov process forgets
    assert found.prior_kl is not None and found.mixing_time is not None
    assert float(curve[-1]) == pytest.approx(found.prior_kl[0], rel=1e-6)
    assert float(prior_kl_curve(diffusion, DATA, found.mixing_time)) == pytest.approx(1e-3)


# -- what is wrong ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("own") / "own.py"
    path.write_text(TOO_FAST)
    return str(path)


def test_advice_only_where_something_is_wrong() -> None:
    assert look("", CLD(max_log_snr=31.0), DATA).advice == []
    (text,) = look("", CLD(max_log_snr=40.0), DATA).advice
    assert "single precision" in text and "lower --max_log_snr" in text
    # data a thousand times as large: λ is counted in their own units
    (text,) = look("", CLD(max_log_snr=31.0, min_log_snr=-25.0), 1e3 * DATA).advice
    assert re.search(r"to log SNR 1[789],", text)  # by the data that are drawn


def test_what_float64_cannot_hold_is_a_row_and_not_a_crash(
    own: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = tmp_path / "figure.png"
    inspect(f"{own}:TooFast,{own}:TooSlow,vpsde", model="toy", out=out)
    text = capsys.readouterr().out
    assert f"{own}:TooFast: the drift moves by" in text
    assert f"{own}:TooSlow: max_log_snr is 11, but log SNR ends at 13.1174" in text
    row = next(line for line in text.splitlines() if line.startswith("prior KL"))
    assert row.split()[3:5] == ["–", "–"] and "±" in row
    assert out.is_file()  # of vpsde
    inspect(f"{own}:TooFast", model="toy", out=tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


def test_what_v_tells_is_that_of_gaussian_data() -> None:
    """½ log det of (1 + C e^λ) (1 + C e^{λ_x})^{-1}, for the covariance C of the data."""
    diffusion = CLD(max_log_snr=9.0)
    found = look("cld", diffusion, DATA)
    assert (
        found.auxiliary is not None
        and look("vpsde", VPSDE(max_log_snr=9.0), DATA).auxiliary is None
    )
    C, start = torch.cov(DATA.mT, correction=0), diffusion.start
    snr = (9.0, float((start.mean[0].square() / start.covariance[0, 0]).log()))
    nats = [0.5 * float(torch.logdet(torch.eye(2) + C * math.exp(level))) for level in snr]
    bits = (nats[0] - nats[1]) / 2 / math.log(2)
    assert found.auxiliary["ε"] == pytest.approx((bits, snr[0] - snr[1]), rel=1e-6)
    assert "information of v" in table([found])


# -- the figure and the program --------------------------------------------------------------------


@pytest.mark.parametrize("x", [DATA, normal(3, 2, 1, 4, 4), normal(3, 2, 3, 4, 4)])
def test_the_figure_has_every_panel(x: torch.Tensor) -> None:
    drawn = figure(["vpsde", "cld"], [VPSDE(max_log_snr=9.0), CLD(max_log_snr=9.0)], x)
    assert len(drawn.get_axes()) == 3 + 2 + 1 * 9 + 2 + 2 * 9
    plane = drawn.get_axes()[2]
    points = [tuple(map(list, line.get_data())) for line in plane.lines if line.get_marker() == "o"]
    assert points[0] == ([pytest.approx(-0.5)], [0.0])
    assert points[1][0] == pytest.approx([-1.0, -1.0])


@pytest.mark.slow
def test_the_program(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        words = ("--guide", "cld,learned", "--model", "toy", "--num_variables", 3, "--rank", 1)
        run_program("inspect", *words)
        text = capsys.readouterr().out
        assert text.splitlines()[-1] == "inspect-toy-cld-learned.png"
        with Image.open("inspect-toy-cld-learned.png") as image:
            assert image.size[0] == 1650
        with pytest.raises(SystemExit, match="exists; give another --out, or --overwrite"):
            run_program("inspect", *words)
        patch.setattr("inference.inspect.figure", lambda *arguments: Figure())
        before = Path("inspect-toy-cld-learned.png").read_bytes()
        again = (*words, "--overwrite", "true", "--min_log_snr", -7)
        groups = {"inspection": InspectOptions}
        command_line(inspect, [*map(str, again)], groups=groups, listed=["guide"])
        assert Path("inspect-toy-cld-learned.png").read_bytes() != before
        assert "log SNR at T" in capsys.readouterr().out
    lines = text.splitlines()
    assert lines[0].startswith("toy: 1000 test data, 2 dims")
    assert lines[2].endswith("3, 1")
    widths = {len(line) for line in lines[1:20]}
    assert len(widths) == 1  # aligned
    row = next(line for line in lines if line.startswith("log SNR at T"))
    assert row.split()[-1] == "-10"  # as inference.train would cut a learned diffusion


def test_the_diffusion_of_a_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from inference.folders.checkpoints import Checkpoint

    monkeypatch.setattr("inference.inspect.figure", lambda *arguments: Figure())
    settings = Training(model="toy", guide="learned", holdout=False)
    programs = build(settings)
    model = programs.model
    with torch.no_grad():
        model.diffusion.get_parameter("lower").fill_(0.25)  # (μ + ½)² + 1/16
    run = Run.create(tmp_path / "run", asdict(settings))
    run.check_data(fingerprint_of(programs.problem))
    tensors = {f"ema/{name}": tensor for name, tensor in model.state_dict().items()}
    run.save(Checkpoint(1, tensors, {"config": asdict(settings)}))
    inspect(f"run:{run.folder}", model="toy", out=tmp_path / "run.png")
    text = capsys.readouterr().out
    assert "-0.5±0.25i" in text and "lost without v" not in text
    name = f"run:{run.folder}"
    inspect(name, model="toy", draws=1, out=tmp_path / "used.png")
    assert "auxiliary variables, by 1000 data of 2 dimensions" in capsys.readouterr().out
    with pytest.raises(ValueError, match="cld has no network to measure; leave it out"):
        inspect(f"{name},cld", model="toy", draws=1, out=tmp_path / "others.png")
    with pytest.raises(RunError, match="not a run folder"):
        inspect(f"run:{tmp_path}", model="toy", out=tmp_path / "other.png")


def test_its_name_hides_nothing_of_the_standard_library(tmp_path: Path) -> None:
    """Also not where the program runs, which finds the module anew."""
    (tmp_path / "script.py").write_text(
        "import sys; del sys.modules['inspect']\n"
        "import inference.inspect, inspect; print(inspect.signature(inference.inspect.look))"
    )
    assert "diffusion" in finish(Program(str(tmp_path / "script.py")))
    assert "--guide" in finish(Program("inference.inspect", "--help"))
