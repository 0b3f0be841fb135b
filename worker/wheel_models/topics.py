"""minilm-topics: a real text classifier, made here out of MiniLM and the questions of chatterbot-corpus."""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from worker.wheel_models.wheels import minilm_folder, wheel_folder

if TYPE_CHECKING:
    from torch import Tensor

MINIMUM_QUESTIONS = 20
"""Distinct questions that make a category a topic: a fifth is held out, and 4 tell little enough."""
NOT_TOPICS = frozenset({"conversations"})
"""Categories that say how people talk and not about what."""
HELD_OUT_ONE_IN = 5
"""Every fifth question, by its digest, is kept from the fit and measures it."""
MEAN_WEIGHT = 30.0
"""How far the mean of all tokens outweighs the first token in the pooling layer (see `_append_pooling_layer`)."""
POOLER_SCALE = 0.25
"""Keeps the pooler's tanh, whose inputs have variance 1, where it is nearly straight."""
WEIGHT_DECAY = 1e-3
"""Of the topic head; five-fold cross-validation on the fitted questions is flat from 1e-4 to 3e-3, then falls."""
FEATURE_ROWS = 64
"""Questions in one forward."""
FIT_ITERATIONS = 300
"""L-BFGS steps; the fit has converged long before."""


class TopicQuestions(NamedTuple):
    """The classifier's data: (question, topic's index) pairs; no question is in both lists."""

    topics: list[str]
    fitted: list[tuple[str, int]]
    held_out: list[tuple[str, int]]


def topic_questions() -> TopicQuestions:
    """The distinct English questions of chatterbot-corpus, by topic; a question of two categories is left out.

    Raises:
        ConfigurationError: the wheel is missing.
    """
    import yaml

    source = wheel_folder("chatterbot_corpus", "chatterbot-corpus", "data/english")
    categories_of: dict[str, set[str]] = {}
    wording: dict[str, str] = {}
    for path in sorted((source / "data/english").glob("*.yml")):
        for question, *_answers in yaml.safe_load(path.read_text(encoding="utf-8"))["conversations"]:
            key = " ".join(str(question).lower().split()).rstrip("?.! ")
            categories_of.setdefault(key, set()).add(path.stem)
            wording.setdefault(key, str(question))
    category = {key: min(found) for key, found in categories_of.items() if len(found) == 1}
    counts = {name: list(category.values()).count(name) for name in set(category.values()) - NOT_TOPICS}
    topics = sorted(name for name, count in counts.items() if count >= MINIMUM_QUESTIONS)
    questions = TopicQuestions(topics, [], [])
    for key, name in category.items():
        if name in topics:
            digest = int(hashlib.sha256(key.encode()).hexdigest(), 16)
            part = questions.held_out if digest % HELD_OUT_ONE_IN == 0 else questions.fitted
            part.append((wording[key], topics.index(name)))
    return questions


def make_topics(folder: Path) -> str:
    """Write MiniLM, frozen, with a linear head fitted to topic_questions() into `folder`; returns a remark.

    The held-out accuracy goes into the configuration and the card.
    """
    import torch
    from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

    questions = topic_questions()
    names = dict(enumerate(questions.topics))
    base = minilm_folder()
    tokenizer = AutoTokenizer.from_pretrained(base)
    config = BertConfig.from_pretrained(base)
    config.num_hidden_layers += 1
    config.id2label, config.label2id = names, {name: index for index, name in names.items()}
    # What the base does not have comes up random; every one of those weights is set below.
    model = BertForSequenceClassification.from_pretrained(base, config=config, dtype=torch.float32).eval()
    _append_pooling_layer(model)

    features, targets = _pooled(model, tokenizer, questions.fitted)
    weight, bias = _fit_head(features, targets, len(names))
    with torch.no_grad():
        model.classifier.weight.copy_(weight)
        model.classifier.bias.copy_(bias)
        features, targets = _pooled(model, tokenizer, questions.held_out)
        right = model.classifier(features).argmax(dim=1) == targets
    accuracy = right.float().mean().item()
    largest = max(targets.bincount().tolist()) / len(targets)

    model.config.tandem_held_out_accuracy = round(accuracy, 4)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "README.md").write_text(_topics_card(questions, accuracy, largest), encoding="utf-8")
    return f"fitted to {len(questions.fitted)} questions, {accuracy:.1%} right of {len(targets)} held out,"


def _append_pooling_layer(model: Any) -> None:
    """Make the last layer of `model` average the tokens, so that BERT's pooler, which reads the first, sees the mean.

    MiniLM was trained for the mean of its token vectors; its first token alone classifies worse. With queries and
    keys of zero, attention is uniform over a text's tokens; values pass unchanged and the feed-forward adds nothing.
    What the first token holds then is LayerNorm(first + MEAN_WEIGHT · mean).
    """
    import torch

    layer = model.bert.encoder.layer[-1]
    with torch.no_grad():
        for linear in (module for module in layer.modules() if isinstance(module, torch.nn.Linear)):
            linear.weight.zero_()
            linear.bias.zero_()
        identity = torch.eye(model.config.hidden_size)
        layer.attention.self.value.weight.copy_(identity)
        layer.attention.output.dense.weight.copy_(MEAN_WEIGHT * identity)
        for norm in (layer.attention.output.LayerNorm, layer.output.LayerNorm):
            norm.weight.fill_(1.0)
            norm.bias.zero_()
        model.bert.pooler.dense.weight.copy_(POOLER_SCALE * identity)
        model.bert.pooler.dense.bias.zero_()


def _pooled(model: Any, tokenizer: Any, rows: list[tuple[str, int]]) -> tuple["Tensor", "Tensor"]:
    """The pooler's output for each question [rows, hidden], and the topics' indices [rows]; shortest first."""
    import torch

    rows = sorted(rows, key=lambda row: len(row[0]))  # like lengths together: little padding
    features = []
    for start in range(0, len(rows), FEATURE_ROWS):
        chunk = [question for question, _ in rows[start : start + FEATURE_ROWS]]
        encoded = tokenizer(chunk, padding=True, return_tensors="pt")
        with torch.no_grad():
            features.append(model.bert(**encoded).pooler_output)
    return torch.cat(features), torch.tensor([topic for _, topic in rows])


def _fit_head(features: "Tensor", targets: "Tensor", labels: int) -> tuple["Tensor", "Tensor"]:
    """Logistic regression: weight [labels, hidden] and bias [labels] of the least penalised cross-entropy."""
    import torch
    import torch.nn.functional as F

    weight = torch.zeros(labels, features.shape[1], requires_grad=True)
    bias = torch.zeros(labels, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=FIT_ITERATIONS, line_search_fn="strong_wolfe")

    def loss() -> float:
        optimizer.zero_grad()
        value = F.cross_entropy(F.linear(features, weight, bias), targets) + WEIGHT_DECAY * weight.square().sum()
        torch.autograd.backward(value)
        return value.item()

    optimizer.step(loss)
    return weight.detach(), bias.detach()


def _topics_card(questions: TopicQuestions, accuracy: float, largest: float) -> str:
    return (
        "# minilm-topics\n\n"
        f"Says what an English question is about: {', '.join(questions.topics)}.\n\n"
        "all-MiniLM-L6-v2, unchanged, one more layer that averages its token vectors, and a linear head fitted to "
        f"the {len(questions.fitted)} distinct questions of chatterbot-corpus (BSD) that were not held out. Of the "
        f"{len(questions.held_out)} held-out questions it gets {accuracy:.1%} right; always answering the most "
        f"frequent topic would get {largest:.1%}. Made by `python -m worker.wheel_models`.\n"
    )
