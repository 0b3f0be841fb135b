"""What `torch.nn.attention.varlen.varlen_attn` computes over pages, in plain operations: CPUs have no such kernel."""

import math

import torch


def varlen_attn(
    query, key, value, query_ends, key_ends, longest_query, longest_key, *, scale, window_size, enable_gqa, seqused_k,
    block_table,
) -> torch.Tensor:  # fmt: skip
    """Causal, the last query at the last used key. It checks what the kernel takes for granted."""
    pieces = len(query_ends) - 1
    page = key.shape[1]
    assert key_ends.tolist() == [page * index for index in range(pieces + 1)]
    assert {each.dtype for each in (query_ends, key_ends, seqused_k, block_table)} == {torch.int32}
    assert enable_gqa == (query.shape[1] != key.shape[2])
    assert longest_query == int(query_ends.diff().max())
    assert longest_key >= int(seqused_k.max())
    left, right = window_size
    assert right == 0
    output = torch.full_like(query, math.nan)
    for index in range(pieces):
        own, used = slice(int(query_ends[index]), int(query_ends[index + 1])), int(seqused_k[index])
        slot = int(block_table[index, 0])
        group = query.shape[1] // key.shape[2]
        keys, values = (pool[slot, :used].repeat_interleave(group, dim=1) for pool in (key, value))
        scores = torch.einsum("qhd,khd->hqk", query[own], keys) * scale
        distance = torch.arange(used - (own.stop - own.start), used)[:, None] - torch.arange(used)
        hidden = (distance < 0) | (distance > left if left >= 0 else torch.zeros_like(distance, dtype=torch.bool))
        weights = scores.masked_fill(hidden, -math.inf).softmax(dim=-1)
        output[own] = torch.einsum("hqk,khd->qhd", weights, values)
    return output


@torch.library.custom_op("tandem_tests::varlen_attn", mutates_args=())
def one_operation(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, query_ends: torch.Tensor, key_ends: torch.Tensor,
    longest_query: int, longest_key: int, scale: float, left: int, enable_gqa: bool, seqused_k: torch.Tensor,
    block_table: torch.Tensor,
) -> torch.Tensor:  # fmt: skip
    """The same, as an operation that a recording of operations takes as one."""
    return varlen_attn(
        query, key, value, query_ends, key_ends, longest_query, longest_key, scale=scale, window_size=(left, 0),
        enable_gqa=enable_gqa, seqused_k=seqused_k, block_table=block_table,
    )  # fmt: skip


@one_operation.register_fake
def _(query: torch.Tensor, *_others: object) -> torch.Tensor:
    return torch.empty_like(query)


def recordable_varlen_attn(*tensors, scale, window_size, enable_gqa, seqused_k, block_table) -> torch.Tensor:
    """`varlen_attn` by that operation."""
    assert window_size[1] == 0
    return one_operation(*tensors, scale, window_size[0], enable_gqa, seqused_k, block_table)
