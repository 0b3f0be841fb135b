"""summarization, translation and text2text-generation as transformers 4 had them: a text written for a text."""

from typing import Any

import torch
from transformers import GenerationConfig
from transformers.pipelines.base import Pipeline

from tandem.specs.tasks import TRANSLATION

SUPERSEDED = {"max_length": "max_new_tokens", "min_length": "min_new_tokens"}
"""Lengths that a task's options may set, and by which other a call replaces them."""


class Text2TextGenerationPipeline(Pipeline):
    """Takes a text; gives a list with one `{"generated_text"}` for each returned sequence.

    For a list of texts it gives a list of these lists, or of their entries where each has one. All parameters but
    `truncation`, `clean_up_tokenization_spaces` and `return_tensors` (token ids for the text) are `generate()`'s.
    What the model's configuration says of its task (`task_specific_params` of T5 and BART: a prefix, beams, lengths)
    holds over its other defaults, unless a call says otherwise or brings a `generation_config`.
    """

    _pipeline_calls_generate = True
    # What the library's `pipeline` loads beside the model; it declares these as None.
    _load_processor: Any = False
    _load_image_processor: Any = False
    _load_feature_extractor: Any = False
    _load_tokenizer: Any = True
    _default_generation_config = GenerationConfig(max_new_tokens=256, num_beams=4)
    """Version 4's."""
    tokenizer: Any
    model: Any

    return_name = "generated"
    task_name = "text2text-generation"
    """In the model's configuration."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.prefix = self._options_of(self.task_name).get("prefix", self.prefix)

    def _sanitize_parameters(
        self,
        truncation: Any = None,
        clean_up_tokenization_spaces: bool | None = None,
        return_tensors: bool | None = None,
        **generate_kwargs: Any,
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        decoding = {
            "clean_up_tokenization_spaces": clean_up_tokenization_spaces,
            "return_tensors": return_tensors,
        }
        return (
            {} if truncation is None else {"truncation": truncation},
            generate_kwargs,
            {name: value for name, value in decoding.items() if value is not None},
        )

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        result = super().__call__(*args, **kwargs)  # type: ignore[no-untyped-call]  # the library's, unannotated
        if isinstance(args[0], list) and all(len(texts) == 1 for texts in result):
            return [text for (text,) in result]
        return result

    def preprocess(self, input_: str, *, truncation: Any = False) -> dict[str, torch.Tensor]:  # type: ignore[override]  # every pipeline has parameters of its own
        """Token ids of the prefixed text, [1, tokens]. Raises ValueError for what is not a text."""
        return self._tokens(self.prefix, _text(input_), truncation)

    def _tokens(self, prefix: str | None, text: str, truncation: Any) -> dict[str, torch.Tensor]:
        encoded = dict(self.tokenizer((prefix or "") + text, return_tensors="pt", truncation=truncation))
        encoded.pop("token_type_ids", None)  # which decoders do not take
        return encoded

    def _forward(self, input_tensors: dict[str, Any], **generate_kwargs: Any) -> dict[str, torch.Tensor]:  # type: ignore[override]  # a dict will do
        """`output_ids` [rows, sequences a row, tokens]."""
        rows = input_tensors["input_ids"].shape[0]
        output = self.model.generate(**input_tensors, **self._prepare_generate_kwargs(generate_kwargs))
        ids = getattr(output, "sequences", output)
        return {"output_ids": ids.reshape(rows, ids.shape[0] // rows, *ids.shape[1:])}

    def postprocess(  # type: ignore[override]  # every pipeline has parameters of its own
        self,
        model_outputs: dict[str, torch.Tensor],
        *,
        clean_up_tokenization_spaces: bool = False,
        return_tensors: bool = False,
    ) -> list[dict[str, Any]]:
        sequences = model_outputs["output_ids"][0]
        if return_tensors:
            return [{f"{self.return_name}_token_ids": ids} for ids in sequences]
        spaces = {"clean_up_tokenization_spaces": clean_up_tokenization_spaces}
        return [
            {f"{self.return_name}_text": self.tokenizer.decode(ids, skip_special_tokens=True, **spaces)}
            for ids in sequences
        ]

    def _prepare_generate_kwargs(self, generate_kwargs: dict[str, Any], **overrides: Any) -> dict[str, Any]:
        """What `generate()` is called with: the call's options, over the pipeline's, over its task's.

        The library adds its own defaults where none of these, nor the model's generation_config.json, sets one.
        """
        asked = {**self._generate_kwargs, **generate_kwargs}
        if "generation_config" not in asked:
            own = self._options_of(self._named(asked))
            own.pop("prefix", None)
            for length, other in SUPERSEDED.items():
                if asked.get(other) is not None:
                    own.pop(length, None)
            generate_kwargs = {**own, **asked}
        prepared: dict[str, Any] = super()._prepare_generate_kwargs(generate_kwargs, **overrides)
        return prepared

    def _named(self, options: dict[str, Any]) -> str:  # noqa: ARG002 - for translation
        """The name that the model's configuration may have for the task with these forward options."""
        return self.task_name

    def _options_of(self, task: str) -> dict[str, Any]:
        """A copy of what the model's configuration says of a task; empty if it says nothing."""
        by_task = getattr(self.model.config, "task_specific_params", None) or {}
        return dict(by_task.get(task) or {})


class SummarizationPipeline(Text2TextGenerationPipeline):
    """Gives `summary_text`."""

    return_name = "summary"
    task_name = "summarization"


class TranslationPipeline(Text2TextGenerationPipeline):
    """Gives `translation_text`.

    `src_lang` and `tgt_lang` are the tokenizer's codes where it knows languages (mBART, NLLB, M2M100); elsewhere they
    choose the prefix and the options that the model's configuration has for `translation_<src>_to_<tgt>` (T5). A
    pipeline made for such a task name has its languages as defaults. Models of one pair (Marian) need none.
    """

    return_name = "translation"
    task_name = "translation"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if pair := TRANSLATION.fullmatch(kwargs.get("task") or ""):
            kwargs = {"src_lang": pair[1], "tgt_lang": pair[2], **kwargs}
        super().__init__(*args, **kwargs)
        # Now, since encoding a text in another language sets the tokenizer's own.
        self._languages = {name: getattr(self.tokenizer, name, None) for name in ("src_lang", "tgt_lang")}

    def _sanitize_parameters(  # type: ignore[override]  # the languages come before the others
        self, src_lang: str | None = None, tgt_lang: str | None = None, **others: Any
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        preprocess, forward, postprocess = super()._sanitize_parameters(**others)
        languages = {name: value for name, value in (("src_lang", src_lang), ("tgt_lang", tgt_lang)) if value}
        # In the forward's options too: they say how rows begin (the target) and which options are theirs (both).
        with_forward = {
            name: value for name, value in languages.items() if name == "tgt_lang" or not self._knows_languages
        }
        return preprocess | languages, forward | with_forward, postprocess

    def preprocess(  # type: ignore[override]  # every pipeline has parameters of its own
        self,
        input_: str,
        *,
        truncation: Any = False,
        src_lang: str | None = None,
        tgt_lang: str | None = None,
    ) -> dict[str, torch.Tensor]:
        """Token ids, [1, tokens], and where the tokenizer knows languages `forced_bos_token_id`, [1].

        Raises ValueError for what is not a text, and for languages that the model does not have. Sets the tokenizer's
        `src_lang`, so that no two threads may call it at once.
        """
        text = _text(input_)
        if not self._knows_languages:
            return self._tokens(self._prefix(src_lang, tgt_lang), text, truncation)
        languages = {
            "src_lang": src_lang or self._languages["src_lang"],
            "tgt_lang": tgt_lang or self._languages["tgt_lang"],
        }
        for name, language in languages.items():
            self._check(name, language)
        build = self.tokenizer._build_translation_inputs
        encoded = dict(build(text, return_tensors="pt", truncation=truncation, **languages))
        encoded.pop("token_type_ids", None)
        # As a tensor, so that it is batched like the others.
        encoded["forced_bos_token_id"] = torch.tensor([encoded["forced_bos_token_id"]])
        return encoded

    def _forward(self, input_tensors: dict[str, Any], **generate_kwargs: Any) -> dict[str, torch.Tensor]:  # type: ignore[override]  # a dict will do
        """`output_ids` [rows, sequences a row, tokens]. All rows have one target language."""
        inputs = dict(input_tensors)
        forced = inputs.pop("forced_bos_token_id", None)
        if forced is not None:
            (token,) = forced.unique().tolist()
            generate_kwargs = {**generate_kwargs, "forced_bos_token_id": token}
        return super()._forward(inputs, **generate_kwargs)

    def _prepare_generate_kwargs(self, generate_kwargs: dict[str, Any], **overrides: Any) -> dict[str, Any]:
        prepared = super()._prepare_generate_kwargs(generate_kwargs, **overrides)
        return {name: value for name, value in prepared.items() if name not in ("src_lang", "tgt_lang")}

    def _named(self, options: dict[str, Any]) -> str:
        pair = _pair(options.get("src_lang"), options.get("tgt_lang"))
        return pair if pair and self._options_of(pair) else self.task_name

    def _prefix(self, src_lang: str | None, tgt_lang: str | None) -> str | None:
        """What the model's configuration puts before a text that is to be translated between these languages."""
        by_task = getattr(self.model.config, "task_specific_params", None) or {}
        known = sorted(task for task in by_task if TRANSLATION.fullmatch(task))
        pair = _pair(src_lang, tgt_lang)
        if pair is None or not known:
            return self.prefix
        if pair not in known:
            raise ValueError(
                f"the model has no translation from {src_lang!r} to {tgt_lang!r}; it has {', '.join(known)}. For one "
                "that it learned besides, leave out the languages and write its own prefix before the text."
            )
        prefix: str | None = self._options_of(pair).get("prefix")
        return prefix

    @property
    def _knows_languages(self) -> bool:
        return hasattr(self.tokenizer, "_build_translation_inputs")

    def _check(self, name: str, language: str | None) -> None:
        """The tokenizers themselves take an unknown language for the unknown token, and translate into nothing."""
        if language is None:
            raise ValueError(f"`{name}` must be set: this model translates between several languages")
        # Codes as they are (mBART, NLLB), and as M2M100, PLBart and SeamlessM4T mark them.
        tokens = self.tokenizer.convert_tokens_to_ids([language, f"__{language}__"])
        if all(token in (None, self.tokenizer.unk_token_id) for token in tokens):
            raise ValueError(
                f"`{name}` is {language!r}, which is no language of this model; its card has their codes (such as "
                "`fr_XX` of mBART, `fra_Latn` of NLLB, `fr` of M2M100)"
            )


def _pair(src_lang: str | None, tgt_lang: str | None) -> str | None:
    return f"translation_{src_lang}_to_{tgt_lang}" if src_lang and tgt_lang else None


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"the input must be a text, not a {type(value).__name__}")
    return value
