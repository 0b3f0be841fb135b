"""All rows of a step in one call of flash attention: decoding rows and chunks of prompts, each over its own slot.

The kernel reads the slots where they lie (`TokenMajorSlots`), each as one page of a paged cache, so neither a mask is
made nor a key copied. It wants 16-bit numbers on a CUDA device; who has others keeps the plain attention.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

import torch
from torch.nn.attention.varlen import varlen_attn

from worker.engine.kv.token_major import TokenMajorSlots

if TYPE_CHECKING:
    from worker.engine.kv.layout import ChunkRows

PAGE_TOKENS = 256
"""The tokens of a page must be a multiple of it: a limit of FlashAttention 2, which torch 2.13 carries."""


@dataclass(frozen=True)
class VarlenRows:
    """Where the rows of n pieces stand, in the order of the forward. A piece is a decoding row or a chunk."""

    places: torch.Tensor
    """[rows], int64: where each row's key and value go, counted over all slots."""
    query_ends: torch.Tensor
    """[n + 1], int32: 0, and where each piece's rows end."""
    key_ends: torch.Tensor
    """[n + 1], int32: multiples of a page's tokens. FlashAttention 2 asks for it and counts pieces by it; how far a
    slot is read says `used`."""
    table: torch.Tensor
    """[n, 1], int32: each piece's slot, as the only page of its sequence."""
    used: torch.Tensor
    """[n], int32: tokens of each piece's sequence, the piece's own included. Its last row sees all of them."""
    longest_query: int
    """Rows of the longest piece."""
    longest_key: int
    """At least the largest of `used`."""


def varlen_rows(
    kv: TokenMajorSlots, slots: Sequence[int], positions: Sequence[int], chunks: Sequence["ChunkRows"]
) -> VarlenRows:
    """The layout of a step: the decoding rows' slots and positions, and the chunks behind them. Not for no rows."""
    starts = [*positions, *(chunk.start for chunk in chunks)]
    counts = [1] * len(positions) + [chunk.end - chunk.first for chunk in chunks]
    pages = [*slots, *(chunk.slot for chunk in chunks)]
    used = [start + count for start, count in zip(starts, counts, strict=True)]
    places = [
        page * kv.slot_tokens + position
        for page, start, end in zip(pages, starts, used, strict=True)
        for position in range(start, end)
    ]
    ends = range(0, (len(pages) + 1) * kv.slot_tokens, kv.slot_tokens)
    return VarlenRows(
        places=torch.tensor(places).to(kv.device, non_blocking=True),
        query_ends=_int32([0, *accumulate(counts)], kv.device),
        key_ends=_int32(ends, kv.device),
        table=_int32(pages, kv.device)[:, None],
        used=_int32(used, kv.device),
        longest_query=max(counts),
        longest_key=max(used),
    )


def attend(
    kv: TokenMajorSlots,
    layer: int,
    rows: VarlenRows,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    window: int | None,
    scale: float,
) -> torch.Tensor:
    """Store the step's keys and values, and attend.

    `query` has shape [query heads, rows, head_dim]; `key` and `value` [heads, rows, head_dim]; the result
    [rows, query heads, head_dim]. `window`: how many tokens a token sees, its own included; None: all before it.
    """
    kv.write_places(layer, rows.places, key.transpose(0, 1), value.transpose(0, 1))
    attended = varlen_attn(
        query.transpose(0, 1).to(kv.dtype),
        kv.key_pools[layer],
        kv.value_pools[layer],
        rows.query_ends,
        rows.key_ends,
        rows.longest_query,
        rows.longest_key,
        scale=scale,
        # The kernel counts the tokens to the left of the row's own. (-1, 0) is plain causal attention; the last row
        # of a piece stands at the last of its `used` keys.
        window_size=(-1 if window is None else window - 1, 0),
        enable_gqa=query.shape[0] != kv.shape.heads,
        seqused_k=rows.used,
        block_table=rows.table,
    )
    assert isinstance(attended, torch.Tensor)  # a pair only where more is asked for
    return attended.to(query.dtype)


def _int32(values: Sequence[int], device: torch.device) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32).to(device, non_blocking=True)
