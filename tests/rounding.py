"""What the tests would say on a processor that rounds otherwise: ``pytest --rounding-noise``.

A matrix library, a vector unit and a table of exponentials round as they like, so that results of
matrix products, reductions and transcendental functions differ between processors in their last
places. Here each is moved by up to one unit in the last place, and a test that fails then hangs on
how one machine rounds.

As a processor's, the noise is a function of the operation's result: the same operation on the same
numbers in the same shape has the same result again, so that a resumed run is still the run that was
not stopped. In another batch, or by another route, a result differs. Whole numbers and other short
binary fractions are left, since they are nearly always exact on every machine: counts, log 1, a
mean of zeros and ones. Sums, products, quotients and square roots of single numbers are IEEE's, and
the same everywhere.

What compares bits across batches on purpose, or compiles, is marked ``without_noise``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy
import torch
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten

_NAMES = """
    mm addmm bmm baddbmm mv addmv dot convolution convolution_backward
    sum mean var std var_mean std_mean prod cumsum cumprod logsumexp logcumsumexp
    linalg_vector_norm norm
    native_layer_norm native_layer_norm_backward native_group_norm native_group_norm_backward
    _softmax _log_softmax _softmax_backward_data _log_softmax_backward_data
    _scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_flash_attention_for_cpu_backward
    exp exp2 expm1 log log2 log10 log1p logaddexp logit xlogy pow
    sin cos tan asin acos atan atan2 sinh cosh tanh asinh acosh atanh
    sigmoid log_sigmoid_forward silu gelu softplus elu mish tanh_backward sigmoid_backward
    silu_backward gelu_backward softplus_backward log_sigmoid_backward
    erf erfc erfinv lgamma digamma polygamma special_ndtr special_log_ndtr special_ndtri
    special_erfcx special_i0e special_i1e
    linalg_cholesky_ex linalg_solve_triangular linalg_inv_ex linalg_eigh _linalg_eigh _linalg_svd
    _linalg_solve_ex _linalg_det _linalg_slogdet linalg_qr linalg_lu_factor_ex cholesky_solve
    grid_sampler_2d upsample_bilinear2d avg_pool2d fft_r2c _fft_r2c _fft_c2c _fft_c2r
    addcmul addcdiv lerp
"""

MOVED = {getattr(aten, name) for name in _NAMES.split() if hasattr(aten, name)}
"""Operations whose rounding is a matter of the machine."""

_SIZE = 1 << 16
_BITS = numpy.array([0x1E3779B97F4A7C15])  # odd: all bits reach the upper ones
_PLACE = 0x2545F4914F6CDD1D
_KINDS = {  # the integer of the same bits; bits at the end, 0 in a short binary fraction
    torch.float32: (numpy.dtype(numpy.int32), (1 << 8) - 1),
    torch.float64: (numpy.dtype(numpy.int64), (1 << 24) - 1),
}


class RoundingNoise(TorchDispatchMode):
    """Results of MOVED, moved by up to a unit in the last place, by their bits and their place."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        u = numpy.random.default_rng(seed).uniform(-1, 1, _SIZE)
        u[0] = 0.0
        self.factors = {
            dtype: (1 + torch.finfo(dtype).eps * torch.from_numpy(u)).to(dtype).numpy()
            for dtype in _KINDS
        }
        self.places = numpy.arange(_SIZE) * _PLACE

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket in MOVED:
            for tensor in result if isinstance(result, tuple) else (result,):
                self.move(tensor)
        return result

    def move(self, result: object) -> None:
        """Move a fresh result, in place; what is no plain tensor of numbers on the CPU is left."""
        if type(result) is not torch.Tensor or result.dtype not in _KINDS or not result.is_cpu:
            return
        integer, end = _KINDS[result.dtype]
        values = result.numpy()[None]
        number = values.size
        if number > len(self.places):
            self.places = numpy.arange(2 * number) * _PLACE
        bits = values.view(integer)
        mixed = bits * _BITS + self.places[:number].reshape(values.shape)
        index = (mixed >> 40) & (_SIZE - 1)
        index *= (bits & end) != 0
        values *= self.factors[result.dtype].take(index)
