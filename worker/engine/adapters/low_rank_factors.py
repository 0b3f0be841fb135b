"""Products of small matrices as one update of low rank, exactly: what LoHa and LoKr train becomes a pair b a.

A pair (b, a) stands for b @ a, with b [out, rank] and a [rank, in].
"""

import torch

Pair = tuple[torch.Tensor, torch.Tensor]


def hadamard_pair(first: Pair, second: Pair) -> Pair:
    """The pair of (b1 @ a1) * (b2 @ a2), element by element: its rank is the product of the two ranks.

    The sum over i of b1[:, i] a1[i] times that over j of b2[:, j] a2[j] is a sum over all (i, j).
    """
    (b1, a1), (b2, a2) = first, second
    b = (b1.unsqueeze(2) * b2.unsqueeze(1)).flatten(1)
    a = (a1.unsqueeze(1) * a2.unsqueeze(0)).flatten(0, 1)
    return b, a


def kronecker_pair(first: Pair, second: Pair) -> Pair:
    """The pair of kron(b1 @ a1, b2 @ a2): its rank is the product of the two ranks (the mixed-product property)."""
    (b1, a1), (b2, a2) = first, second
    return torch.kron(b1.contiguous(), b2.contiguous()), torch.kron(a1.contiguous(), a2.contiguous())


def whole_as_pair(matrix: torch.Tensor) -> Pair:
    """A whole matrix as the pair of itself and the identity of its smaller side."""
    rows, columns = matrix.shape
    identity = torch.eye(min(rows, columns), dtype=matrix.dtype)
    return (matrix, identity) if columns <= rows else (identity, matrix)
