"""Contrastive losses that never store the [n, m] matrix of scores, and a gather for negatives of all ranks.

InfoNCE (van den Oord et al. 2018, https://arxiv.org/abs/1807.03748), for a query q with positive key p and negatives N:

    loss = logsumexp over {p} and N of (q . k / temperature)  -  q . p / temperature

NT-Xent (SimCLR, Chen et al. 2020, https://arxiv.org/abs/2002.05709) is InfoNCE between the two views of each sample,
both ways, on L2-normalised vectors, with all other vectors of all ranks as negatives.

Twist: scores are computed in pieces that fit the cache, and each piece is reduced at once: to its sum, its best
negative, and in `info_nce` its gradient. In one process the scores of `nt_xent` are symmetric: half of them are
computed, and again in backward. The positive is added to the sum separately, so that the same pass shows whether it is
the best.

Across ranks: each rank's loss is the mean over its own examples and DDP averages the gradients over ranks. The
gradient through `gather` is summed over ranks, which together gives the gradient of the mean over all examples.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

# Scores in one piece: 4 MiB of float32 stay in the cache of a CPU; a GPU wants fewer and larger pieces.
_CPU_SCORES = 2**20
_GPU_SCORES = 2**24

# Largest |score| whose exponentials float32 can sum over a batch without subtracting a maximum first.
_SAFE_SCORE = 60.0


class Positives(NamedTuple):
    """Targets of a task that looks for one picture of the batch: rows of the pictures, [q] each."""

    query: Tensor
    """The query picture."""
    key: Tensor
    """The picture that it must find among all others."""


def gather(x: Tensor) -> tuple[Tensor, int]:
    """[n, ...] of each rank -> [world * n, ...] of all ranks in rank order, and the row where this rank's part starts.

    Differentiable: the gradient of x is the sum over ranks. Every rank must pass the same shape. Without an
    initialised process group this is (x, 0).
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return x, 0
    return _Gather.apply(x), dist.get_rank() * x.shape[0]  # type: ignore[no-untyped-call]


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        out = x.new_empty(dist.get_world_size() * x.shape[0], *x.shape[1:])
        dist.all_gather(list(out.chunk(dist.get_world_size())), x.contiguous())
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        parts = list(grad.contiguous().chunk(dist.get_world_size()))
        part = torch.empty_like(parts[0])
        dist.reduce_scatter(part, parts)
        return part


def normalise(x: Tensor) -> Tensor:
    """[n, d] -> float32 rows of length 1; as F.normalize, whose backward takes twice the memory."""
    x = x.float()
    out: Tensor = x * torch.linalg.vector_norm(x, dim=1, keepdim=True).clamp_min(1e-12).reciprocal()
    return out


def info_nce(
    query: Tensor,
    keys: Tensor,
    positives: Tensor,
    temperature: float | Tensor,
    exclude: Tensor | None = None,
    chunk: int | None = None,
) -> Tensor:
    """[n] float32: the loss of each query; see `info_nce_and_top1` for the arguments."""
    return info_nce_and_top1(query, keys, positives, temperature, exclude, chunk)[0]


def info_nce_and_top1(
    query: Tensor,
    keys: Tensor,
    positives: Tensor,
    temperature: float | Tensor,
    exclude: Tensor | None = None,
    chunk: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Loss [n] of each query, and [n] with 1 where the positive beats every negative, from one pass over the scores.

    Args:
        query: [n, d] and
        keys: [m, d], used as they are: normalise them first where the method does. Computed in float32.
        positives: [n] long, row of each query's positive in `keys`.
        temperature: divides the scores.
        exclude: [n] or [n, k] long, rows of `keys` that are no negatives of that query (itself, say). Naming the
            positive excludes nothing.
        chunk: queries per piece; by default as many as fit the cache.
    """
    _check_scored(query, keys, positives, temperature)
    scaled = query.float() / temperature
    if exclude is not None:
        positives = torch.cat([positives[:, None], exclude.view(len(query), -1)], 1)
    rows = chunk or max(16, _scores(query) // len(keys))
    loss, top1 = _InfoNCE.apply(scaled, keys.float(), positives.view(len(query), -1), rows)  # type: ignore[no-untyped-call]
    return loss, top1


class _InfoNCE(torch.autograd.Function):
    """`apart` is [n, 1 + k]: the positive, then the excluded rows; none of them counts as a negative.

    Forward also makes the gradients of the sum of the losses. Backward scales them; only where the losses have
    different weights, unlike in a mean, the keys' gradient takes a second pass.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, keys: Tensor, apart: Tensor, chunk: int) -> tuple[Tensor, Tensor]:
        wants_query, wants_keys, *_ = ctx.needs_input_grad
        loss, top1 = query.new_empty(2, len(query)).unbind()
        grad_query = torch.empty_like(query) if wants_query else None
        grad_keys = torch.zeros_like(keys) if wants_keys else None
        for rows, positive, scores in _pieces(query, keys, apart, chunk):
            best = scores.amax(1)
            top1[rows] = (positive > best).float()
            top = torch.maximum(best, positive)
            total = scores.sub_(top[:, None]).exp_().sum(1) + (positive - top).exp()
            loss[rows] = total.log() + (top - positive)
            # d loss / d positive score = softmax - 1 = exp(-loss) - 1
            pull, target = torch.expm1(-loss[rows])[:, None], apart[rows, 0]
            if grad_query is not None:
                out = torch.mm(scores, keys, out=grad_query[rows])
                out.div_(total[:, None]).addcmul_(pull, keys[target])
            if grad_keys is not None:
                grad_keys.addmm_(scores.T, query[rows] / total[:, None])
                grad_keys.index_add_(0, target, pull * query[rows])
        ctx.save_for_backward(query, keys, apart, loss, grad_query, grad_keys)
        ctx.chunk = chunk
        ctx.mark_non_differentiable(top1)
        return loss, top1

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, weight: Tensor, _: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        query, keys, apart, loss, grad_query, grad_keys = ctx.saved_tensors
        if grad_query is not None:
            grad_query = grad_query * weight[:, None]
        if grad_keys is not None and bool((weight == weight[0]).all()):
            grad_keys = grad_keys * weight[0]
        elif grad_keys is not None:
            grad_keys = torch.zeros_like(keys)
            for rows, positive, scores in _pieces(query, keys, apart, ctx.chunk):
                softmax = scores.sub_((loss[rows] + positive)[:, None]).exp_()
                weighted = query[rows] * weight[rows, None]
                grad_keys.addmm_(softmax.T, weighted)
                grad_keys.index_add_(0, apart[rows, 0], weighted * torch.expm1(-loss[rows])[:, None])
        return grad_query, grad_keys, None, None


def _pieces(query: Tensor, keys: Tensor, apart: Tensor, chunk: int) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Rows of queries, the scores of their positives, and [rows, m] scores with -inf at all that are no negatives.

    Each piece overwrites the last. Autocast stays off for the caller's loop body too.
    """
    buffer = query.new_empty(min(chunk, len(query)), len(keys))
    with torch.autocast(query.device.type, enabled=False):
        for start in range(0, len(query), chunk):
            rows = slice(start, min(start + chunk, len(query)))
            scores = buffer[: rows.stop - rows.start]
            torch.mm(query[rows], keys.T, out=scores)
            positive = scores.gather(1, apart[rows, :1])[:, 0]
            yield rows, positive, scores.scatter_(1, apart[rows], -torch.inf)


def nt_xent(z1: Tensor, z2: Tensor, temperature: float) -> Tensor:
    """[n] float32: the loss of each sample, the mean of its two directions; see `nt_xent_and_top1`."""
    return nt_xent_and_top1(z1, z2, temperature)[0]


def nt_xent_and_top1(z1: Tensor, z2: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Loss [n] of each sample, and the share [n] of its two views (0, 0.5 or 1) whose partner is their nearest.

    z1, z2 [n, d] are two views of this rank's samples, not yet normalised; the negatives are all other vectors of all
    ranks, so that chance is 1 / (2 * n * world - 1). Every rank must pass the same n.
    """
    if z1.shape != z2.shape or z1.ndim != 2:
        raise ValueError(f"nt_xent got views of shapes {[*z1.shape]} and {[*z2.shape]}; both must be the same [n, d].")
    _check_temperature(temperature)
    n = len(z1)
    z = normalise(torch.cat([z1, z2]))
    keys, offset = gather(z)
    if keys is z and temperature * _SAFE_SCORE >= 1:
        loss, top1 = _NTXent.apply(z * temperature**-0.5, round(_scores(z) ** 0.5))  # type: ignore[no-untyped-call]
    else:
        own = torch.arange(offset, offset + 2 * n, device=z.device)
        loss, top1 = info_nce_and_top1(z, keys, own.roll(n), temperature, exclude=own)
    return loss.view(2, n).mean(0), top1.view(2, n).mean(0)


class _NTXent(torch.autograd.Function):
    """NT-Xent of one process: the scores z z^T are symmetric, so only blocks on and above the diagonal are computed.

    z is [2n, d], scaled so that z_i . z_j is a score; row i's positive is row i + n (modulo 2n).
    """

    @staticmethod
    def forward(ctx: Any, z: Tensor, block: int) -> tuple[Tensor, Tensor]:
        first, second = z.chunk(2)
        positive = (first * second).sum(1).exp().repeat(2)
        total, best = positive.clone(), torch.zeros_like(positive)
        for rows, columns, scores in _upper_blocks(z, block):
            total[rows] += scores.sum(1)
            torch.maximum(best[rows], scores.amax(1), out=best[rows])
            if rows != columns:
                total[columns] += scores.sum(0)
                torch.maximum(best[columns], scores.amax(0), out=best[columns])
        top1 = (positive > best).float()
        loss = (total / positive).log()
        ctx.save_for_backward(z, total, loss)
        ctx.block = block
        ctx.mark_non_differentiable(top1)
        return loss, top1

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, None]:
        z, total, loss = ctx.saved_tensors
        # Score ij is in the loss of i and in that of j: both softmaxes use the same exponential.
        pull = (grad * torch.expm1(-loss)).view(2, -1).sum(0).repeat(2)
        out = z.roll(len(z) // 2, 0).mul_(pull[:, None])
        weight = grad / total
        for rows, columns, scores in _upper_blocks(z, ctx.block):
            scores.mul_(weight[rows, None] + weight[None, columns])
            out[rows].addmm_(scores, z[columns])
            if rows != columns:
                out[columns].addmm_(scores.T, z[rows])
        return out, None


def _upper_blocks(z: Tensor, block: int) -> Iterator[tuple[slice, slice, Tensor]]:
    """Rows, columns and exp(z z^T) there, 0 at the pairs that are no negatives; each overwrites the last."""
    count = len(z)
    buffer = z.new_empty(min(block, count) ** 2)
    pieces = [slice(start, min(start + block, count)) for start in range(0, count, block)]
    with torch.autocast(z.device.type, enabled=False):
        for index, rows in enumerate(pieces):
            for columns in pieces[index:]:
                shape = (rows.stop - rows.start, columns.stop - columns.start)
                scores = buffer[: shape[0] * shape[1]].view(shape)
                torch.mm(z[rows], z[columns].T, out=scores)
                scores.exp_()
                for distance in (0, count // 2, -(count // 2)):
                    diagonal = distance + rows.start - columns.start
                    if -shape[0] < diagonal < shape[1]:
                        scores.diagonal(diagonal).zero_()
                yield rows, columns, scores


def _scores(x: Tensor) -> int:
    return _CPU_SCORES if x.device.type == "cpu" else _GPU_SCORES


def _check_scored(query: Tensor, keys: Tensor, positives: Tensor, temperature: float | Tensor) -> None:
    if query.ndim != 2 or keys.ndim != 2 or query.shape[1] != keys.shape[1]:
        raise ValueError(
            f"info_nce got query {[*query.shape]} and keys {[*keys.shape]}; they must be [n, d] and [m, d]."
        )
    if positives.shape != query.shape[:1] or positives.dtype != torch.long:
        raise ValueError(
            f"info_nce got positives {[*positives.shape]} of {positives.dtype}; "
            f"they must be [{len(query)}] int64, one row of keys per query."
        )
    if not isinstance(temperature, Tensor):
        _check_temperature(temperature)


def _check_temperature(temperature: float) -> None:
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}; it must be above 0.")
