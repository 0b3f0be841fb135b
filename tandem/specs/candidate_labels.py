"""The caller's own labels in zero-shot tasks, and the sentence that each is put into."""

from typing import Annotated

from pydantic import AfterValidator, Field

MAX_CANDIDATE_LABELS = 1024
"""Labels to choose among."""
MAX_LABEL_CHARACTERS = 1024
"""In one label or template: they are named things, and a model reads them beside the input."""
MAX_PAIRS = 65_536
"""Inputs times labels of one job: each pair is a row of a forward, or costs as much."""

CandidateLabels = Annotated[
    tuple[Annotated[str, Field(min_length=1, max_length=MAX_LABEL_CHARACTERS)], ...],
    Field(min_length=1, max_length=MAX_CANDIDATE_LABELS),
]


def _has_one_place_for_the_label(template: str) -> str:
    # The library calls str.format on it: any other braces could reach into the label, or ask for endless padding.
    if template.count("{}") != 1 or template.count("{") != 1 or template.count("}") != 1:
        raise ValueError("must have `{}` once, where the label goes, and no other braces")
    return template


HypothesisTemplate = Annotated[
    str, Field(max_length=MAX_LABEL_CHARACTERS), AfterValidator(_has_one_place_for_the_label)
]
"""What is claimed of the input, with `{}` where the label goes."""


def refuse_too_many_pairs(inputs: object, labels: CandidateLabels) -> None:
    """Raises ValueError if one job asks for more than MAX_PAIRS pairs of an input and a label."""
    count = len(inputs) if isinstance(inputs, tuple) else 1
    if count * len(labels) > MAX_PAIRS:
        raise ValueError(
            f"`inputs` ({count}) times `candidate_labels` ({len(labels)}) are more than {MAX_PAIRS} pairs: send "
            "several jobs"
        )
