r"""The generative program: the reverse SDE from the prior to y_ε, then x ~ p(x | y_ε)."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial, singledispatch
from importlib.metadata import entry_points
from numbers import Integral
from typing import Any, cast

import pyro
import torch
from torch import Tensor, nn

from pyro_mdm.contexts import GivenContext
from pyro_mdm.diffusions.base import Diffusion, for_samples, given
from pyro_mdm.guide import (
    OnePath,
    Registered,
    batch_plate,
    check_diffusion,
    check_times,
    grid_times,
    one_thread,
    restored_times,
)
from pyro_mdm.likelihoods.base import Likelihood
from pyro_mdm.paths.base import BoundScore, GenerativePath
from pyro_mdm.paths.chain import GenerativeChain, check_chain
from pyro_mdm.paths.likelihood import Estimator, Method
from pyro_mdm.pretrained import OpenedModel, PretrainedError, open_folder, save_folder
from pyro_mdm.samplers.default import default_sampler
from pyro_mdm.scores.base import Score
from pyro_mdm.support.checks import (
    check_data,
    check_instance,
    check_resolution,
    check_values,
    checked_arguments,
    describe,
)
from pyro_mdm.support.files import JsonObject
from pyro_mdm.support.modules import replace
from pyro_mdm.support.settings import described

__all__ = ["DiffusionModel", "model_of_present"]


class DiffusionModel(Registered):
    r"""The generative program: ``y_ε ~`` reverse SDE, ``x ~ p(x | y_ε)``, for any diffusion.

    The plate of the batch is at dim -1. It is the program's own, ``plate(name, n)``, unless the
    program is called inside one: ``with pyro.plate("N", n, subsample_size=16) as i: model(x[i])``.
    Plates at other dims go around it, and each of their elements then has all data.

    Args:
        diffusion: the noising diffusion that is reversed; the guide is built over the same object.
        score: the score, with its network.
        likelihood: the decoder p(x | y_ε); by default the score's
            (:meth:`~pyro_mdm.scores.Score.default_likelihood`).
        event_shape: shape of one datum, (features,) or (C, *spatial); by default that of the score,
            if it was fitted to data. Scalars have the shape (1,).
        sampler: integrator of the generative SDE; by default
            :func:`~pyro_mdm.samplers.default_sampler`, which takes 25 network calls with a
            denoiser.
        times: times of the path: a number N of times or the times from ε to T, (N,), for the Markov
            chain on that grid (its density is exact, and so are its importance weights); None for
            the process in continuous time, seen at ε.
        plate: name of the plate over the batch, the same as the guide's.
        context: kind of context c of a model of x given c, see :mod:`pyro_mdm.contexts`; None for a
            model of x.

    Raises:
        TypeError: parts of another kind, swapped, or classes instead of objects.
        ValueError: a network whose contexts have another size than the model's, or only one of the
            two with contexts; a given context together with a latent one; an event shape that does
            not fit the network or the score, or none at all; a chain of a diffusion without
            closed-form kernels. On call: data of another shape or precision than the network's, on
            another device, empty or not finite; a context that is missing, or of other data; a
            start time whose noise the precision does not resolve.

    Sites: ``"path"`` (*batch, N, K, *event_shape) and ``"x"`` (*batch, *event_shape), observed when
    given; before them ``"context"`` (*batch, size), where the diffusion depends on one.
    ``Predictive(model, num_samples=1)(batch_size=64)["x"]`` draws samples, (1, 64, *event_shape).

    Example:
        >>> from pyro_mdm import CLD, Denoiser
        >>> from pyro_mdm.networks import MLP
        >>> model = DiffusionModel(CLD(), Denoiser.fit(MLP(2), torch.randn(100, 2)))
        >>> model(batch_size=3).shape
        torch.Size([3, 2])
    """

    def __init__(
        self,
        diffusion: Diffusion,
        score: Score,
        likelihood: Likelihood | None = None,
        event_shape: Sequence[int] | None = None,
        *,
        sampler: Callable[..., Tensor] | None = None,
        times: int | Tensor | None = None,
        plate: str = "data",
        context: GivenContext | None = None,
    ) -> None:
        super().__init__()
        check_parts(diffusion, score, likelihood, sampler)
        score.check_diffusion(diffusion)
        check_times(times)
        with torch.no_grad():  # ends whose noise no precision resolves, or past T
            check_resolution(diffusion.max_log_snr, torch.float64)
            _ = diffusion.start_time
        shape = _event_shape(event_shape, score)
        if times is not None:
            check_chain(diffusion)
        self.diffusion: Any = diffusion
        self.score_function = score
        self.likelihood = likelihood if likelihood is not None else score.default_likelihood()
        self.event_shape = shape
        self.sampler = default_sampler(diffusion, score) if sampler is None else sampler
        self.times = times
        check_instance("plate", plate, str, "it is the name of the plate over the batch")
        self.plate = plate
        if times is not None and getattr(sampler, "alters", False):
            raise ValueError(
                f"sampler is {sampler} and times {times}, a chain that takes no sampler; leave one "
                "of them out"
            )
        check_context(context, diffusion, score)
        self.context = context

    def arguments(self) -> dict[str, object]:
        context = {} if self.context is None else {"context": self.context}
        return context | {
            "diffusion": self.diffusion,
            "score": self.score_function,
            "likelihood": self.likelihood,
            "event_shape": list(self.event_shape),
            "sampler": self.sampler,
            "times": self.times,
            "plate": self.plate,
        }

    def settings(self) -> dict[str, object]:
        return {"event_shape": list(self.event_shape), "times": described(self.times)}

    def restore(self, saved: JsonObject) -> None:
        self.times = restored_times(saved["times"])

    @checked_arguments
    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write ``model.safetensors``, which :meth:`from_pretrained` reads, into a folder.

        It contains the whole model: diffusion, score, network, likelihood and sampler, with a
        checksum. It is complete on the disk before it replaces an earlier one. Other files of the
        folder are left alone. Nothing is pickled.

        Raises:
            PretrainedError: a part without a name, such as a lambda, two classes of one name, or a
                model conditioned on given contexts.
            OSError: the file cannot be written; an earlier one is unchanged.
        """
        if self.score_function.network_context is not None:
            raise PretrainedError(
                "the model is conditioned on a given context, expected one for any context; save "
                "the model before condition(…), and condition it again after loading"
            )
        save_folder(self, folder)

    @classmethod
    @checked_arguments
    def from_pretrained(
        cls, folder: str | os.PathLike[str], *, classes: Mapping[str, object] | None = None
    ) -> DiffusionModel:
        """The model that :meth:`save_pretrained` wrote, on the CPU and in eval mode.

        Its guide is ``DiffusionGuide(model.diffusion)``, with ``model.times`` for a chain. The
        folder of a training run opens too, with the averaged weights. So does a trained model of
        the repository by its name, such as ``"digits"``, where the library is installed from a
        checkout. No code is run from the folder. A sampler that is like the default one is taken
        for it.

        Args:
            folder: folder with ``model.safetensors``, or the name of a trained model.
            classes: parts that are not of this library, by name: a class, a function that makes an
                object, or (once) the object itself, whose parameters are replaced; functions of the
                state as they are. A class that inherits from one of this library's is called with
                its recorded arguments, any other class without any. A class of this library that
                this version lacks may be named here too, and is called with its recorded arguments.

        Returns:
            The model, with parameters of the precision in which they were saved.

        Raises:
            PretrainedError: no such folder, or one that is damaged, of a newer format, or of
                something else; a name that is missing in ``classes``, or whose value does not fit.

        Example:
            >>> from tempfile import TemporaryDirectory
            >>> from pyro_mdm import CLD, Denoiser
            >>> from pyro_mdm.networks import MLP
            >>> model = DiffusionModel(CLD(), Denoiser(MLP(2)), event_shape=(2,))
            >>> with TemporaryDirectory() as folder:
            ...     model.save_pretrained(folder)
            ...     print(DiffusionModel.from_pretrained(folder).diffusion)
            CLD(
              num_variables=2, max_log_snr=13
              (beta): LinearBeta(beta_min=0.1, beta_max=20.0)
            )
        """
        return cls.opened(folder, classes or {}).model

    @classmethod
    def opened(
        cls, folder: str | os.PathLike[str], classes: Mapping[str, object]
    ) -> OpenedModel[DiffusionModel]:
        """The model of a folder as by :meth:`from_pretrained`, with what was saved beside it."""
        opened = open_folder(cls, folder, classes)
        model = opened.model
        default = default_sampler(model.diffusion, model.score_function)
        if repr(model.sampler) == repr(default):
            model.sampler = default
        return opened

    def score(self, y: Tensor, s: Tensor) -> Tensor:
        """s_θ(y, s), like y (*batch, K, *event_shape), for s (*batch)."""
        return self.bound_score(y, s)

    @property
    def bound_score(self) -> BoundScore:
        """``score(y, s)`` and ``denoise(y, s)`` in one object, as samplers take them."""
        learned = self.context is not None and self.context.dropout > 0
        model = self.without_context() if learned else self
        return BoundScore(self.diffusion, model.score_function)

    @checked_arguments
    def log_prob(self, x: Tensor, *, method: Method = "elbo", **options: Any) -> Tensor:
        """A stochastic lower bound on log p(x), (batch,) nats, differentiable in x and the model.

        Args:
            x: data, (batch, *event_shape).
            method: name of the method, ``"elbo"``, ``"importance"`` or ``"flow"``, see
                :mod:`pyro_mdm.paths.likelihood`.
            options: options ``draws``, ``seed``, ``times`` or ``solver`` of
                :class:`~pyro_mdm.paths.likelihood.Estimator`. A seed fixes the draws of a batch.

        Returns:
            The bound of each datum, (batch,), nats.

        Raises:
            TypeError: data or options of another kind.
            ValueError: data or options that do not fit.
        """
        self.check_data(x)
        present, x = self.for_present(x)
        return Estimator(present, method, **options)(x)

    def for_present(self, x: Tensor) -> tuple[DiffusionModel, Tensor]:
        """The model of the present entries of data, and the data with 0 for missing ones.

        Its bound is on the density of the present entries. It is the model of
        :meth:`without_context` where no entry is missing.

        Args:
            x: data, (*batch, *event_shape), NaN where an entry is missing.

        Raises:
            TypeError: a score that cannot leave out a dimension, as it has no maps of log SNR.
            ValueError: a diffusion whose paths depend on all dimensions of a datum.
        """
        model, missing = self.without_context(), x.isnan()
        score = model.score_function
        if not score.maps:  # which raises where an entry is missing
            check_values(~missing.any(), partial(model_of_present, score, model, missing))
            return model, x
        if not bool(missing.any()):
            return model, x
        flat = missing.reshape(-1, *self.event_shape)
        return model_of_present(score, model, flat), torch.where(missing, 0, x)

    def with_score(self, score: Score, likelihood: Likelihood) -> DiffusionModel:
        """The model with another score and decoder, in the same mode."""
        model = DiffusionModel(
            self.diffusion,
            score,
            likelihood,
            self.event_shape if score.event_shape is None else score.event_shape,
            sampler=self.sampler,
            times=self.times,
            plate=self.plate,
            context=self.context,
        )
        return model if self.training else model.eval()

    @property
    def num_dims(self) -> int:
        """The number d of dimensions by which bits/dim are divided.

        It is the number of columns, where a column has several dimensions
        (:attr:`~pyro_mdm.scores.Score.groups`).
        """
        groups = self.score_function.groups
        return self.event_shape.numel() if groups is None else int(groups.max()) + 1

    def path_law(self, context: Tensor | None = None) -> GenerativePath | GenerativeChain:
        """The distribution of the generative path of one datum, or of one for each of the latent
        contexts (*batch, size) where the diffusion depends on one."""
        model = self if self.context is None else self.without_context()
        diffusion, score, shape = self.diffusion, model.score_function, self.event_shape
        if context is not None:
            diffusion, score = model.given(context)
        if self.times is None:
            return GenerativePath(diffusion, score, shape, sampler=self.sampler)
        return GenerativeChain(diffusion, score, shape, grid_times(diffusion, self.times))

    def given_context(self, context: object, *, drop: bool = False) -> DiffusionModel:
        """The model of data with these contexts, which shares its parameters.

        Args:
            context: contexts, (*shape) for all data or (*batch, *shape); None: the model itself.
            drop: whether to hide contexts from a fraction of the data, as training does; one for
                all data is not hidden, and none is an error: it would be learned as unknown.

        Raises:
            TypeError: contexts of another kind.
            ValueError: invalid contexts, or a model without contexts.
        """
        if context is None:
            if drop and self.context is not None:
                raise _none_given(self.context)
            return self
        checked, ours = self.checked_context(context), cast(GivenContext, self.context)
        encoding = ours.encode(checked)
        if drop and encoding.dim() > 1:
            encoding = ours.drop(encoding.flatten(0, -2)).reshape(encoding.shape)
        score = self.score_function.given_context(encoding, knows_unknown=ours.dropout > 0)
        return replace(self, score_function=score, context=None)

    def without_context(self) -> DiffusionModel:
        """The model of x alone: that of an unknown context, which a network learns by dropout; the
        model itself where it has no context, or was given one.

        Raises:
            ValueError: a network that always knew the context.
        """
        if self.context is None:
            return self
        if not self.context.dropout:
            raise _none_given(self.context)
        return self.given_context(self.context.unknown)

    def checked_context(self, context: object) -> Tensor:
        """Contexts (*batch, *shape) as a tensor; errors are those of :meth:`given_context`."""
        if self.context is None:
            is_given = self.score_function.network_context is not None
            fix = "condition the model of any context" if is_given else "make it with Labels(10)"
            raise ValueError(
                f"context is {describe(context)}, but the model "
                f"{'has been given its context already' if is_given else 'is one of x alone'}; "
                f"leave context out, or {fix}"
            )
        return self.context.check(context)

    def for_rows(self, rows: Tensor) -> DiffusionModel:
        """The model of the data at indices (m,), where contexts or observations are given for each
        of n data; else itself."""
        score = self.score_function.for_rows(rows)
        return self if score is self.score_function else replace(self, score_function=score)

    def given(self, context: Tensor | None) -> tuple[Any, Score]:
        """The diffusion and score of data with latent contexts, (*batch, size), or the model's."""
        if context is None:
            return self.diffusion, self.score_function
        return given(self.diffusion, context), self.score_function.given_context(context)

    def drawn(self, n: int) -> tuple[Any, BoundScore]:
        """The diffusion and ``bound_score`` of n samples, whose latent contexts, if there are any,
        are drawn from their prior."""
        drawn = for_samples(self.diffusion, n)
        if drawn.context is None:
            return drawn.diffusion, self.bound_score
        score = self.score_function.given_context(drawn.context)
        return drawn.diffusion, BoundScore(drawn.diffusion, score)

    def forward(
        self,
        x: Tensor | None = None,
        given: object = None,
        *,
        batch_size: int | None = None,
        num_data: int | None = None,
    ) -> Tensor:
        """Run the program: generate data, or score those that are given.

        Args:
            x: data, (batch, *event_shape); None to generate. Inside plates at dims -2, … they may
                have the plates' sizes before the batch's. Entries that are NaN are missing: a
                denoiser with maps leaves them out (:meth:`for_present`), others raise.
            given: contexts of these data in a model with contexts, (batch, *shape), or one for all,
                (*shape). In training mode they are hidden from a fraction of the given data
                (:class:`~pyro_mdm.contexts.GivenContext`). None: see :meth:`without_context`;
                training on data needs them.
            batch_size: number of data to generate; by default the size of the surrounding plate.
            num_data: size of the data set of which x is a subsample; scales the loss.

        Returns:
            The data, given or generated, (batch, *event_shape).

        Raises:
            ValueError: x of another shape, sizes of batch and plates that disagree, contexts that
                are missing or of other data, or a guide over another diffusion.
        """
        event_dim, batch_shape, observed = len(self.event_shape), torch.Size(), x
        with one_thread(self):
            model = self
            if given is not None or self.context is not None:
                model = self.given_context(given, drop=self.training and x is not None)
                model = model.without_context()
            if x is not None:
                model.check_data(x)
                batch_shape = x.shape[: x.dim() - event_dim]
                if model.score_function.maps:
                    model, observed = model.for_present(x)
            with batch_plate(self.plate, batch_shape, batch_size, num_data):
                context = None
                if (latent := self.diffusion.context) is not None:
                    context = pyro.sample("context", latent.prior())
                law = model.path_law(context)
                with OnePath() as one:
                    path = pyro.sample("path", law)
                y = path.select(-2 - event_dim, 0)
                decoder = model.likelihood(one.diffusion, law.score, y, event_dim)
                drawn = pyro.sample("x", decoder, obs=observed)
            return drawn if x is None else x

    def check_data(self, x: Tensor) -> None:
        """Raises TypeError or ValueError unless x is data of the model, (batch, *event_shape)."""
        missing, weight = self.score_function.maps, next(self.score_function.parameters(), None)
        device, dtype = (None, None) if weight is None else (weight.device, weight.dtype)
        check_data("x", x, device, missing=missing, values=False)
        event_dim = len(self.event_shape)
        if x.dim() <= event_dim or x.shape[x.dim() - event_dim :] != self.event_shape:
            raise ValueError(
                f"x has shape {tuple(x.shape)}, expected (batch, "
                f"{', '.join(map(str, self.event_shape))}); {_reshaped(x, self.event_shape)}"
            )
        if dtype not in (None, x.dtype):
            raise ValueError(
                f"x is {x.dtype} and the network's weights are {dtype}, expected one precision; "
                f"pass x.to({dtype}), or cast the network: model.to({x.dtype})"
            )
        with torch.no_grad():
            square = (torch.where(x.isnan(), 0, x) if missing else x).square().mean()
            precision = torch.finfo(x.dtype)
            # the rounding of x, its root mean square times eps, must stay below the noise e^{-λ/2}
            most = min(precision.eps**-2 * math.exp(-self.diffusion.max_log_snr), precision.max)
            check_values(square <= most, partial(_report_data, self, x))  # false for NaN too
            if self.context is not None or self.score_function.network_context is not None:
                self.check_given(x)
            self.score_function.check_data(x)

    def check_given(self, x: Tensor) -> None:
        """Raises ValueError unless contexts, if any, fit data x (*batch, *event_shape)."""
        contexts = self.without_context().score_function.network_context
        lead = x.shape[: x.dim() - len(self.event_shape)]
        if contexts is None or contexts.dim() == 1:
            return
        if contexts.shape[:-1] != lead[1 - contexts.dim() :]:
            raise ValueError(
                f"contexts are of {tuple(contexts.shape[:-1])} data and x of {tuple(lead)}, "
                "expected one for each; give the contexts of these data, or one for all"
            )


def _report_data(model: DiffusionModel, x: Tensor) -> None:
    """Raises ValueError for entries that are not finite, or below the noise that precision
    resolves."""
    check_data("x", x, missing=model.score_function.maps)
    square = torch.where(x.isnan(), 0, x).double().square().mean()
    check_resolution(model.diffusion.max_log_snr, x.dtype, float(square))


def _none_given(context: GivenContext) -> ValueError:
    return ValueError(
        f"the model is one of x given a context, {type(context).__name__}, and none is given; pass "
        "it to the program, model(x, given=c), or use condition(model, context=c)"
    )


@singledispatch
def model_of_present(score: Score, model: DiffusionModel, missing: Tensor) -> DiffusionModel:
    """The model of the present entries of data, with shared parameters.

    Dispatched on the kind of score, for which a package registers it, such as
    :mod:`pyro_mdm.conditioning` for denoisers, and says so by an entry point of the group
    ``pyro_mdm.missing_entries``.

    Args:
        score: the model's score.
        model: the model of all entries.
        missing: mask of the missing entries, bool, (n, *event_shape).

    Raises:
        TypeError: a score that cannot leave out a dimension.
    """
    for entry_point in entry_points(group="pyro_mdm.missing_entries"):
        with suppress(ModuleNotFoundError):
            entry_point.load()
    registered = model_of_present.dispatch(type(score))
    if registered is not model_of_present.dispatch(object):
        return registered(score, model, missing)
    raise TypeError(
        f"x has {int(missing.sum())} missing entries (NaN), and {type(score).__name__} cannot "
        "leave out a dimension; use a Denoiser or DiscreteDenoiser with maps=True, and import "
        "pyro_mdm.conditioning, or fill them in"
    )


def check_parts(
    diffusion: Diffusion, score: Score, likelihood: object = None, sampler: object = None
) -> None:
    """Raises TypeError unless the parts of a model are objects of their kind, in this order."""
    if isinstance(diffusion, Score) and isinstance(score, Diffusion):
        raise TypeError(
            f"diffusion is {describe(diffusion)} and score {describe(score)}: they are swapped; "
            "write DiffusionModel(diffusion, score)"
        )
    check_diffusion(diffusion)
    if isinstance(score, nn.Module) and not isinstance(score, (Score, Diffusion, Likelihood)):
        raise TypeError(
            f"score is {describe(score)}, a network, expected a score that owns it; wrap it: "
            "Denoiser.fit(network, train_x), or DiscreteDenoiser.fit for data with levels"
        )
    check_instance("score", score, Score, "make one by Denoiser.fit(network, train_x)")
    if likelihood is not None:
        fix = "leave it out for the score's own, or see pyro_mdm.likelihoods"
        check_instance("likelihood", likelihood, Likelihood, fix)
    if sampler is not None and (isinstance(sampler, type) or not callable(sampler)):
        raise TypeError(
            f"sampler is {describe(sampler)}, expected one with its number of steps; pass "
            "sampler=ExponentialIntegrator(25) of pyro_mdm.samplers, or leave it out"
        )


def check_context(context: GivenContext | None, diffusion: Diffusion, score: Score) -> None:
    """Raises ValueError unless the network takes the context that the model is given."""
    size, latent = getattr(score.network, "context_size", 0), diffusion.context
    if context is None:
        sizes = (0,) if latent is None else (0, latent.size)
        if size not in sizes and score.network_context is None:
            raise ValueError(
                f"the network takes a context of {size} numbers and the model has none; pass "
                f"context=Labels({size}), or build the network without context"
            )
        return
    check_instance("context", context, GivenContext, "e.g. Labels(10)")
    if latent is not None:
        raise ValueError(
            f"{type(diffusion).__name__} has a latent context of its own, and the model is given "
            f"one, {type(context).__name__}; use a diffusion without, or leave context out"
        )
    if size not in (0, context.size):
        raise ValueError(
            f"the network takes a context of {size} numbers, and {type(context).__name__} has "
            f"{context.size}; build the network with context={context.size}"
        )


def _reshaped(x: Tensor, event_shape: torch.Size) -> str:
    """Advice on data of another shape, for messages."""
    if x.shape == event_shape:
        return (
            "add the batch dimension, x[None] (or, if these are several data, fit the score to "
            "them: Denoiser.fit(network, x))"
        )
    if x.dim() > 2 and x.movedim(-1, 1).shape[1:] == event_shape:
        return "channels come first, x.movedim(-1, 1)"
    if x.dim() and x[0].numel() == event_shape.numel():
        return f"reshape the data, x.reshape(-1, {', '.join(map(str, event_shape))})"
    return "build the model for the shape of one datum, event_shape"


def _event_shape(given: Sequence[int] | None, score: Score) -> torch.Size:
    """The shape of one datum, as given or that of the score."""
    score_shape = getattr(score, "event_shape", None)
    shape = score_shape if given is None else given
    if shape is None:
        raise ValueError(
            f"event_shape is not given, and {type(score).__name__} takes data of any shape; pass "
            "that of one datum, e.g. event_shape=(2,) or (1, 28, 28)"
        )
    whole = isinstance(shape, Sequence) and not isinstance(shape, str)
    if not whole or not all(isinstance(n, Integral) and int(n) > 0 for n in shape):
        raise ValueError(
            f"event_shape is {shape!r}, expected a sequence of positive sizes, e.g. (2,) for "
            "vectors of two or (1, 28, 28) for images"
        )
    shape = tuple(shape)
    if not shape:
        raise ValueError(
            "event_shape is (), expected (features,) or (C, *spatial), which networks take; give "
            "scalars the event shape (1,) and pass them as x[:, None]"
        )
    if score_shape is not None and shape != tuple(score_shape):
        raise ValueError(
            f"event_shape is {shape}, but {type(score).__name__} was made for data of shape "
            f"{tuple(score_shape)}; leave event_shape out, or fit the score to such data"
        )
    return torch.Size(shape)
