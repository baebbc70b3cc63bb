"""The settings of a training run, in groups, with their help texts.

:class:`Training` joins all groups; a run's config.yaml holds its fields. Functions take the group
that they need.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from inference.machine.processes import Precision
from inference.settings.kinds import check_types

T = TypeVar("T", bound="Training")

Reach = float | list[float]
"""The reach of learned ends of log SNR: one number for both, or one for each."""

StationaryVariance = float | list[float] | list[list[float]]
"""Σ_∞ as an option: a number, K variances or K rows of a covariance."""

Gaps = Literal["fill", "skip", "leave_out"]
"""What training does with missing entries."""


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """The data set.

    Args:
        model: data set: toy, digits, mnist5k, mnist, fashion_mnist, cifar10, imagenet32_old,
            imagenet32_new, images, tabular, module:Name or file.py:Name.
        protocol: protocol of images: discrete, with a likelihood over their levels, by default; or
            dequantized, as in the paper.
        data: folder of data sets that are read from files, "data" by default; for --model images
            your folder of images or .npz file; for --model tabular your .csv or .parquet file, or
            breast_cancer, diabetes, iris or wine.
        columns: kinds of columns that replace those found in the data, with --model tabular, e.g.
            age=continuous,zip=drop. Kinds are continuous, nonnegative, mixed, rounded, integer,
            boolean, ordinal, categorical, date and drop, or file.py:Name, a class of your own.
            Levels may have an order, size=small<middle<large, and numbers a range, score=0..100 or
            score=integer 0..; put these in quotes. A last word gives the meaning of an empty entry:
            absent, or mar, missing at random. The kind of * is that of all columns that are not
            named.
        image_size: side in pixels that images are scaled to, with --model images, after the middle
            square of each is cut out.
        logit_margin: margin α of x = logit(α + (1 - 2α) w), for dequantized images; 1e-6 by
            default, and 0.05 in the paper.
        holdout: whether a part of the training data is kept for validation; choose settings there.
        split_seed: seed of the split of data without official parts, 0 by default; where data have
            labels, the split is balanced over them. "index" makes every tenth datum a test datum;
            it is the default of toy, digits and mnist5k, whose published numbers have this split.
        flip: whether training images are mirrored left to right at random.
        condition: context that the model is given: labels, for digits, mnist5k, mnist,
            fashion_mnist, cifar10, toy, and for --model images with a folder for each class; or a
            name in the contexts of your own data set. All bounds are then on data given the
            context.
        context_dropout: fraction of each batch whose context is hidden from the network, which then
            also models data without context and allows guidance; 0.1 by default.
    """

    model: str = "digits"
    protocol: Literal["discrete", "dequantized"] | None = None
    data: Path | None = None
    columns: str | None = None
    image_size: int | None = None
    logit_margin: float | None = None
    holdout: bool = True
    split_seed: Literal["index"] | int | None = None
    flip: bool = False
    condition: str | None = None
    context_dropout: float | None = None


@dataclass(frozen=True, kw_only=True)
class Guide:
    """The noising diffusion.

    Args:
        guide: noising diffusion: vpsde, cld, malda, alda, hold, ve, subvp, rectified_flow, cosine,
            momentum_ve, learned, module:Name or file.py:Name.
        num_variables: number K of variables, of a learned diffusion (2 by default) or of hold (3 by
            default).
        rank: rank of the matrix D of a learned diffusion, K by default.
        learn_beta: whether the clock of a learned diffusion is learned too.
        time_varying: whether Q and D of a learned diffusion vary in time: every entry is a
            polynomial of degree 3 (four numbers in place of one), which starts constant.
        learn_ends: distance within which a learned diffusion may move its two ends of log SNR from
            their starts, e.g. 2.0 for both, or [1.0, 3.0] for the ends at the start time and at T.
            0 fixes an end; by default both are fixed.
        learn_stationary: whether Σ_∞ of a learned diffusion is learned too, except for the variance
            of x.
        learned_from: diffusion with a closed form, as for --guide, whose Q, D and clock a learned
            diffusion starts from; by default D = ½ on the last variables of a chain, as many as
            --rank.
        stationary_variance: Σ_∞ of a learned diffusion, the covariance of its noise at the end: a
            number, K variances or K rows of a covariance, x first; by default 1 for all.
        max_log_snr: log SNR where the decoder takes over; by default the data set's. Both ends of a
            network that was trained elsewhere are by default those of its best bound on training
            data.
        min_log_snr: log SNR at time T, to which the clock is scaled; an interpolant (ve, subvp,
            rectified_flow, cosine) is cut at it instead. By default -10 for a learned diffusion,
            also one of your own, with a denoiser; others keep their clock.
    """

    guide: str = "learned"
    num_variables: int | None = None
    rank: int | None = None
    learn_beta: bool = False
    time_varying: bool = False
    learn_ends: Reach | None = None
    learn_stationary: bool = False
    learned_from: str | None = None
    stationary_variance: StationaryVariance | None = None
    max_log_snr: float | None = None
    min_log_snr: float | None = None


@dataclass(frozen=True, kw_only=True)
class SimulatedGuide:
    """The simulation of a nonlinear diffusion, in place of its own settings.

    Args:
        step_size: step of simulated paths, as a fraction of the time from data to noise.
        points: number of points on each path at which the bound is estimated.
        objective: estimate of the score's divergence: ism, or local_dsm, which needs no derivative
            of the network.
    """

    step_size: float | None = None
    points: int | None = None
    objective: Literal["ism", "local_dsm"] | None = None


@dataclass(frozen=True, kw_only=True)
class ScoreOptions:
    """The score and the likelihood.

    Args:
        score: parameterization of the score: discrete, denoiser, noise, score, residual, mixed,
            module:Name or file.py:Name; "default" for the data set's own, or residual for a
            diffusion without a closed form.
        network: name of the network of images, such as small or paper; the file of the data set
            lists them. By default the one that this file names for training, or else its first.
        likelihood: likelihood p(x | y_ε): gaussian, tweedie, joint_tweedie, discretized_gaussian,
            network_posterior, module:Name or file.py:Name; by default the data set's. For
            dequantized images that is tweedie, the distribution of x given the denoised state; the
            paper's is joint_tweedie, the distribution of x and v_0 divided by the density of v_0.
        decoder_in_loss: whether the training loss has the decoder's term. The paper leaves it out,
            and its training objective is then not a bound on data; measurements still are bounds.
        times: distribution of training times: adaptive, denser where gradients vary more;
            log_volume, uniform in log volume, or in log SNR for denoisers; or vpsde, the importance
            times of the paper, for scores of the raw state. By default the data set's; nonlinear
            diffusions and --maps have their own.
        maps: maps of log SNR, a number for every dimension, with which a denoiser's network is
            trained, so that the model can be conditioned: levels (one log SNR for all dimensions),
            subsets (some dimensions observed, some left out), independent (one for each), or mixed,
            of which half are levels. With maps other than levels the training objective is not a
            bound on whole data; measurements still are bounds. By default mixed for tables, and
            none for other data.
        gaps: treatment of missing entries in training with --maps: fill draws them from the model
            in training, which is right where missing entries depend on observed ones; skip leaves
            out data at maps that need their missing entries; leave_out leaves out the missing
            entries, which is right where they are missing by chance alone. By default fill, where a
            table has missing entries.
    """

    score: str = "default"
    network: str | None = None
    likelihood: str | None = None
    decoder_in_loss: bool = True
    times: Literal["adaptive", "log_volume", "vpsde"] | None = None
    maps: Literal["levels", "subsets", "independent", "mixed"] | None = None
    gaps: Gaps | None = None


@dataclass(frozen=True, kw_only=True)
class Optimization:
    """The optimization.

    Args:
        steps: number of training steps; by default the data set's. 0 leaves the network as it is.
            With --resume it is the total number, which includes the steps already taken.
        seconds: number of seconds after which training stops, those before a resume included up to
            the last checkpoint. Learning rates fall to zero by then. Without --steps it takes as
            many steps as fit, and it stops earlier when the bound on validation data has stopped
            falling (--patience 3). Such a run depends on the speed of the machine: no other has the
            same weights.
        batch_size: number of data per step, over all processes; by default the data set's, or that
            of all training data if there are fewer.
        optimizer: optimizer: adam; or muon, which is Muon for the convolutions inside a U-Net, with
            steps of singular values of about 1 at ten times the rate, and Adam for the rest. By
            default the data set's.
        micro_batches: number of pieces in which each process computes its part of a batch, to save
            memory.
        learning_rate: highest learning rate of the network; by default the data set's.
        diffusion_learning_rate: highest learning rate of the diffusion; 0 keeps its start, without
            gradients.
        warmup: number of steps of linear warm-up, at most a tenth of all.
        decay: learning rate after the warm-up: a cosine that falls to zero, or constant.
        clip: largest norm of the gradient of the loss in nats per dimension.
        adam_epsilon: ε of Adam, for gradients of the loss in nats per dimension; 1e-8 for the loss
            of a whole datum, as in the paper, is 1e-8/d here.
        ema_decay: decay of the averaged weights, which are evaluated and sampled; 0 for no
            averaging.
        seed: seed of all random numbers.
    """

    steps: int | None = None
    seconds: float | None = None
    batch_size: int | None = None
    optimizer: Literal["adam", "muon"] | None = None
    micro_batches: int = 1
    learning_rate: float | None = None
    diffusion_learning_rate: float = 1e-2
    warmup: int = 100
    decay: Literal["cosine", "constant"] = "cosine"
    clip: float = 1.0
    adam_epsilon: float = 1e-8
    ema_decay: float = 0.995
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Measurements, samples and checkpoints.

    Args:
        log_every: number of steps between entries of the training objective.
        measure_every: number of steps between measurements of the bound, with averaged weights; by
            default a tenth of all steps, and at least 250 or a quarter of them.
        checkpoint_every: number of steps between checkpoints.
        draws: number of network evaluations per test datum at the end.
        test_size: largest number of test data at the end, spread evenly over the test part; by
            default all. inference.evaluate and compare take all.
        num_samples: number of samples at the end.
        sampler: sampler at the end: splitting, euler, ancestral, exponential, stochastic,
            probability_flow, stochastic_heun, torchsde, module:Name or file.py:Name; by default
            exponential, stochastic for a score of the raw state, or euler for a nonlinear
            diffusion.
        sampler_steps: number of steps of the sampler, with one network call in each for most
            samplers; by default 25 for exponential, 50 for stochastic, 256 for others.
        grid: grid of times of the sampler: information, log_snr, log_volume, karras, quadratic or
            progress; by default the sampler's own.
        figures: whether figures are drawn for TensorBoard, which take some seconds each; otherwise
            it shows numbers and samples only.
        patience: number of measurements in a row in which the bound on validation data has not
            fallen by 0.005 bits/dim, after which training stops. The learning rate has not reached
            its end by then: a run with exactly that many steps would have a better bound.
    """

    log_every: int = 50
    measure_every: int | None = None
    checkpoint_every: int = 250
    draws: int = 32
    test_size: int | None = None
    num_samples: int = 64
    sampler: str | None = None
    sampler_steps: int | None = None
    grid: str | None = None
    figures: bool = True
    patience: int | None = None


@dataclass(frozen=True, kw_only=True)
class Machine:
    """The machine.

    Args:
        accelerator: kind of device: cpu, cuda, … or auto, as lightning.fabric names them.
        precision: precision of the network. Kernels are always float64; data, noise and the bound
            are float32, or float64 with 64-true, which log SNRs above 30 need.
        compile: backend of torch.compile, such as inductor, for the whole loss or the network.
        channels_last: whether the network's weights are stored with channels last; faster on recent
            GPUs.
        threads: number of CPU threads; by default OMP_NUM_THREADS, or the number of idle cores when
            the run begins. A resumed run keeps its number, unless there are fewer cores; with
            another number it may round differently.
    """

    accelerator: str = "auto"
    precision: Precision = "32-true"
    compile: str | None = None
    channels_last: bool = False
    threads: int | None = None


@dataclass(frozen=True, kw_only=True)
class Folder:
    """The run folder.

    Args:
        run: run folder; by default a new one, runs/<model>-<guide>-<seed>-<k>.
        resume: folder of a run to continue, with its own settings. With --steps the run continues
            to that total number of steps, even if it has ended, at the learning rates of a run of
            that length.
        overwrite: whether a run that is already in the folder --run is replaced. One that ended
            before its first checkpoint is always replaced.
    """

    run: Path | None = None
    resume: Path | None = None
    overwrite: bool = False


@dataclass(frozen=True, kw_only=True)
class Training(Machine, Evaluation, Optimization, ScoreOptions, SimulatedGuide, Guide, DataOptions):
    """Every setting of a run."""

    @classmethod
    def from_config(cls: type[T], config: Mapping[str, Any]) -> T:
        """The settings in a run's configuration (RunError: one is missing; TypeError: one is of
        another type)."""
        settings = {field.name: config[field.name] for field in dataclasses.fields(cls)}
        check_types("config.yaml", settings, typing.get_type_hints(cls))
        return cls(**settings)


@dataclass(frozen=True, kw_only=True)
class Decided(Training):
    """The settings of a run that has begun, with its data set's values in place of defaults."""

    steps: int
    batch_size: int
    learning_rate: float
    measure_every: int
    sampler_steps: int


@dataclass(frozen=True, kw_only=True)
class Options(Folder, Training):
    """Options of ``inference.train``."""

    @property
    def training(self) -> Training:
        """The settings without the folder."""
        return Training(**{f.name: getattr(self, f.name) for f in dataclasses.fields(Training)})

    @property
    def given(self) -> list[str]:
        """The names of options that differ from their defaults."""
        return [f.name for f in dataclasses.fields(self) if getattr(self, f.name) != f.default]


GROUPS: dict[str, type] = {
    "data": DataOptions,
    "guide": Guide,
    "simulation": SimulatedGuide,
    "score": ScoreOptions,
    "optimization": Optimization,
    "evaluation": Evaluation,
    "machine": Machine,
    "folder": Folder,
}
"""The groups of :class:`Options` in the order of --help."""
