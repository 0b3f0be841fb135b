"""The encoder tasks that do less work than the library's pipelines still give what these give."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, BertForSequenceClassification

from tandem.errors import InvalidRequest
from tests.golden.text_jobs import Jobs, library, loaded, run_alone, same
from tests.tiny_models import samples

Folder = Callable[[str], Path]

TEXTS = list(samples.SENTENCES[:6])
PAIRS = [{"text": TEXTS[0], "text_pair": TEXTS[1]}, {"text": TEXTS[3], "text_pair": TEXTS[5]}]


def together(task: str, folder: Path, inputs: list[Any], parameters: dict[str, Any]) -> list[Any]:
    """The row of each input, in a job of its own, and all in one forward."""
    jobs = Jobs(task, loaded(task, folder))
    for value in inputs:
        jobs.submit(value, parameters)
    rows = [row for (row,) in jobs.run()]
    assert jobs.forwards == 1
    return rows


def like(folder: Path, copy: Path, **config: Any) -> Path:
    """The model of `folder` with another configuration."""
    shutil.copytree(folder, copy)
    changed = json.loads((copy / "config.json").read_text()) | config
    (copy / "config.json").write_text(json.dumps(changed))
    return copy


class TestFillMask:
    texts = ("the [MASK] sat on the mat", "[MASK] [MASK] barked at the [MASK]", "yes [MASK]", "[MASK]")

    @pytest.mark.parametrize(
        "parameters",
        [{}, {"top_k": 3}, {"targets": ["cat", "dog", "unheard"]}, {"targets": ["sea"], "top_k": 9}],
        ids=str,
    )
    def test_gives_the_librarys_fillings(self, tiny_folder: Folder, parameters: dict[str, Any]) -> None:
        folder = tiny_folder("tiny-bert-masked")
        expected = [library("fill-mask", folder)(text, **parameters) for text in self.texts]
        assert [isinstance(row[0], list) for row in expected] == [False, True, False, False]
        same(run_alone("fill-mask", loaded("fill-mask", folder), self.texts, parameters), expected)
        same(together("fill-mask", folder, list(self.texts), parameters), expected)

    def test_targets_without_a_token_are_refused_by_name(self, tiny_folder: Folder) -> None:
        jobs = Jobs("fill-mask", loaded("fill-mask", tiny_folder("tiny-bert-masked")))
        with pytest.raises(InvalidRequest, match="no word of which the model knows a token") as refusal:
            jobs.submit("[MASK]", {"targets": ["", " "]})
        assert refusal.value.param == "parameters.targets"

    def test_many_masks_take_several_passes_of_the_head(
        self, tiny_folder: Folder, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder = tiny_folder("tiny-bert-masked")
        expected = run_alone("fill-mask", loaded("fill-mask", folder), self.texts, {})
        monkeypatch.setattr("worker.tasks.fill_mask.HEAD_MASKS", 2)
        task = loaded("fill-mask", folder)
        masks: list[int] = []
        task.model.cls.register_forward_hook(lambda _head, given, _made: masks.append(given[0].shape[0]))
        jobs = Jobs("fill-mask", task)
        jobs.submit(list(self.texts), {})
        (rows,) = jobs.run()
        assert sorted(masks) == [1, 2, 3]
        same(rows, expected)


class TestTextClassification:
    @pytest.mark.parametrize("function", [None, "softmax", "sigmoid", "none"])
    @pytest.mark.parametrize("top_k", [None, 2])
    def test_gives_the_librarys_labels_of_texts_and_pairs(
        self, tiny_folder: Folder, function: str | None, top_k: int | None
    ) -> None:
        folder = tiny_folder("tiny-bert-sentiment")
        inputs = [TEXTS[0], PAIRS[0], TEXTS[1], PAIRS[1], TEXTS[2]]
        pipe = library("text-classification", folder)
        # Each in a list of one: alone, a text's labels are wrapped or not, as the pipeline's history has it.
        expected = [pipe([given], top_k=top_k, function_to_apply=function)[0] for given in inputs]
        asked = {"top_k": top_k, "function_to_apply": function}
        same(run_alone("sentiment-analysis", loaded("text-classification", folder), inputs, asked), expected)
        same(together("text-classification", folder, inputs, asked), expected)
        jobs = Jobs("text-classification", loaded("text-classification", folder))
        jobs.submit(inputs, asked)
        same(jobs.run(), [expected])

    @pytest.mark.parametrize(
        ("problem", "labels", "is_raw"),
        [
            ("regression", 3, True),
            ("multi_label_classification", 3, False),
            ("single_label_classification", 3, False),
            (None, 3, False),
            ("regression", 1, True),
            (None, 1, False),
        ],
    )
    def test_scores_are_made_as_the_models_configuration_says(
        self, tiny_folder: Folder, tmp_path: Path, problem: str | None, labels: int, is_raw: bool
    ) -> None:
        folder = like(tiny_folder("tiny-bert-sentiment"), tmp_path / "model", problem_type=problem)
        if labels == 1:
            config = AutoConfig.from_pretrained(folder, id2label={0: "price"}, label2id={"price": 0})
            model = BertForSequenceClassification(config)
            model.classifier.bias.data.fill_(-2.0)  # no probability
            model.save_pretrained(folder)
        expected = [library("text-classification", folder)([text], top_k=None)[0] for text in TEXTS]
        found = run_alone("text-classification", loaded("text-classification", folder), TEXTS, {})
        same(found, expected)
        assert any(not 0 <= entry["score"] <= 1 for row in found for entry in row) is is_raw


class TestFeatureExtraction:
    def test_without_pooling_gives_the_librarys_token_vectors(self, tiny_folder: Folder) -> None:
        folder = tiny_folder("tiny-bert")
        expected = [library("feature-extraction", folder)(text)[0] for text in TEXTS]
        asked = {"pooling": "none"}
        same(run_alone("feature-extraction", loaded("feature-extraction", folder), TEXTS, asked), expected)
        same(together("feature-extraction", folder, TEXTS, asked), expected)

    def test_pooled_and_unpooled_texts_share_a_forward(self, tiny_folder: Folder) -> None:
        task = loaded("feature-extraction", tiny_folder("tiny-bert"))
        jobs = Jobs("feature-extraction", task)
        jobs.submit(TEXTS[0], {"normalize": False})
        jobs.submit(TEXTS[0], {"pooling": "none"})
        jobs.submit(TEXTS[3], {"pooling": "none", "normalize": True})
        (pooled,), (tokens,), (scaled,) = jobs.run()
        assert jobs.forwards == 1
        same(pooled, torch.tensor(tokens).mean(dim=0).tolist())
        torch.testing.assert_close(torch.tensor(scaled).norm(dim=1), torch.ones(len(scaled)))

    @pytest.mark.parametrize("direction", ["left", "right"])
    def test_a_long_text_is_cut_at_the_end_that_was_named(self, tiny_folder: Folder, direction: str) -> None:
        task = loaded("feature-extraction", tiny_folder("tiny-bert"))
        words = " ".join(samples.SENTENCES * 3)
        found = run_alone("feature-extraction", task, [words], {"truncate": True, "truncation_direction": direction})
        tokenizer = task.tokenizer
        tokenizer.truncation_side = direction
        kept = tokenizer(words, truncation=True, max_length=128, return_tensors="pt")
        mean = task.model(**kept).last_hidden_state[0].mean(dim=0)
        same(found[0], torch.nn.functional.normalize(mean, dim=0).tolist())


class TestPrompts:
    """The prompts that a sentence-transformers model brings along."""

    @pytest.fixture
    def folder(self, tiny_folder: Folder, tmp_path: Path) -> Path:
        folder = tmp_path / "model"
        shutil.copytree(tiny_folder("tiny-bert"), folder)
        prompts = {"prompts": {"query": "answer: ", "passage": ""}}
        (folder / "config_sentence_transformers.json").write_text(json.dumps(prompts))
        return folder

    def test_a_prompt_is_put_before_each_text(self, folder: Path) -> None:
        task = loaded("feature-extraction", folder)
        found = run_alone("feature-extraction", task, TEXTS, {"prompt_name": "query"})
        same(found, run_alone("feature-extraction", task, ["answer: " + text for text in TEXTS], {}))

    def test_a_prompt_is_left_out_of_the_pooling_where_the_model_says_so(self, folder: Path) -> None:
        (folder / "1_Pooling").mkdir()
        (folder / "1_Pooling" / "config.json").write_text(
            json.dumps({"pooling_mode_mean_tokens": True, "include_prompt": False})
        )
        asked = {"prompt_name": "query", "normalize": False}
        (vector,) = together("feature-extraction", folder, TEXTS[:1], asked)
        task = loaded("feature-extraction", folder)
        (tokens,) = run_alone("feature-extraction", task, ["answer: " + TEXTS[0]], {"pooling": "none"})
        # [CLS] answer : the cat ...
        same(vector, torch.tensor(tokens)[3:].mean(dim=0).tolist())

    @pytest.mark.parametrize("name", ["other", "Query"])
    def test_an_unknown_prompt_is_refused_with_those_that_there_are(self, folder: Path, name: str) -> None:
        jobs = Jobs("feature-extraction", loaded("feature-extraction", folder))
        with pytest.raises(InvalidRequest, match=f"no prompt '{name}'; it has passage, query") as refusal:
            jobs.submit("yes", {"prompt_name": name})
        assert refusal.value.param == "parameters.prompt_name"

    def test_a_model_without_prompts_says_so(self, tiny_folder: Folder) -> None:
        jobs = Jobs("feature-extraction", loaded("feature-extraction", tiny_folder("tiny-bert")))
        with pytest.raises(InvalidRequest, match="no prompt 'query'; it has none"):
            jobs.submit("yes", {"prompt_name": "query"})
