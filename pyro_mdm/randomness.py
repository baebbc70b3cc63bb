r"""Random numbers of a batch that is computed in pieces, equal to those of the whole batch.

A batch of N data may be spread over processes and over micro-batches, S pieces in all, of which
piece r holds the data r, r + S, r + 2S, …. Within :func:`piece` every draw for n = N/S rows is made
for all N, by a generator with the same seed in every piece, and the piece keeps its own rows. So
the sum of the pieces is the whole batch's loss with the whole batch's noise, and log SNRs are
spread with low discrepancy over all of it. Which row has which stratum is drawn anew each time, so
that a mask or a padding of some rows takes no part of the range with it.

Drawing the other pieces' numbers costs little beside a network call. Outside :func:`piece` the
draws are torch's own, from the global generator.

A density that is estimated by draws should be one function of the datum, wherever it is in a batch.
Within :func:`alike` every datum has the same draws.

The i-th sample of a seed should be the same, however many are drawn at a time. Within
:func:`stream` samples come from generators of their own, one for each :data:`BLOCK` of data.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

__all__ = [
    "BLOCK",
    "alike",
    "blocks",
    "for_data",
    "held",
    "low_discrepancy",
    "normal",
    "normal_for_data",
    "piece",
    "repeatable",
    "rows_asked",
    "seed_from",
    "seed_of_rows",
    "stream",
    "subset",
    "uniform",
]


def seed_from(seed: int, *labels: object) -> int:
    """A seed of 63 bits for one use of randomness, which the labels name."""
    text = repr((seed, *labels)).encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big") >> 1


@dataclass
class _Seeded:
    """Generators of a seed, one for each device."""

    seed: int
    generators: dict[torch.device, torch.Generator] = field(default_factory=dict, kw_only=True)

    def generator(self, device: torch.device | str) -> torch.Generator:
        device = torch.device(device)
        if device not in self.generators:
            self.generators[device] = torch.Generator(device).manual_seed(self.seed)
        return self.generators[device]


@dataclass
class _Piece(_Seeded):
    """The rows of the batch that are computed here, and generators that all pieces seed alike."""

    index: int
    count: int
    rows: tuple[Tensor, int] | None = None  # instead: these rows, of so many

    def rows_of(self, n: int, device: torch.device | str) -> tuple[int, slice | Tensor]:
        """The number of rows to draw where n are needed, and which of them these are."""
        if self.rows is None:
            return n * self.count, slice(self.index, None, self.count)
        rows, total = self.rows
        if n != len(rows):
            raise ValueError(f"{n} rows are drawn, expected {len(rows)} of a subset")
        return total, rows


@dataclass
class _Alike(_Seeded):
    """Draws that are the same for every datum: ``copies`` for each of n data, copy by copy."""

    copies: int
    data: int

    def rows_of(self, n: int, device: torch.device | str) -> tuple[int, Tensor]:
        """The number of copies to draw, and the index of that of each of n rows, (n,)."""
        rows = torch.arange(n, device=device) if _rows is None else _rows
        return self.copies, rows // self.data % self.copies


_current: _Piece | _Alike | None = None
"""How draws are made here; None: by torch's own generator."""


@contextmanager
def _drawing(by: _Piece | _Alike) -> Iterator[None]:
    global _current
    outer, _current = _current, by
    try:
        yield
    finally:
        _current = outer


def piece(index: int, count: int, seed: int) -> AbstractContextManager[None]:
    """A context in which draws are those of piece ``index`` of a batch in ``count`` equal pieces.

    The seed is the same for all pieces of a batch, and another one for each batch.

    Raises:
        ValueError: an index outside [0, count).
    """
    if not 0 <= index < count:
        raise ValueError(f"piece {index} of {count}, expected an index from 0 to {count - 1}")
    return _drawing(_Piece(seed, index, count))


def alike(copies: int, data: int, seed: int) -> AbstractContextManager[None]:
    """A context in which draws for ``copies · data`` rows, copy by copy, are the same for all data.

    Normal draws are antithetic: half of the copies are drawn, and the others are their negatives.
    """
    return _drawing(_Alike(seed, copies, data))


def held(seed: int) -> AbstractContextManager[None]:
    """A context in which draws depend on a seed: the same for all data within :func:`alike`, else
    by position in the batch."""
    if isinstance(_current, _Alike):
        return alike(_current.copies, _current.data, seed)
    return piece(0, 1, seed)


def repeatable(device: torch.device) -> Callable[[], AbstractContextManager[None]]:
    """A function that returns contexts within which the draws of this module repeat.

    Draws of torch's own generator continue, so two runs of a program can differ in these alone.
    """
    here = _current
    generator = None if here is None else here.generator(device)
    seed = int(torch.randint(2**62, (), device=device, generator=generator))
    if isinstance(here, _Alike):
        return lambda: alike(here.copies, here.data, seed)
    index, count = (0, 1) if here is None else (here.index, here.count)
    return lambda: piece(index, count, seed)


def normal(shape: Sequence[int], dtype: torch.dtype, device: torch.device | str) -> Tensor:
    """Standard normal numbers, whose first axis is the data of this piece."""
    if _current is None:
        return torch.randn(tuple(shape), dtype=dtype, device=device)
    generator, (total, chosen) = _current.generator(device), _current.rows_of(shape[0], device)
    mirrored = isinstance(_current, _Alike)
    whole = ((total + 1) // 2 if mirrored else total, *shape[1:])
    drawn = torch.randn(whole, dtype=dtype, device=device, generator=generator)
    return (torch.cat([drawn, -drawn]) if mirrored else drawn)[chosen]


def uniform(shape: Sequence[int], dtype: torch.dtype, device: torch.device | str) -> Tensor:
    """Uniform numbers in [0, 1), whose first axis is the data of this piece."""
    if _current is None:
        return torch.rand(tuple(shape), dtype=dtype, device=device)
    generator, (total, chosen) = _current.generator(device), _current.rows_of(shape[0], device)
    drawn = torch.rand((total, *shape[1:]), dtype=dtype, device=device, generator=generator)
    return drawn[chosen]


def low_discrepancy(n: int, device: torch.device | None = None) -> Tensor:
    """Numbers (n,) float64 in [0, 1): a random offset u and N equal steps in random order.

    They are (u + π_i / N) mod 1 for a random permutation π. N is n, or the size of the whole batch
    whose rows of one piece these are. Within :func:`alike` each datum has a step for each copy.
    """
    device = torch.device("cpu") if device is None else device
    generator = None if _current is None else _current.generator(device)
    # float64, as the log SNRs and times that follow from these numbers
    offset = torch.rand((), dtype=torch.float64, device=device, generator=generator)
    if isinstance(_current, _Alike):
        copies, copy = _current.rows_of(n, device)
        return (offset + copy.double() / copies) % 1.0
    index, count = (0, 1) if _current is None else (_current.index, _current.count)
    order = torch.randperm(n * count, dtype=torch.float64, device=device, generator=generator)
    order = order if count == 1 else order[index::count]
    return torch.add(offset, order, alpha=1 / (n * count)) % 1.0


def seed_of_rows(n: int, device: torch.device) -> tuple[int, int, slice | Tensor | None]:
    """A seed, drawn like the other numbers, for draws of N data; N; and which these n are, or None.

    So what is drawn by the seed for all N is the same in every piece, which keeps its rows.
    """
    if _current is None:
        return int(torch.randint(2**31, ())), n, None
    seed = int(torch.randint(2**31, (), generator=_current.generator(device), device=device))
    return seed, *_current.rows_of(n, device)


@contextmanager
def subset(
    n: int, one_in: int, device: torch.device, copies: int = 1
) -> Iterator[tuple[Tensor, float]]:
    """A context with a random subset, one in ``one_in``, of the batch, with one datum at least.

    Draws are for the n rows of this piece and then for the subset's, ``copies`` times. It yields
    the indices of the chosen ones among the n, (m,), which vary in number from piece to piece; and
    the weight with which a sum over them, summed over the pieces, estimates that over the batch.
    """
    global _current, _rows
    outer, outer_rows = _current, _rows
    outer_piece = outer if isinstance(outer, _Piece) else None
    index, count = (0, 1) if outer_piece is None else (outer_piece.index, outer_piece.count)
    generator = None if outer is None else outer.generator(device)
    total = n * count
    size = max(1, total // one_in)
    chosen = torch.randperm(total, device=device, generator=generator)[:size]
    mine = (chosen % count == index).nonzero().squeeze(1)
    if outer_piece is not None:
        ours = torch.arange(index, total, count, device=device)
        rows = torch.cat([ours] + [total + i * size + mine for i in range(copies)])
        number = total + copies * size
        seed, generators = outer_piece.seed, outer_piece.generators
        _current = _Piece(seed, index, count, (rows, number), generators=generators)
    ours = chosen[mine] // count
    _rows = torch.cat([torch.arange(n, device=device)] + [ours] * copies)
    try:
        yield ours, total / size
    finally:
        _current, _rows = outer, outer_rows


_rows: Tensor | None = None


def rows_asked() -> Tensor | None:
    """Indices of this piece's data that :func:`subset` draws for; None outside of it."""
    return _rows


# -- samples, however many at a time ---------------------------------------------------------------

BLOCK = 16
"""The number of data of a stream that share a generator."""


@dataclass
class _Stream:
    """The next data of a stream, and the generators of their blocks."""

    seed: int
    first: int
    generators: dict[int, torch.Generator] = field(default_factory=dict)

    def generator(self, block: int) -> torch.Generator:
        if block not in self.generators:
            mixed = hashlib.sha256(f"{self.seed} {block}".encode()).digest()
            seed = int.from_bytes(mixed[:8], "big") >> 1
            self.generators[block] = torch.Generator().manual_seed(seed)
        return self.generators[block]


_stream: _Stream | None = None


@contextmanager
def stream(seed: int, first: int = 0) -> Iterator[None]:
    """A context in which :func:`for_data` draws for the data first, first + 1, ….

    Draws depend on the seed and on earlier draws for the same data, on any device.
    """
    global _stream
    outer, _stream = _stream, _Stream(seed, first)
    try:
        yield
    finally:
        _stream = outer


def for_data(
    draw: Callable[[Sequence[int], torch.Generator | None], Tensor],
    shape: Sequence[int],
    device: torch.device,
    generator: torch.Generator | None = None,
) -> Tensor:
    """``draw(shape, generator)`` (n, …), or within :func:`stream` the rows of its n data.

    A generator that is given takes precedence over the stream; None is the global one.
    """
    if _stream is None or generator is not None:
        return draw(shape, generator).to(device)
    n, *rest = shape
    rows = [
        draw((BLOCK, *rest), _stream.generator(block))[chosen]
        for block, chosen in blocks(_stream.first, n)
    ]
    return torch.cat(rows).to(device)


def normal_for_data(
    shape: Sequence[int], device: torch.device, generator: torch.Generator | None = None
) -> Tensor:
    """Standard normal numbers (n, …) in float64, by :func:`for_data`."""

    def draw(shape: Sequence[int], generator: torch.Generator | None) -> Tensor:
        on = device if generator is None else generator.device
        return torch.randn(*shape, generator=generator, dtype=torch.float64, device=on)

    return for_data(draw, shape, device, generator)


def blocks(first: int, n: int) -> Iterator[tuple[int, slice]]:
    """The blocks of the data first, …, first + n - 1, and the rows of these data in each."""
    for block in range(first // BLOCK, (first + n - 1) // BLOCK + 1):
        start = block * BLOCK
        yield block, slice(max(first - start, 0), min(first + n - start, BLOCK))
