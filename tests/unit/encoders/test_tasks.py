"""Each encoder task gives what the library's own pipeline gives, and refuses by name what it cannot do."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tokenizers.processors import ByteLevel
from transformers import pipeline

from tandem.errors import InvalidModel, InvalidRequest, PromptTooLong, UnsupportedTask
from tandem.specs import ClassificationParameters, EmbeddingParameters, FillMaskParameters
from tandem.specs.encoders import TextPair
from tests.unit.encoders.tiny_models import ARCHITECTURES, LABELS, MAX_TOKENS, texts_for, tiny_model
from worker.tasks import MODEL_CLASSES
from worker.tasks.encoder_task import EncoderTask
from worker.tasks.feature_extraction import FeatureExtraction
from worker.tasks.fill_mask import FillMask
from worker.tasks.text_classification import TextClassification

TOLERANCE = 1e-5
"""Between one padded batch and one text alone, float32: rounding in another order of summation."""


def results(task: EncoderTask[Any, Any], texts: list[str], parameters: Any) -> list[Any]:
    """The task's results in one padded batch."""
    rows = [pieces[0] for pieces in task.encode(texts, parameters)]
    outputs = task.forward(rows, list)
    return [task.result([output], [row], parameters) for output, row in zip(outputs, rows, strict=True)]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
class TestAgainstThePipeline:
    def test_feature_extraction_is_the_mean_of_the_pipelines_token_vectors(self, architecture: str) -> None:
        model, tokenizer = tiny_model(architecture, "feature-extraction")
        texts = texts_for("feature-extraction", tokenizer)
        found = results(FeatureExtraction(model, tokenizer), texts, EmbeddingParameters(normalize=False))
        reference: Any = pipeline("feature-extraction", model=model, tokenizer=tokenizer, device="cpu")
        for text, vector in zip(texts, found, strict=True):
            expected = torch.tensor(reference(text)[0]).mean(dim=0)
            torch.testing.assert_close(torch.tensor(vector), expected, atol=TOLERANCE, rtol=TOLERANCE)

    def test_normalized_vectors_have_length_one_and_the_same_direction(self, architecture: str) -> None:
        model, tokenizer = tiny_model(architecture, "feature-extraction")
        task = FeatureExtraction(model, tokenizer)
        texts = texts_for("feature-extraction", tokenizer)
        plain = torch.tensor(results(task, texts, EmbeddingParameters(normalize=False)))
        scaled = torch.tensor(results(task, texts, EmbeddingParameters(normalize=True)))
        torch.testing.assert_close(scaled, F.normalize(plain, dim=1), atol=TOLERANCE, rtol=TOLERANCE)

    def test_fill_mask_gives_the_pipelines_fillings(self, architecture: str) -> None:
        model, tokenizer = tiny_model(architecture, "fill-mask")
        texts = texts_for("fill-mask", tokenizer)
        found = results(FillMask(model, tokenizer), texts, FillMaskParameters(top_k=7))
        reference: Any = pipeline("fill-mask", model=model, tokenizer=tokenizer, device="cpu")
        for text, fillings in zip(texts, found, strict=True):
            expected = reference(text, top_k=7)
            assert [dict(filling, score=None) for filling in fillings] == [
                dict(filling, score=None) for filling in expected
            ]
            assert [filling["score"] for filling in fillings] == pytest.approx(
                [filling["score"] for filling in expected], abs=TOLERANCE
            )

    @pytest.mark.parametrize("function", ["softmax", "sigmoid", "none"])
    @pytest.mark.parametrize("top_k", [None, 2])
    def test_text_classification_gives_the_pipelines_labels(
        self, architecture: str, function: Any, top_k: int | None
    ) -> None:
        model, tokenizer = tiny_model(architecture, "text-classification")
        texts = texts_for("text-classification", tokenizer)
        parameters = ClassificationParameters(top_k=top_k, function_to_apply=function)
        found = results(TextClassification(model, tokenizer), texts, parameters)
        reference: Any = pipeline("text-classification", model=model, tokenizer=tokenizer, device="cpu")
        for text, labels in zip(texts, found, strict=True):
            # The pipeline wraps a single text's labels or not, depending on top_k.
            (expected,) = reference([text], top_k=top_k, function_to_apply=function)
            assert [entry["label"] for entry in labels] == [entry["label"] for entry in expected]
            assert [entry["score"] for entry in labels] == pytest.approx(
                [entry["score"] for entry in expected], abs=TOLERANCE
            )

    def test_a_text_of_exactly_the_limit_runs_and_one_token_more_is_refused_by_name(self, architecture: str) -> None:
        model, tokenizer = tiny_model(architecture, "feature-extraction")
        task = FeatureExtraction(model, tokenizer)
        body = MAX_TOKENS - tokenizer.num_special_tokens_to_add()
        fits = "a" + " a" * (body - 1)
        (vector,) = results(task, [fits], EmbeddingParameters())
        assert len(vector) == 32
        with pytest.raises(PromptTooLong, match=f"has {MAX_TOKENS + 1} tokens.*takes {MAX_TOKENS}") as refusal:
            task.encode(["yes", fits, fits + " a"], EmbeddingParameters())
        assert refusal.value.param == "inputs[2]"

    def test_truncation_keeps_what_the_tokenizers_own_would_keep(self, architecture: str) -> None:
        model, tokenizer = tiny_model(architecture, "feature-extraction")
        task = FeatureExtraction(model, tokenizer)
        text = "the cat sat on the mat and " * 10
        ((row,),) = task.encode([text], EmbeddingParameters(truncate=True))
        expected = tokenizer(text, truncation=True, max_length=MAX_TOKENS)
        assert row.input_ids == expected["input_ids"]
        assert row.token_type_ids == expected.get("token_type_ids")


def test_fill_mask_refuses_a_text_without_a_mask() -> None:
    model, tokenizer = tiny_model("bert", "fill-mask")
    with pytest.raises(InvalidRequest, match=r"inputs\[1\] has no mask token; write \[MASK\]") as refusal:
        FillMask(model, tokenizer).encode(["a [MASK]", "the cat sat"], FillMaskParameters())
    assert refusal.value.param == "inputs[1]"


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("targets", [None, ["cat", "book", "unheard"]])
def test_several_masks_give_the_pipelines_fillings_of_each(architecture: str, targets: list[str] | None) -> None:
    model, tokenizer = tiny_model(architecture, "fill-mask")
    mask = tokenizer.mask_token
    texts = [f"the {mask} sat on the {mask}", f"a {mask}", f"{mask} {mask} {mask} the ships"]
    asked = FillMaskParameters(top_k=4, targets=None if targets is None else tuple(targets))
    found: Any = results(FillMask(model, tokenizer), texts, asked)
    reference: Any = pipeline("fill-mask", model=model, tokenizer=tokenizer, device="cpu")
    for text, by_mask in zip(texts, found, strict=True):
        expected = reference(text, top_k=4, targets=targets)
        if text.count(mask) == 1:
            by_mask, expected = [by_mask], [expected]
        for fillings, wanted in zip(by_mask, expected, strict=True):
            assert [dict(filling, score=None) for filling in fillings] == [
                dict(filling, score=None) for filling in wanted
            ]
            assert [filling["score"] for filling in fillings] == pytest.approx(
                [filling["score"] for filling in wanted], abs=TOLERANCE
            )


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_pairs_of_texts_are_read_as_the_tokenizer_reads_them(architecture: str) -> None:
    model, tokenizer = tiny_model(architecture, "text-classification")
    inputs = ["yes", TextPair(text="a book", text_pair="the sea"), "who won", TextPair(text="yes", text_pair="no")]
    rows = [pieces[0] for pieces in TextClassification(model, tokenizer).encode(inputs, ClassificationParameters())]
    for given, row in zip(inputs, rows, strict=True):
        texts = (given,) if isinstance(given, str) else (given.text, given.text_pair)
        expected = tokenizer(*texts)
        assert row.input_ids == expected["input_ids"]
        assert row.token_type_ids == expected.get("token_type_ids")


def test_a_pair_that_is_too_long_is_refused_by_name() -> None:
    model, tokenizer = tiny_model("bert", "text-classification")
    pair = TextPair(text="the cat " * 15, text_pair="a dog " * 15)
    with pytest.raises(PromptTooLong, match=rf"inputs\[1\] has 63 tokens; the model takes {MAX_TOKENS}"):
        TextClassification(model, tokenizer).encode(["yes", pair], ClassificationParameters())


def test_fill_mask_leaves_the_model_as_it_was() -> None:
    """The hook that cuts the body's output lives for one forward: others see logits for every token."""
    model, tokenizer = tiny_model("bert", "fill-mask")
    results(FillMask(model, tokenizer), ["the [MASK] sat"], FillMaskParameters())
    inputs = tokenizer("the [MASK] sat", return_tensors="pt")
    assert model(**inputs).logits.shape[:2] == inputs["input_ids"].shape


def test_fill_mask_gives_the_whole_vocabulary_where_more_is_asked_for() -> None:
    model, tokenizer = tiny_model("bert", "fill-mask")
    (fillings,) = results(FillMask(model, tokenizer), ["the [MASK] sat"], FillMaskParameters(top_k=1000))
    assert len(fillings) == len(tokenizer)
    assert sum(filling["score"] for filling in fillings) == pytest.approx(1.0, abs=TOLERANCE)


def test_a_tokenizer_without_a_mask_token_cannot_fill_masks() -> None:
    model, tokenizer = tiny_model("bert", "fill-mask")
    tokenizer.mask_token = None
    with pytest.raises(UnsupportedTask, match="no mask token"):
        FillMask(model, tokenizer)


def test_more_labels_than_the_model_has_gives_all() -> None:
    model, tokenizer = tiny_model("bert", "text-classification")
    (labels,) = results(TextClassification(model, tokenizer), ["yes"], ClassificationParameters(top_k=99))
    assert {entry["label"] for entry in labels} == set(LABELS.values())


def test_a_text_without_any_token_is_refused_by_name() -> None:
    """A tokenizer that adds nothing around a text makes none of a blank one."""
    model, tokenizer = tiny_model("bert", "text-classification")
    tokenizer.backend_tokenizer.post_processor = ByteLevel()
    with pytest.raises(InvalidRequest, match=r"inputs\[1\] has no tokens"):
        TextClassification(model, tokenizer).encode(["yes", " "], ClassificationParameters())


class TestPooling:
    """What `1_Pooling/config.json` beside the model says is what is done."""

    def saved(self, folder: Path, pooling: dict[str, Any] | None, modules: list[str] | None = None) -> Any:
        model, tokenizer = tiny_model("bert", "feature-extraction")
        model.save_pretrained(folder)
        if pooling is not None:
            (folder / "1_Pooling").mkdir()
            (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
        if modules is not None:
            listed = [{"type": f"sentence_transformers.models.{name}"} for name in modules]
            (folder / "modules.json").write_text(json.dumps(listed))
        return MODEL_CLASSES["feature-extraction"].from_pretrained(folder), tokenizer

    @pytest.mark.parametrize(
        ("pooling", "expected"),
        [
            (None, ["mean"]),
            ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}, ["mean"]),
            ({"pooling_mode_cls_token": True, "include_prompt": True}, ["cls"]),
            ({"pooling_mode_max_tokens": True, "pooling_mode_cls_token": True}, ["cls", "max"]),
            ({"pooling_mode_mean_sqrt_len_tokens": True}, ["mean_sqrt_len"]),
            ({"pooling_mode": "cls", "embedding_dimension": 32}, ["cls"]),
        ],
    )
    def test_pooling_is_read(self, tmp_path: Path, pooling: Any, expected: list[str]) -> None:
        model, tokenizer = self.saved(tmp_path, pooling)
        task = FeatureExtraction(model, tokenizer)
        assert task.poolings == expected

        texts = ["who won the match", "a book"]
        found = results(task, texts, EmbeddingParameters(normalize=False))
        for text, vector in zip(texts, found, strict=True):
            hidden = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
            by_name = {
                "cls": hidden[0],
                "max": hidden.max(dim=0).values,
                "mean": hidden.mean(dim=0),
                "mean_sqrt_len": hidden.sum(dim=0) / len(hidden) ** 0.5,
            }
            reference = torch.cat([by_name[name] for name in expected])
            torch.testing.assert_close(torch.tensor(vector), reference, atol=TOLERANCE, rtol=TOLERANCE)

    @pytest.mark.parametrize("pooling", [{"pooling_mode_lasttoken": True}, {"pooling_mode_mean_tokens": False}])
    def test_another_pooling_is_refused(self, tmp_path: Path, pooling: Any) -> None:
        with pytest.raises(InvalidModel, match="served are cls, max, mean, mean_sqrt_len"):
            FeatureExtraction(*self.saved(tmp_path, pooling))

    def test_a_layer_after_the_pooling_is_refused(self, tmp_path: Path) -> None:
        model, tokenizer = self.saved(tmp_path, None, ["Transformer", "Pooling", "Dense"])
        with pytest.raises(InvalidModel, match="Dense"):
            FeatureExtraction(model, tokenizer)
