"""Named entities in BIO tags: which words make one, and how well two taggings agree. Plain Python, no torch."""

from collections.abc import Sequence

OUTSIDE = "O"
"""The tag of a word that belongs to no entity."""

Entity = tuple[str, int, int]
"""Kind, first word, and the word after the last."""


def entities(tags: Sequence[str]) -> set[Entity]:
    """The entities of one sentence.

    `B-X` begins an entity of kind X, `I-X` goes on with one, or begins it where none of its kind goes before (as the
    CoNLL-2003 scorer reads it). A tag without such a prefix counts as `I-` of its own name, as in transformers'
    pipeline.
    """
    found: set[Entity] = set()
    kind, start = OUTSIDE, 0
    for place, tag in enumerate([*tags, OUTSIDE]):
        begins, next_kind = _read(tag)
        if begins or next_kind != kind:
            if kind != OUTSIDE:
                found.add((kind, start, place))
            kind, start = next_kind, place
    return found


def f1(precision: float, recall: float) -> float:
    """Their harmonic mean; 0 when both are."""
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _read(tag: str) -> tuple[bool, str]:
    """Whether the tag always begins an entity, and the entity's kind."""
    prefix, dash, kind = tag.partition("-")
    if dash and prefix in ("B", "I"):
        return prefix == "B", kind
    return False, tag
