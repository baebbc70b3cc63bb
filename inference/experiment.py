"""The experiments behind the tables of docs/measured: which diffusion is better?

    python -m inference.experiment digits --workers 2
    python -m inference.experiment mnist5k --workers 2
    python -m inference.experiment fashion_mnist --workers 2
    python -m inference.experiment ends --workers 2
    python -m inference.experiment paper --workers 2
    python -m inference.experiment drift --workers 2
    python -m inference.experiment linear --workers 2

Trains every (guide, score, seed) of a table in a run folder of its own,
``runs/<table>/<score>-<guide>-<seed>``, then compares them (:mod:`inference.experiment_summary`):
``summary.md``, ``summary.csv`` and pictures in ``runs/<table>``. A run that is finished is kept and
one that was interrupted goes on, so the command can be stopped and given again.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from inference import trust
from inference.cli import check_positive, command_line
from inference.config import read_settings
from inference.experiment_summary import markdown, summarize
from inference.runs import RUNS, RunError, has_checkpoint, refuse_links
from pyro_mdm.support.progress import progress_bar

CHECKOUT = Path(__file__).resolve().parent.parent

Options = dict[str, Any]

GUIDES: dict[str, Options] = {
    "vpsde": {"guide": "vpsde"},
    "cld": {"guide": "cld"},
    "malda": {"guide": "malda"},
    "alda": {"guide": "alda"},
    "learned1": {"guide": "learned", "num_variables": 1},
    "learned2": {"guide": "learned", "num_variables": 2},
    "learned3": {"guide": "learned", "num_variables": 3},
}
# what learning gains beside its start, for scores of the raw state (with a denoiser all diffusions
# are the same): what `learned` starts as, left so (for K = 1 that is vpsde), and learned ones that
# start elsewhere
GAINS: dict[str, Options] = {
    f"{name}_frozen": GUIDES[name] | {"diffusion_learning_rate": 0.0}
    for name in ("learned2", "learned3")
} | {
    f"learned_from_{name}": {"guide": "learned", "learned_from": name}
    for name in ("cld", "malda", "alda")
}
STARTS = {
    "learned1": "vpsde",
    "learned2": "learned2_frozen",
    "learned3": "learned3_frozen",
    **{f"learned_from_{name}": name for name in ("cld", "malda", "alda")},
}
"""The guide that each learned one starts as, where a table has both."""
# the paper's, cut as there; and beside them, as we cut them, at log SNR 9, with the decoder of x
# alone: at so late a start that of (x, v_0) would cost them 1.8 to 3.3 bits/dim
PUBLISHED: dict[str, Options] = {
    name: {"guide": f"inference.guides.published:{name}"}
    for name in (
        *(f"{guide}_at_time" for guide in ("vpsde", "cld", "malda")),
        *(f"learned{K}_at_time" for K in (1, 2, 3)),
    )
} | {
    name: {"guide": f"inference.guides.published:{name}", "likelihood": "tweedie"}
    for name in ("cld", "malda", "alda")
}

# the paper's protocol (inference/guides/published.py says what differs); 2 nats are 2/64 per pixel
PROTOCOL: Options = {
    "protocol": "dequantized",
    "logit_margin": 0.05,
    "likelihood": "joint_tweedie",
    "decoder_in_loss": False,
    "times": "vpsde",
    "learning_rate": 2e-3,
    "diffusion_learning_rate": 2e-3,
    "warmup": 1,
    "decay": "constant",
    "clip": 2 / 64,
    "ema_decay": 0.0,
}

# the same diffusions with one log SNR at time T
MATCHED: dict[str, Options] = {
    name: options | {"min_log_snr": -10.0}
    for name, options in GUIDES.items()
    if options["guide"] != "learned"
}

# a learned drift beside its linear start, simulated and in closed form
DRIFTS: dict[str, Options] = {
    name: {"guide": f"inference.guides.learned_drift:{name}"}
    for name in ("linear", "learned", "closed")
}


# linear diffusions of every kind, in time, by dimension and seeing the data, between the same ends
LINEAR: dict[str, Options] = {
    "vpsde": {"guide": "vpsde"},
    "time_varying": {"guide": "learned", "time_varying": True},
    "per_pixel": {"guide": "inference.guides.by_dimension:per_pixel"},
    "encoder": {"guide": "inference.guides.encoder:cld"},
    "context": {"guide": "inference.guides.latent_context:gaussian"},
    "scales": {"guide": "inference.guides.driven:scales"},
    "means_and_scales": {"guide": "inference.guides.driven:means_and_scales"},
}
FREQUENCIES: dict[str, Options] = {
    "per_frequency": {"guide": "inference.guides.blurring:blurring"},  # levels are of pixels
}


@dataclass(frozen=True)
class Cell:
    """One training run of a table."""

    guide: str
    score: str
    seed: int
    options: Options

    @property
    def name(self) -> str:
        """The name of the run's folder."""
        return f"{self.score}-{self.guide}-{self.seed}"


@dataclass(frozen=True)
class Table:
    """The runs of a table: one network (up to its channels), optimizer, steps and data for all."""

    scores: tuple[str, ...]
    options: Options
    guides: dict[str, Options] = field(default_factory=lambda: GUIDES)
    seeds: int = 3
    further: dict[str, dict[str, Options]] = field(default_factory=dict)  # guides of one score

    def guides_of(self, score: str) -> dict[str, Options]:
        """The guides of a score by name, those of all scores first."""
        return self.guides | self.further.get(score, {})

    def cells(self) -> Iterator[Cell]:
        """The runs, seed by seed, so that the first ones already make a table."""
        for seed in range(self.seeds):
            for score in self.scores:
                for guide, options in self.guides_of(score).items():
                    yield Cell(guide, score, seed, self.options | options)


# what these tables were measured with
PLAIN: Options = {"times": "log_volume", "batch_size": 128, "network": "small"}

# few measurements and pictures during training: the comparison at the end is what counts
BRIEF: Options = {
    "measure_every": 100,
    "num_samples": 16,
    "sampler_steps": 64,
    "draws": 8,
    "figures": False,
}

TABLES = {
    "digits": Table(
        ("discrete", "denoiser", "noise"),
        {"model": "digits", "steps": 400, **PLAIN, **BRIEF},
        further={"noise": GAINS},
    ),
    "mnist5k": Table(
        ("discrete", "denoiser", "noise"),
        {"model": "mnist5k", "steps": 100, **PLAIN, **BRIEF},
        further={"noise": GAINS},
    ),
    "fashion_mnist": Table(
        ("discrete", "denoiser", "noise"),
        {"model": "fashion_mnist", "steps": 100, "test_size": 256, **PLAIN, **BRIEF},
        further={"noise": GAINS},
    ),
    "ends": Table(("discrete",), {"model": "digits", "steps": 400, **PLAIN, **BRIEF}, MATCHED),
    "paper": Table(
        ("noise",),
        {"model": "digits", "steps": 400, **PLAIN, **PROTOCOL, **BRIEF},
        PUBLISHED,
    ),
    "drift": Table(
        ("residual",),
        {
            "model": "toy",
            "steps": 800,
            "batch_size": 256,
            "diffusion_learning_rate": 2e-3,
            **BRIEF,
            "draws": 64,
        },
        DRIFTS,
    ),
    "linear": Table(
        ("discrete", "denoiser", "noise"),
        {
            "model": "fashion_mnist",
            "steps": 250,
            **PLAIN,
            "batch_size": 64,
            "warmup": 50,
            "min_log_snr": -10.0,
            "test_size": 256,
            **BRIEF,
            "measure_every": 125,
        },
        LINEAR,
        further={"denoiser": FREQUENCIES, "noise": FREQUENCIES},
    ),
}


def experiment(
    table: Literal["digits", "mnist5k", "fashion_mnist", "ends", "paper", "drift", "linear"],
    workers: int = 1,
    steps: int | None = None,
    seeds: int | None = None,
    scores: list[str] | None = None,
    half_width: float = 0.01,
    draws: int = 64,
    num_data: int | None = None,
    root: Path = RUNS,
) -> None:
    """Train the runs of a table and compare them.

    Args:
        table: name of the table.
        workers: runs trained at a time, each with one thread.
        steps: training steps, in place of the table's.
        seeds: number of seeds, in place of the table's.
        scores: some of the table's scores, e.g. [noise]; the summary has these alone.
        half_width: half-width of the comparisons, bits/dim, as for inference.compare.
        draws: the most network calls per image and run of the comparisons.
        num_data: the most test data of the comparisons; all by default.
        root: folder that holds the table's folder.
    """
    check_positive(workers=workers, steps=steps, seeds=seeds, half_width=half_width, draws=draws)
    chosen = TABLES[table]
    if steps is not None:
        chosen = replace(chosen, options=chosen.options | {"steps": steps})
    if seeds is not None:
        chosen = replace(chosen, seeds=seeds)
    if scores is not None:
        _check_scores(scores, chosen.scores)
        chosen = replace(chosen, scores=tuple(scores))
    train_all(list(chosen.cells()), root / table, workers)
    rows = summarize(
        root / table,
        {score: list(chosen.guides_of(score)) for score in chosen.scores},
        range(chosen.seeds),
        starts=STARTS,
        half_width=half_width,
        draws=draws,
        num_data=num_data,
    )
    print(markdown(rows))


def _check_scores(scores: list[str], known: tuple[str, ...]) -> None:
    if not scores or not set(scores) <= set(known) or len(set(scores)) < len(scores):
        raise RunError(
            f"--scores is {scores}, expected some of {', '.join(known)}, each once, as in "
            f"[{known[-1]}]"
        )


def train_all(cells: list[Cell], folder: Path, workers: int) -> None:
    """Train the unfinished ones of ``cells``, ``workers`` at a time.

    A run that failed (see the log beside its folder) or has other settings is a RunError.
    """
    waiting = [cell for cell in cells if not _is_finished(cell, folder)]
    finished = len(cells) - len(waiting)
    bar = progress_bar(len(cells), folder.name, "runs", initial=finished, leave=True)
    lock, further = threading.Lock(), ["--trust"] if trust.is_said() else []
    processes = _Processes()

    def run(cell: Cell) -> None:
        _train(cell, folder, further, processes)
        with lock:
            bar.update()

    with bar, ThreadPoolExecutor(workers) as pool:
        futures = [pool.submit(run, cell) for cell in waiting]
        try:
            for future in futures:
                future.result()
        except BaseException as error:
            pool.shutdown(wait=False, cancel_futures=True)
            if not isinstance(error, Exception):  # Ctrl-C, or another signal
                processes.end()  # they save their state, and the same command goes on
            raise


class _Processes:
    """Processes that are started, until all of them are ended."""

    def __init__(self) -> None:
        self._started: list[subprocess.Popen[bytes]] | None = []
        self._lock = threading.Lock()

    def start(self, words: list[str], **options: Any) -> subprocess.Popen[bytes]:
        """A new process (RunError: all are ended, also those to come)."""
        with self._lock:
            if self._started is None:
                raise RunError("the experiment was stopped")
            self._started.append(subprocess.Popen(words, **options))
            return self._started[-1]

    def end(self) -> None:
        """Ask all to end, and start no more."""
        with self._lock:
            for process in self._started or []:
                process.terminate()
            self._started = None


def _is_finished(cell: Cell, folder: Path) -> bool:
    path = folder / cell.name
    if not (path / "config.yaml").is_file():
        return False
    config = read_settings(path)
    wanted = cell.options | {"seed": cell.seed, "score": cell.score}
    if changed := [k for k, v in wanted.items() if config.get(k) != v]:
        raise RunError(
            f"{path} has other settings ({', '.join(changed)}) than the table; move it away, or "
            "give another --root"
        )
    return (path / "results.json").is_file()


def _train(cell: Cell, folder: Path, further: list[str], processes: _Processes) -> None:
    """Train a run to its end, in a process of its own."""
    path = folder / cell.name
    if has_checkpoint(path):
        words = ["--resume", str(path)]
    else:
        settings = cell.options | {"seed": cell.seed, "score": cell.score}
        words = [f"--{name}={value}" for name, value in settings.items()]
        words += [f"--run={path}", "--overwrite=true"]
    path.parent.mkdir(parents=True, exist_ok=True)
    log = path.parent / f"{cell.name}.log"
    refuse_links([log])
    one_thread = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    # the programs are found from any folder
    folders = os.pathsep.join(filter(None, [str(CHECKOUT), os.environ.get("PYTHONPATH")]))
    with open(log, "ab") as output:
        training = processes.start(
            [sys.executable, "-m", "inference.train", *words, *further],
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env=os.environ | one_thread | {"PYTHONPATH": folders},
        )
        training.wait()
    if training.returncode:
        lines = log.read_text(errors="replace").strip().splitlines()
        said = [line for line in lines if line.startswith("error: ")] or lines
        raise RunError(f"{path} failed: {' '.join(said[-1:])}; see {log}")


if __name__ == "__main__":
    command_line(experiment, unnamed="table")
