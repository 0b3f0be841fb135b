"""How well a predicted answer agrees with the expected ones, counted as SQuAD does. Plain Python, no torch.

Rajpurkar et al., "SQuAD: 100,000+ Questions for Machine Comprehension of Text" (2016), section 6.1.
"""

import re
import string
from collections import Counter
from collections.abc import Sequence

from worker.training.objectives.entities import f1

ARTICLES = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = str.maketrans("", "", string.punctuation)


def exact_match(predicted: str, expected: Sequence[str]) -> float:
    """1 if `predicted` is one of the expected answers but for case, articles and punctuation, else 0.

    No expected answers stand for a question without one; its prediction is the empty text.
    """
    return float(any(_words(predicted) == _words(answer) for answer in expected or [""]))


def overlap(predicted: str, expected: Sequence[str]) -> float:
    """The best F1 of the words that `predicted` has in common with one of the expected answers."""
    return max(_overlap(_words(predicted), _words(answer)) for answer in expected or [""])


def _overlap(predicted: list[str], expected: list[str]) -> float:
    if not predicted or not expected:
        return float(predicted == expected)
    common = (Counter(predicted) & Counter(expected)).total()
    return f1(common / len(predicted), common / len(expected))


def _words(text: str) -> list[str]:
    return ARTICLES.sub(" ", text.lower().translate(PUNCTUATION)).split()
