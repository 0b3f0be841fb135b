"""Slots laid out as CUDA's attention kernels read them: one token's heads side by side."""

import torch

from worker.engine.kv.slots import KVShape, KVSlots


class TokenMajorSlots(KVSlots):
    """The same slots, with `keys` and `values` as views of pools of shape [slots, slot_tokens, heads, head_dim].

    Flash attention reads a pool of pages of that shape in place, and a slot is one page. The plain attention and all
    that copies slots go through the views and give the same; only plain decoding copies what it reads, since the
    products that it makes want one head's tokens side by side.
    """

    def __init__(
        self, shape: KVShape, *, slots: int, slot_tokens: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        """Allocates all memory now, as `KVSlots` does."""
        # The sizes are the same, but the memory is not: on `meta` it takes none.
        super().__init__(shape, slots=slots, slot_tokens=slot_tokens, dtype=dtype, device=torch.device("meta"))
        self.device = device
        size = (slots, slot_tokens, shape.heads, shape.head_dim)
        self.key_pools = [torch.zeros(size, dtype=dtype, device=device) for _ in range(shape.layers)]
        self.value_pools = [torch.zeros(size, dtype=dtype, device=device) for _ in range(shape.layers)]
        self.keys = [pool.transpose(1, 2) for pool in self.key_pools]
        self.values = [pool.transpose(1, 2) for pool in self.value_pools]

    def write_places(self, layer: int, places: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Write one token for each of n rows.

        `places`, [n], int64, are counted over all slots (`slot * slot_tokens + position`); `keys` and `values` have
        shape [n, heads, head_dim].
        """
        self.key_pools[layer].flatten(0, 1).index_copy_(0, places, keys.to(self.dtype))
        self.value_pools[layer].flatten(0, 1).index_copy_(0, places, values.to(self.dtype))
