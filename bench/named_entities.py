"""Sentences with people, companies and places, made of the names that the wheel Faker ships."""

import importlib
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

WHEEL = "faker==40.63.0"
FOLDER = Path.home() / ".cache" / "tandem" / "bench-data"
SEED = 1

TRAINING_TEMPLATES = (
    "{person} works at {company} in {place} .",
    "the headquarters of {company} are in {place} .",
    "yesterday {person} left {place} for {place} .",
    "{company} has named {person} as its new director .",
    "people in {place} know {person} well .",
    "shares of {company} fell after {person} had sold his own .",
    "{person} and {person} met in {place} to found {company} .",
    "the road to {place} was closed on monday .",
    "nobody answered the phone that night .",
    "a spokesman of {company} refused to comment .",
)
TEST_TEMPLATES = (
    "according to {person} , the offices of {company} will move to {place} .",
    "{place} welcomed {person} with flowers .",
    "{person} bought {company} last year .",
    "the train from {place} was late again .",
    "it rained all week and the fields were under water .",
)
"""None of them is trained on, and none of the names in them."""


def sentences(count: int, *, training: bool) -> list[dict[str, Any]]:
    """`{"tokens", "tags"}` with tags B-/I- of PER, ORG and LOC; training and test share no name and no template."""
    names = {kind: half[0 if training else 1] for kind, half in _names().items()}
    templates = TRAINING_TEMPLATES if training else TEST_TEMPLATES
    chance = random.Random(SEED + training)
    return [_sentence(chance.choice(templates), names, chance) for _ in range(count)]


def _sentence(template: str, names: dict[str, list[str]], chance: random.Random) -> dict[str, Any]:
    tokens: list[str] = []
    tags: list[str] = []
    for word in template.split():
        kind = {"{person}": "PER", "{company}": "ORG", "{place}": "LOC"}.get(word)
        if kind is None:
            tokens.append(word)
            tags.append("O")
            continue
        name = chance.choice(names[kind]).replace(",", " ,").split()
        tokens += name
        tags += [f"B-{kind}", *[f"I-{kind}"] * (len(name) - 1)]
    return {"tokens": tokens, "tags": tags}


def _names() -> dict[str, tuple[list[str], list[str]]]:
    """Names of each kind, in two halves that share none of their words but the companies' forms."""
    if not (FOLDER / "faker").exists():
        subprocess.run(
            [sys.executable, "-m", "uv", "pip", "install", "--quiet", "--no-deps", "--target", FOLDER, WHEEL],
            check=True,
        )
    sys.path.append(str(FOLDER))
    person = importlib.import_module("faker.providers.person.en_US").Provider
    address = importlib.import_module("faker.providers.address.en_GB").Provider
    chance = random.Random(SEED)

    def halves(words: list[str]) -> tuple[list[str], list[str]]:
        shuffled = chance.sample(sorted(set(words)), len(set(words)))
        return shuffled[::2], shuffled[1::2]

    first, last = halves(list(person.first_names)), halves(list(person.last_names))
    prefixes, suffixes = halves(list(person.last_names)), tuple(address.city_suffixes)
    forms = ("Inc", "Ltd", "Group", "and Sons", "PLC")
    made: dict[str, tuple[list[str], list[str]]] = {}
    for kind in ("PER", "ORG", "LOC"):
        sides = []
        for side in (0, 1):
            if kind == "PER":
                made_names = [f"{chance.choice(first[side])} {chance.choice(last[side])}" for _ in range(2000)]
            elif kind == "ORG":
                made_names = [f"{chance.choice(last[side])} {chance.choice(forms)}" for _ in range(2000)]
            else:
                made_names = [f"{chance.choice(prefixes[side])}{chance.choice(suffixes)}" for _ in range(2000)]
            sides.append(made_names)
        made[kind] = (sides[0], sides[1])
    return made
