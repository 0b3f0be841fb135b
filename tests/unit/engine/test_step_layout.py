"""What the rows of a step see: compared with the definition, position by position."""

import pytest
import torch

from worker.engine.kv.layout import ChunkRows, decode_rows, first_seen
from worker.engine.kv.slots import KVShape, KVSlots

WINDOWS = [None, 5, 1]
HEADS = 2


def sees(window: int | None, position: int, key: int) -> bool:
    """The definition: whether the token at `position` sees the one at `key`."""
    return key <= position and (window is None or position - key < window)


@pytest.fixture
def kv() -> KVSlots:
    return KVSlots(KVShape(1, HEADS, 8), slots=6, slot_tokens=32, dtype=torch.float32, device=torch.device("cpu"))


@pytest.mark.parametrize("window", WINDOWS)
def test_the_first_seen_position_is_the_first_that_the_definition_allows(window: int | None) -> None:
    for position in range(20):
        assert first_seen(position, window) == min(key for key in range(20) if sees(window, position, key))


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize(("start", "length"), [(0, 3), (0, 11), (7, 1), (7, 6), (8, 4)])
def test_a_chunk_sees_what_the_definition_allows(window: int | None, start: int, length: int) -> None:
    chunk = ChunkRows(slot=0, start=start, first=2, end=2 + length)
    first = first_seen(start, window)

    visible = chunk.visible(window, torch.device("cpu")).tolist()

    expected = [[sees(window, start + row, key) for key in range(first, start + length)] for row in range(length)]
    assert visible == expected
    triangle = [[key <= row for key in range(length)] for row in range(length)]
    assert chunk.is_causal(window) == (start == 0 and visible == triangle)


@pytest.mark.parametrize("window", WINDOWS)
def test_decoding_rows_see_what_the_definition_allows_and_no_more_is_read(window: int | None, kv: KVSlots) -> None:
    positions = {1: 13, 2: 6, 4: 9}
    rows = decode_rows(kv, list(positions), list(positions.values()))

    seen = rows.seen(window, kv)

    assert seen.first == min(first_seen(position, window) for position in positions.values())
    open_to_row = (seen.mask == 0).view(4, HEADS, rows.used - seen.first)
    for slot, position in positions.items():
        expected = [sees(window, position, key) for key in range(seen.first, 14)]
        assert open_to_row[slot - 1].tolist() == [expected] * HEADS


def test_a_slot_that_does_not_decode_sees_something(kv: KVSlots) -> None:
    """Its row is computed in vain; with nothing to see it would be NaN."""
    rows = decode_rows(kv, [0, 2], [20, 30])

    mask = rows.seen(3, kv).mask

    assert (mask == 0).any(dim=-1).all()


def test_a_mask_is_made_once_a_step(kv: KVSlots) -> None:
    """Every layer of the same window uses it."""
    rows, chunk = decode_rows(kv, [0], [5]), ChunkRows(slot=1, start=4, first=1, end=5)

    assert rows.seen(3, kv) is rows.seen(3, kv)
    assert chunk.visible(None, kv.device) is chunk.visible(None, kv.device)
