"""The hash grid on a CPU: fused loops compiled by numba, with hand-written derivatives.

Gathers are split between threads by points and scatters by levels. No two threads write to the same place, so results
do not depend on the number of threads.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor

from nova3d.fusion.encoding import PRIME_Y, PRIME_Z, GridLayout, HashGrid

_PRIME_Y, _PRIME_Z = np.uint32(PRIME_Y), np.uint32(PRIME_Z)
# Typed as Any: numba's own types say nothing about the functions it compiles.
_loop: Any = njit(nogil=True, fastmath=True, cache=True)
_inline: Any = njit(inline="always")

_MIN_POINTS = 512  # points per thread below which another thread costs more than it saves


class NumbaHashGrid(HashGrid):
    """The hash grid with compiled forward, backward and double backward."""

    def __init__(self, layout: GridLayout, init: float = 1e-4, generator: torch.Generator | None = None) -> None:
        super().__init__(layout, init, generator)
        # Resolution 0 marks a hashed level.
        resolutions = [r if dense else 0 for r, dense in zip(layout.resolutions, layout.dense, strict=True)]
        # A tuple's length is known when a loop is compiled: loops over features are unrolled.
        self.ones = (1,) * layout.features
        self.scales = np.array(layout.scales, dtype=np.float32)
        self.meta = tuple(np.array(v, dtype=np.uint32) for v in (resolutions, layout.sizes, layout.offsets))

    def forward(self, x: Tensor, levels: int) -> "NumbaQuery":
        """See `nova3d.fusion.encoding.HashGrid`."""
        return NumbaQuery(self, x, self.table, levels)

    def arguments(self, x: np.ndarray) -> tuple[Any, ...]:
        """What every compiled loop needs of the layout, with scales in the points' precision."""
        return self.ones, self.scales.astype(x.dtype), *self.meta


class NumbaQuery:
    """See `nova3d.fusion.encoding.GridQuery`."""

    def __init__(self, grid: NumbaHashGrid, x: Tensor, table: Tensor, levels: int) -> None:
        self.grid, self.x, self.table = grid, x, table
        self.features: Tensor = _Features.apply(x, table, grid, levels)

    def pull_back(self, cotangent: Tensor, rows: Tensor | None = None) -> Tensor:
        """See `nova3d.fusion.encoding.GridQuery`."""
        x = self.x if rows is None else self.x.index_select(0, rows)
        gradient: Tensor = _PullBack.apply(x, self.table, cotangent, self.grid)
        return gradient


class _Features(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, table: Tensor, grid: NumbaHashGrid, levels: int) -> Tensor:
        ctx.save_for_backward(x, table)
        ctx.grid = grid
        out = x.new_empty(len(x), levels * grid.layout.features)
        p, t, o = _array(x), _array(table), out.numpy()
        meta = grid.arguments(p)
        _parallel_over(len(x), lambda a, b: _interpolate(p[a:b], t, *meta, o[a:b]), _MIN_POINTS)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        x, table = ctx.saved_tensors
        p, g = _array(x), _array(grads[0])
        meta = ctx.grid.arguments(p)
        d_table, d_x = None, None
        if ctx.needs_input_grad[1]:
            d_table = torch.zeros_like(table)
            levels, out = g.shape[1] // ctx.grid.layout.features, d_table.numpy()
            _parallel_over(levels, lambda a, b: _scatter_features(p, g, *meta, a, b, out), 1)
        if ctx.needs_input_grad[0]:
            d_x = torch.empty_like(x, memory_format=torch.contiguous_format)
            t, out_x = _array(table), d_x.numpy()
            _parallel_over(len(x), lambda a, b: _pull(p[a:b], t, g[a:b], *meta, out_x[a:b]), _MIN_POINTS)
        return d_x, d_table, None, None


class _PullBack(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, table: Tensor, cotangent: Tensor, grid: NumbaHashGrid) -> Tensor:
        ctx.save_for_backward(x, table, cotangent)
        ctx.grid = grid
        out = torch.empty_like(x, memory_format=torch.contiguous_format)
        p, t, c, o = _array(x), _array(table), _array(cotangent), out.numpy()
        meta = grid.arguments(p)
        _parallel_over(len(x), lambda a, b: _pull(p[a:b], t, c[a:b], *meta, o[a:b]), _MIN_POINTS)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor, Tensor, None]:
        x, table, cotangent = ctx.saved_tensors
        p, t, c, g = _array(x), _array(table), _array(cotangent), _array(grads[0])
        meta = ctx.grid.arguments(p)
        d_table, d_c = torch.zeros_like(table), torch.empty_like(cotangent, memory_format=torch.contiguous_format)
        levels, out_t, out_c = c.shape[1] // ctx.grid.layout.features, d_table.numpy(), d_c.numpy()
        _parallel_over(levels, lambda a, b: _scatter_pull(p, t, c, g, *meta, a, b, out_t, out_c), 1)
        d_x = None
        if ctx.needs_input_grad[0]:
            d_x = torch.empty_like(x, memory_format=torch.contiguous_format)
            out_x = d_x.numpy()
            _parallel_over(len(x), lambda a, b: _second(p[a:b], t, c[a:b], g[a:b], *meta, out_x[a:b]), _MIN_POINTS)
        return d_x, d_table, d_c, None


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().contiguous().numpy()


def _parallel_over(count: int, work: Callable[[int, int], None], fewest: int) -> None:
    """Call work(start, stop) on parts of range(count), one per thread that torch may use."""
    threads = max(1, min(torch.get_num_threads(), count // fewest))
    if threads == 1:
        work(0, count)
        return
    edges = [count * part // threads for part in range(threads + 1)]
    others = [_pool(threads).submit(work, a, b) for a, b in pairwise(edges[1:])]
    work(edges[0], edges[1])
    for other in others:
        other.result()


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads - 1, thread_name_prefix="hash-grid")


@_inline
def _entry(x, y, z, resolution, size):  # type: ignore[no-untyped-def]
    """Entry of a corner within its level; resolution 0 means hashed, and `size` is then a power of two."""
    if resolution > 0:
        index = x + (y + z * resolution) * resolution
        # Only the border's far corners pass the size, and points that are not numbers: those may not read elsewhere.
        return index if index < size else index % size
    return (x ^ (y * _PRIME_Y) ^ (z * _PRIME_Z)) & (size - np.uint32(1))


@_inline
def _locate(x, i, scale, resolution, size, start, features, at):  # type: ignore[no-untyped-def]
    """Fill `at` [8] with the table columns of point i's corners (x fastest); returns its position in the cell."""
    half, one = x.dtype.type(0.5), np.uint32(1)
    px, py, pz = x[i, 0] * scale + half, x[i, 1] * scale + half, x[i, 2] * scale + half
    cx, cy, cz = np.uint32(px), np.uint32(py), np.uint32(pz)
    for corner in range(8):
        bx, by, bz = np.uint32(corner) & one, (np.uint32(corner) >> one) & one, np.uint32(corner >> 2)
        at[corner] = np.int64(start + _entry(cx + bx, cy + by, cz + bz, resolution, size)) * features
    return px - x.dtype.type(cx), py - x.dtype.type(cy), pz - x.dtype.type(cz)


@_inline
def _weigh(tx, ty, tz, w):  # type: ignore[no-untyped-def]
    """Fill `w` [8] with the trilinear weights."""
    one = w.dtype.type(1)  # an integer would make it double
    sx, sy, sz = one - tx, one - ty, one - tz
    w[0], w[1], w[2], w[3] = sx * sy * sz, tx * sy * sz, sx * ty * sz, tx * ty * sz
    w[4], w[5], w[6], w[7] = sx * sy * tz, tx * sy * tz, sx * ty * tz, tx * ty * tz


@_inline
def _weigh_along(tx, ty, tz, gx, gy, gz, w):  # type: ignore[no-untyped-def]
    """Fill `w` [8] with the derivatives of the trilinear weights along (gx, gy, gz)."""
    one = w.dtype.type(1)  # an integer would make it double
    sx, sy, sz = one - tx, one - ty, one - tz
    xx0, xx1, xx2, xx3 = gx * sy * sz, gx * ty * sz, gx * sy * tz, gx * ty * tz
    yy0, yy1, yy2, yy3 = gy * sx * sz, gy * tx * sz, gy * sx * tz, gy * tx * tz
    zz0, zz1, zz2, zz3 = gz * sx * sy, gz * tx * sy, gz * sx * ty, gz * tx * ty
    w[0], w[1], w[2], w[3] = -xx0 - yy0 - zz0, xx0 - yy1 - zz1, -xx1 + yy0 - zz2, xx1 + yy1 - zz3
    w[4], w[5], w[6], w[7] = -xx2 - yy2 + zz0, xx2 - yy3 + zz1, -xx3 + yy2 + zz2, xx3 + yy3 + zz3


@_loop
def _interpolate(x, table, ones, scales, resolutions, sizes, offsets, out):  # type: ignore[no-untyped-def]
    features = len(ones)
    at, w = np.empty(8, dtype=np.int64), np.empty(8, dtype=x.dtype)
    for i in range(x.shape[0]):
        for level in range(out.shape[1] // features):
            where = scales[level], resolutions[level], sizes[level], offsets[level]
            tx, ty, tz = _locate(x, i, where[0], where[1], where[2], where[3], features, at)
            _weigh(tx, ty, tz, w)
            for f in range(features):
                value = x.dtype.type(0)
                for corner in range(8):
                    value += w[corner] * table[at[corner] + f]
                out[i, level * features + f] = value


@_loop
def _pull(x, table, cotangent, ones, scales, resolutions, sizes, offsets, out):  # type: ignore[no-untyped-def]
    features = len(ones)
    at, s = np.empty(8, dtype=np.int64), np.empty(8, dtype=x.dtype)
    for i in range(x.shape[0]):
        one = x.dtype.type(1)
        gx, gy, gz = x.dtype.type(0), x.dtype.type(0), x.dtype.type(0)
        for level in range(cotangent.shape[1] // features):
            scale = scales[level]
            tx, ty, tz = _locate(x, i, scale, resolutions[level], sizes[level], offsets[level], features, at)
            for corner in range(8):
                value = x.dtype.type(0)
                for f in range(features):
                    value += table[at[corner] + f] * cotangent[i, level * features + f]
                s[corner] = value * scale
            rx, ry, rz = one - tx, one - ty, one - tz
            x0, x1, x2, x3 = s[1] - s[0], s[3] - s[2], s[5] - s[4], s[7] - s[6]
            gx += (x0 * ry + x1 * ty) * rz + (x2 * ry + x3 * ty) * tz
            y0, y1 = (s[2] - s[0]) * rx + (s[3] - s[1]) * tx, (s[6] - s[4]) * rx + (s[7] - s[5]) * tx
            gy += y0 * rz + y1 * tz
            z0, z1 = (s[4] - s[0]) * rx + (s[5] - s[1]) * tx, (s[6] - s[2]) * rx + (s[7] - s[3]) * tx
            gz += z0 * ry + z1 * ty
        out[i, 0], out[i, 1], out[i, 2] = gx, gy, gz


@_loop
def _scatter_features(x, grad, ones, scales, resolutions, sizes, offsets, first, last, out):  # type: ignore[no-untyped-def]  # fmt: skip
    features = len(ones)
    at, w = np.empty(8, dtype=np.int64), np.empty(8, dtype=x.dtype)
    for level in range(first, last):
        scale, r, size, start = scales[level], resolutions[level], sizes[level], offsets[level]
        for i in range(x.shape[0]):
            tx, ty, tz = _locate(x, i, scale, r, size, start, features, at)
            _weigh(tx, ty, tz, w)
            for corner in range(8):
                for f in range(features):
                    out[at[corner] + f] += w[corner] * grad[i, level * features + f]


@_loop
def _scatter_pull(x, table, cotangent, grad, ones, scales, resolutions, sizes, offsets, first, last, out_t, out_c):  # type: ignore[no-untyped-def]  # fmt: skip
    """Of G = `_pull`: with k = scale * sum_a grad_a dw/dt_a per corner, d table += k c and d c = sum k table."""
    features = len(ones)
    at, w = np.empty(8, dtype=np.int64), np.empty(8, dtype=x.dtype)
    for level in range(first, last):
        scale, r, size, start = scales[level], resolutions[level], sizes[level], offsets[level]
        for i in range(x.shape[0]):
            tx, ty, tz = _locate(x, i, scale, r, size, start, features, at)
            _weigh_along(tx, ty, tz, grad[i, 0] * scale, grad[i, 1] * scale, grad[i, 2] * scale, w)
            for f in range(features):
                c, value = cotangent[i, level * features + f], x.dtype.type(0)
                for corner in range(8):
                    out_t[at[corner] + f] += w[corner] * c
                    value += w[corner] * table[at[corner] + f]
                out_c[i, level * features + f] = value


@_loop
def _second(x, table, cotangent, grad, ones, scales, resolutions, sizes, offsets, out):  # type: ignore[no-untyped-def]
    """d/dx of grad . G: only the mixed second derivatives of trilinear weights are not zero."""
    features = len(ones)
    at, s = np.empty(8, dtype=np.int64), np.empty(8, dtype=x.dtype)
    for i in range(x.shape[0]):
        one = x.dtype.type(1)
        xy, xz, yz = x.dtype.type(0), x.dtype.type(0), x.dtype.type(0)
        for level in range(cotangent.shape[1] // features):
            scale = scales[level]
            tx, ty, tz = _locate(x, i, scale, resolutions[level], sizes[level], offsets[level], features, at)
            for corner in range(8):
                value = x.dtype.type(0)
                for f in range(features):
                    value += table[at[corner] + f] * cotangent[i, level * features + f]
                s[corner] = value * scale * scale
            xy += (s[0] - s[1] - s[2] + s[3]) * (one - tz) + (s[4] - s[5] - s[6] + s[7]) * tz
            xz += (s[0] - s[1] - s[4] + s[5]) * (one - ty) + (s[2] - s[3] - s[6] + s[7]) * ty
            yz += (s[0] - s[2] - s[4] + s[6]) * (one - tx) + (s[1] - s[3] - s[5] + s[7]) * tx
        gx, gy, gz = grad[i, 0], grad[i, 1], grad[i, 2]
        out[i, 0], out[i, 1], out[i, 2] = gy * xy + gz * xz, gx * xy + gz * yz, gx * xz + gy * yz
