"""What an adapter puts before the prompt: keys and values (prefix tuning) or embeddings (prompt tuning)."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True, eq=False)
class PrefixKV:
    """Trained keys and values for the first positions (Li & Liang 2021)."""

    keys: torch.Tensor
    """[layers, heads, virtual tokens, head_dim]"""
    values: torch.Tensor

    @property
    def length(self) -> int:
        """Positions that it fills."""
        return self.keys.shape[2]


@dataclass(frozen=True, eq=False)
class VirtualTokens:
    """Trained embeddings that are read before the prompt (Lester et al. 2021)."""

    embeddings: torch.Tensor
    """[virtual tokens, hidden size]"""

    @property
    def length(self) -> int:
        """Positions that they fill."""
        return len(self.embeddings)
