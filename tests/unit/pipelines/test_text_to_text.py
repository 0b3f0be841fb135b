"""summarization, translation and text2text-generation against `generate()` called by hand."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    GenerationConfig,
    StoppingCriteria,
    StoppingCriteriaList,
    pipeline,
)
from transformers.pipelines.base import pad_collate_fn

from tests.tiny_models import samples
from worker.pipelines import library_name, register
from worker.pipelines.text_to_text import SummarizationPipeline, TranslationPipeline

Pipelines = Callable[[str, str], Any]
Folder = Callable[[str], Path]

TEXTS = [samples.SENTENCES[place] for place in (0, 2, 3, 5, 8)]
KEYS = {
    "summarization": "summary_text",
    "translation": "translation_text",
    "text2text-generation": "generated_text",
}
GREEDY = {"num_beams": 1, "max_new_tokens": 7}
PREFIX = "translate English to French: "


def by_hand(folder: Path, text: str, **generate: Any) -> list[str]:
    """What the model writes after plain tokenizing, `generate` and decoding."""
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForSeq2SeqLM.from_pretrained(folder)
    ids = model.generate(**tokenizer(text, return_tensors="pt"), **generate)
    written: list[str] = tokenizer.batch_decode(ids, skip_special_tokens=True)
    return written


def own(folder: Path, kind: Any = TranslationPipeline, **options: Any) -> Any:
    """A pipeline of this test alone, whose model it may change."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSeq2SeqLM.from_pretrained(folder)
    return kind(model=model, tokenizer=tokenizer, device="cpu", **options)


@pytest.mark.parametrize(
    ("task", "name", "prefix"),
    [
        ("summarization", "tiny-t5", "summarize: "),
        ("summarization", "tiny-bart", ""),
        ("translation", "tiny-marian", ""),
        ("text2text-generation", "tiny-t5", ""),
    ],
)
@pytest.mark.parametrize(
    "generate", [GREEDY, {"num_beams": 3, "num_return_sequences": 2, "max_new_tokens": 5}], ids=str
)
def test_writes_what_generate_writes(
    tiny_pipeline: Pipelines, tiny_folder: Folder, task: str, name: str, prefix: str, generate: dict[str, Any]
) -> None:
    """After the prefix that the model's configuration has for the task; one entry for each returned sequence."""
    written = tiny_pipeline(task, name)(TEXTS[0], **generate)
    assert [set(entry) for entry in written] == [{KEYS[task]}] * generate.get("num_return_sequences", 1)
    assert [entry[KEYS[task]] for entry in written] == by_hand(tiny_folder(name), prefix + TEXTS[0], **generate)


@pytest.mark.parametrize(
    ("task", "name"),
    [
        ("summarization", "tiny-t5"),
        ("text2text-generation", "tiny-bart"),
        ("translation", "tiny-marian"),
        ("translation", "tiny-mbart"),
    ],
)
@pytest.mark.parametrize("generate", [GREEDY, {"num_beams": 2, "num_return_sequences": 2}], ids=str)
def test_a_batch_gives_what_each_gives_alone(
    tiny_pipeline: Pipelines, task: str, name: str, generate: dict[str, Any]
) -> None:
    """A list gives an entry each where each has one, as in version 4; a list each where they have several."""
    pipe = tiny_pipeline(task, name)
    alone = [pipe(text, **generate) for text in TEXTS]
    assert len({str(written) for written in alone}) > 2, "the tiny model tells texts apart"
    flat = [entry for (entry,) in alone] if generate is GREEDY else alone
    assert pipe(TEXTS, batch_size=4, **generate) == pipe(TEXTS, **generate) == flat


def test_the_forward_keeps_a_row_for_each_text(tiny_pipeline: Pipelines) -> None:
    pipe = tiny_pipeline("summarization", "tiny-bart")
    batch = pad_collate_fn(pipe.tokenizer, None)([pipe.preprocess(text) for text in TEXTS[:3]])
    output = pipe.forward(batch, num_beams=2, num_return_sequences=2, max_new_tokens=4, min_new_tokens=4)
    assert output["output_ids"].shape == (3, 2, 5)


def test_stopping_criteria_see_every_row_and_end_the_writing(tiny_pipeline: Pipelines) -> None:
    """So a worker stops between two tokens the rows that nobody wants any more."""
    seen: list[tuple[int, ...]] = []

    class AfterThree(StoppingCriteria):
        def __call__(self, input_ids: Any, scores: Any, **_options: Any) -> Any:
            seen.append(tuple(input_ids.shape))
            return torch.full((input_ids.shape[0],), input_ids.shape[1] >= 3, dtype=torch.bool)

    pipe = tiny_pipeline("summarization", "tiny-bart")
    batch = pad_collate_fn(pipe.tokenizer, None)([pipe.preprocess(text) for text in TEXTS[:2]])
    criteria = StoppingCriteriaList([AfterThree()])
    output = pipe.forward(batch, num_beams=1, max_new_tokens=9, stopping_criteria=criteria)
    assert output["output_ids"].shape == (2, 1, 3)
    assert seen == [(2, 2), (2, 3)]


def test_long_texts_are_cut_where_asked(tiny_pipeline: Pipelines) -> None:
    pipe = tiny_pipeline("summarization", "tiny-bart")
    text = " ".join(samples.SENTENCES * 3)
    assert pipe.preprocess(text)["input_ids"].shape[1] > 128
    assert pipe.preprocess(text, truncation=True)["input_ids"].shape == (1, 128)


def test_spaces_before_punctuation_stay_unless_they_are_cleaned_up(tiny_folder: Folder) -> None:
    """Whatever the tokenizer would do by itself. (The library never cleans up after a byte-pair tokenizer.)"""
    pipe = own(tiny_folder("tiny-t5"), SummarizationPipeline)
    pipe.tokenizer.clean_up_tokenization_spaces = True
    ids = pipe.tokenizer("the cat . yes", return_tensors="pt").input_ids[None]
    assert pipe.postprocess({"output_ids": ids}) == [{"summary_text": "the cat . yes"}]
    cleaned = pipe.postprocess({"output_ids": ids}, clean_up_tokenization_spaces=True)
    assert cleaned == [{"summary_text": "the cat. yes"}]


def test_token_ids_come_instead_of_the_text_where_asked(tiny_pipeline: Pipelines) -> None:
    pipe = tiny_pipeline("summarization", "tiny-bart")
    ((entry),) = pipe(TEXTS[0], return_tensors=True, **GREEDY)
    assert set(entry) == {"summary_token_ids"}
    text = pipe.tokenizer.decode(entry["summary_token_ids"], skip_special_tokens=True)
    assert pipe(TEXTS[0], **GREEDY) == [{"summary_text": text}]


def test_what_is_no_text_is_refused(tiny_pipeline: Pipelines) -> None:
    with pytest.raises(ValueError, match="the input must be a text, not a dict"):
        tiny_pipeline("summarization", "tiny-bart")({"text": "yes"})


class TestWhatTheConfigurationSaysOfATask:
    """`task_specific_params`: over the model's other defaults, under what a call says."""

    def pipe(self, tiny_folder: Folder, **options: Any) -> Any:
        pipe = own(tiny_folder("tiny-t5"), SummarizationPipeline, **options)
        pipe.model.generation_config = GenerationConfig(
            decoder_start_token_id=0, pad_token_id=0, eos_token_id=1, num_beams=3
        )
        pipe.model.config.task_specific_params = {"summarization": {"max_length": 6, "num_beams": 1}}
        return pipe

    def options(self, pipe: Any, **asked: Any) -> dict[str, Any]:
        options: dict[str, Any] = pipe._prepare_generate_kwargs(asked)
        return {name: options.get(name) for name in ("num_beams", "max_length", "max_new_tokens")}

    def test_holds_over_the_models_and_the_pipelines_defaults(self, tiny_folder: Folder) -> None:
        pipe = self.pipe(tiny_folder)
        assert self.options(pipe) == {"num_beams": 1, "max_length": 6, "max_new_tokens": None}
        (written,) = pipe(TEXTS[0], return_tensors=True, min_length=6)
        assert len(written["summary_token_ids"]) == 6

    def test_gives_way_to_a_call(self, tiny_folder: Folder) -> None:
        pipe = self.pipe(tiny_folder)
        assert self.options(pipe, max_new_tokens=3) == {"num_beams": 1, "max_length": None, "max_new_tokens": 3}
        assert self.options(pipe, num_beams=2)["num_beams"] == 2

    def test_gives_way_to_the_pipelines_own_parameters(self, tiny_folder: Folder) -> None:
        assert self.options(self.pipe(tiny_folder, num_beams=2))["num_beams"] == 2

    def test_gives_way_to_a_whole_generation_config(self, tiny_folder: Folder) -> None:
        config = GenerationConfig(max_new_tokens=2, num_beams=1, decoder_start_token_id=0)
        (written,) = self.pipe(tiny_folder)(TEXTS[0], return_tensors=True, generation_config=config)
        assert len(written["summary_token_ids"]) == 3

    def test_is_left_as_it_was(self, tiny_folder: Folder) -> None:
        pipe = own(tiny_folder("tiny-t5"), SummarizationPipeline)
        pipe(TEXTS[0])
        assert pipe.model.config.task_specific_params["summarization"] == {"prefix": "summarize: ", "max_length": 10}


class TestLanguages:
    def test_a_pair_chooses_the_prefix_and_the_options_of_its_task(
        self, tiny_pipeline: Pipelines, tiny_folder: Folder
    ) -> None:
        """T5 is told in words what to translate to; its configuration has them for each pair."""
        pipe = tiny_pipeline("translation", "tiny-t5")
        (written,) = pipe(TEXTS[0], src_lang="en", tgt_lang="fr", num_beams=1, max_new_tokens=7)
        assert [written["translation_text"]] == by_hand(tiny_folder("tiny-t5"), PREFIX + TEXTS[0], **GREEDY)
        forward = pipe._sanitize_parameters(src_lang="en", tgt_lang="fr")[1]
        assert pipe._prepare_generate_kwargs(forward)["max_length"] == 10
        assert "max_length" not in pipe._prepare_generate_kwargs({})

    @pytest.mark.parametrize("other", [("en", "ro"), ("fr", "en")], ids=str)
    def test_a_pair_that_the_model_has_not_is_refused(self, tiny_pipeline: Pipelines, other: tuple[str, str]) -> None:
        with pytest.raises(ValueError, match=r"no translation from .* it has translation_en_to_fr"):
            tiny_pipeline("translation", "tiny-t5")(TEXTS[0], src_lang=other[0], tgt_lang=other[1])

    def test_a_model_of_one_pair_takes_any_names_for_it(self, tiny_pipeline: Pipelines) -> None:
        """Marian: as in version 4, languages have no effect."""
        pipe = tiny_pipeline("translation", "tiny-marian")
        assert pipe(TEXTS[0], src_lang="en", tgt_lang="fr", **GREEDY) == pipe(TEXTS[0], **GREEDY)

    @pytest.mark.parametrize("target", ["fr_XX", "de_DE"])
    def test_codes_stand_before_both_texts(self, tiny_pipeline: Pipelines, tiny_folder: Folder, target: str) -> None:
        """mBART: the source's code begins the encoder's text, the target's is forced on the decoder."""
        folder = tiny_folder("tiny-mbart")
        tokenizer: Any = AutoTokenizer.from_pretrained(folder, src_lang="ro_RO")
        model: Any = AutoModelForSeq2SeqLM.from_pretrained(folder)
        code = tokenizer.convert_tokens_to_ids(target)
        inputs = tokenizer(TEXTS[0], return_tensors="pt")
        ids = model.generate(**inputs, forced_bos_token_id=code, **GREEDY)
        pipe = tiny_pipeline("translation", "tiny-mbart")
        encoded = pipe.preprocess(TEXTS[0], src_lang="ro_RO", tgt_lang=target)
        assert encoded["input_ids"].tolist() == inputs.input_ids.tolist()
        assert encoded["forced_bos_token_id"].tolist() == [code]
        (written,) = pipe(TEXTS[0], src_lang="ro_RO", tgt_lang=target, return_tensors=True, **GREEDY)
        assert written["translation_token_ids"].tolist() == ids[0].tolist()

    def test_rows_of_several_source_languages_share_a_batch(self, tiny_pipeline: Pipelines) -> None:
        pipe = tiny_pipeline("translation", "tiny-mbart")
        sources = ("en_XX", "de_DE", "ro_RO")
        items = [
            pipe.preprocess(text, src_lang=source, tgt_lang="fr_XX")
            for text, source in zip(TEXTS, sources, strict=False)
        ]
        output = pipe.forward(pad_collate_fn(pipe.tokenizer, None)([dict(item) for item in items]), **GREEDY)
        for row, (text, source) in enumerate(zip(TEXTS, sources, strict=False)):
            written = pipe.postprocess({"output_ids": output["output_ids"][row : row + 1]})
            assert written == pipe(text, src_lang=source, tgt_lang="fr_XX", **GREEDY)

    def test_one_text_s_language_is_not_the_next_one_s_default(self, tiny_folder: Folder) -> None:
        """Symptom: a text without `src_lang` was read in the language of the text before it.

        Cause: the tokenizer keeps the language that it encoded last. Fix: its defaults are read once.
        """
        pipe = own(tiny_folder("tiny-mbart"))
        before = pipe.preprocess(TEXTS[0])["input_ids"].tolist()
        assert pipe.preprocess(TEXTS[0], src_lang="de_DE")["input_ids"].tolist() != before
        assert pipe.preprocess(TEXTS[0])["input_ids"].tolist() == before

    @pytest.mark.parametrize("name", ["src_lang", "tgt_lang"])
    def test_an_unknown_code_is_refused_by_name(self, tiny_pipeline: Pipelines, name: str) -> None:
        """The tokenizer itself takes it for the unknown token."""
        with pytest.raises(ValueError, match=f"`{name}` is 'klingon', which is no language of this model"):
            tiny_pipeline("translation", "tiny-mbart")(TEXTS[0], **{name: "klingon"})

    def test_a_model_of_many_languages_needs_a_target(self, tiny_folder: Folder) -> None:
        pipe = own(tiny_folder("tiny-mbart"))
        pipe._languages["tgt_lang"] = None
        with pytest.raises(ValueError, match="`tgt_lang` must be set"):
            pipe(TEXTS[0])

    def test_languages_given_when_a_pipeline_is_made_are_its_defaults(self, tiny_folder: Folder) -> None:
        pipe = own(tiny_folder("tiny-mbart"), src_lang="en_XX", tgt_lang="de_DE")
        german = pipe(TEXTS[0], **GREEDY)
        assert german == pipe(TEXTS[0], src_lang="en_XX", tgt_lang="de_DE", **GREEDY)
        assert german != pipe(TEXTS[0], tgt_lang="fr_XX", **GREEDY)


class TestNames:
    def test_the_library_builds_a_task_named_by_its_languages(self, tiny_folder: Folder) -> None:
        register()
        languages = {"src_lang": "en", "tgt_lang": "fr"}
        folder = tiny_folder("tiny-t5")
        options: dict[str, Any] = {"model": str(folder), "device": "cpu", **languages}
        made: Any = pipeline(library_name("translation"), **options)  # type: ignore[call-overload]  # the overloads know the library's own tasks alone
        assert isinstance(made, TranslationPipeline)
        ((written),) = made(TEXTS[0], **GREEDY)
        assert [written["translation_text"]] == by_hand(folder, PREFIX + TEXTS[0], **GREEDY)

    def test_a_pipeline_made_for_such_a_task_has_its_languages(self, tiny_folder: Folder) -> None:
        folder = tiny_folder("tiny-t5")
        made = own(folder, task="translation_en_to_fr")
        ((written),) = made(TEXTS[0], **GREEDY)
        assert [written["translation_text"]] == by_hand(folder, PREFIX + TEXTS[0], **GREEDY)
