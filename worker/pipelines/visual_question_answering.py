"""visual-question-answering as transformers 4 had it: an answer to a question about an image."""

from collections.abc import Mapping
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import GenerationConfig
from transformers.image_utils import load_image
from transformers.pipelines.base import Pipeline

DEFAULT_ANSWERS = 5
"""Of a classifier (version 4's default)."""


class VisualQuestionAnsweringPipeline(Pipeline):
    """Takes `{"image", "question"}`, a list of them, or both as arguments; of a list and one, each goes with the one.

    Gives a list of `{"score", "answer"}`, best first, by a classifier (ViLT); by a model that writes (BLIP, BLIP-2) a
    list of one `{"answer"}` for each returned sequence. `padding` and `truncation` are the tokenizer's parameters,
    `top_k` is a classifier's, all others are `generate()`'s.
    """

    _pipeline_calls_generate = True
    # What the library's `pipeline` loads beside the model; it declares these as None.
    _load_processor: Any = False
    _load_image_processor: Any = True
    _load_feature_extractor: Any = False
    _load_tokenizer: Any = True
    _default_generation_config = GenerationConfig(max_new_tokens=256)
    """Version 4's."""
    tokenizer: Any
    image_processor: Any
    model: Any

    def _sanitize_parameters(
        self,
        top_k: int | None = None,
        padding: Any = None,
        truncation: Any = None,
        **generate_kwargs: Any,
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        if generate_kwargs and not self.model.can_generate():
            raise TypeError(f"a classifier of answers has no parameter {', '.join(sorted(generate_kwargs))}")
        if top_k is not None and top_k < 1:
            raise ValueError(f"top_k must be at least 1, not {top_k}")
        tokenizing = {"padding": padding, "truncation": truncation}
        return (
            {name: value for name, value in tokenizing.items() if value is not None},
            generate_kwargs,
            {} if top_k is None else {"top_k": top_k},
        )

    def __call__(self, image: Any, question: str | list[str] | None = None, **kwargs: Any) -> Any:  # type: ignore[override]  # version 4's names
        return super().__call__(_paired(image, question), **kwargs)  # type: ignore[no-untyped-call]  # the library's

    def preprocess(self, input_: Mapping[str, Any], *, padding: Any = False, truncation: Any = False) -> Any:  # type: ignore[override]  # every pipeline has parameters of its own
        """Token ids and pixels, [1, …] each. An image that is no picture is read from its path or address."""
        image = load_image(input_["image"])
        encoded = dict(
            self.tokenizer(input_["question"], return_tensors="pt", padding=padding, truncation=truncation)
        )
        if self.model.can_generate():
            encoded.pop("token_type_ids", None)  # which `generate` does not take
            encoded = self._after_the_image(encoded)
        return encoded | dict(self.image_processor(images=image, return_tensors="pt").to(self.dtype))

    def _forward(self, input_tensors: dict[str, torch.Tensor], **generate_kwargs: Any) -> dict[str, torch.Tensor]:  # type: ignore[override]  # a dict will do
        """`logits` [rows, answers], or `output_ids` [rows, sequences a row, tokens]."""
        if not self.model.can_generate():
            return {"logits": self.model(**input_tensors).logits}
        mask = input_tensors["attention_mask"]
        rows = mask.shape[0]
        options = self._generate_options(generate_kwargs)
        if mask.all():
            ids = self._written(input_tensors, options)
        else:
            # BLIP's decoder reads the padding of a question too, and BLIP-2's goes on after it: so none is left.
            alone = [self._written(_row(input_tensors, row), options) for row in range(rows)]
            pad = self.tokenizer.pad_token_id
            ids = pad_sequence([sequence for one in alone for sequence in one], batch_first=True, padding_value=pad)
        return {"output_ids": ids.reshape(rows, ids.shape[0] // rows, *ids.shape[1:])}

    def postprocess(  # type: ignore[override]  # every pipeline has parameters of its own
        self, model_outputs: dict[str, torch.Tensor], *, top_k: int = DEFAULT_ANSWERS
    ) -> list[dict[str, Any]]:
        if "output_ids" in model_outputs:
            return [
                {"answer": self.tokenizer.decode(ids, skip_special_tokens=True).strip()}
                for ids in model_outputs["output_ids"][0]
            ]
        # Each answer by itself: several may be right (ViLT is trained so).
        scores = model_outputs["logits"][0].float().sigmoid()
        best, places = scores.topk(min(top_k, len(scores)))
        names = self.model.config.id2label
        return [
            {"score": score, "answer": names[place]}
            for score, place in zip(best.tolist(), places.tolist(), strict=True)
        ]

    def _after_the_image(self, encoded: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """BLIP-2 sees an image where its tokens stand, before the question; as its processor puts them."""
        config = self.model.config
        if config.model_type != "blip-2":
            return encoded
        if config.image_token_index is None:
            raise ValueError("the model's configuration has no `image_token_index`: convert it to a newer one")
        marks = torch.full((1, config.num_query_tokens), config.image_token_index)
        return {
            "input_ids": torch.cat([marks, encoded["input_ids"]], dim=1),
            "attention_mask": torch.cat([torch.ones_like(marks), encoded["attention_mask"]], dim=1),
        }

    def _generate_options(self, asked: dict[str, Any]) -> dict[str, Any]:
        options: dict[str, Any] = self._prepare_generate_kwargs(asked)
        if self.model.config.model_type == "blip":
            # Its `generate` sets them itself, and fails if they come twice.
            options = {name: value for name, value in options.items() if name not in ("eos_token_id", "pad_token_id")}
        return options

    def _written(self, inputs: dict[str, torch.Tensor], options: dict[str, Any]) -> torch.Tensor:
        """The answers' tokens, [rows times sequences a row, tokens], without the question."""
        output = self.model.generate(**inputs, **options)
        ids: torch.Tensor = getattr(output, "sequences", output)
        if getattr(self.model.config, "use_decoder_only_language_model", False):
            return ids[:, inputs["input_ids"].shape[1] :]
        return ids


def _row(inputs: dict[str, torch.Tensor], row: int) -> dict[str, torch.Tensor]:
    """One row, [1, …], of its own length."""
    real = inputs["attention_mask"][row] == 1
    one = {name: tensor[row : row + 1] for name, tensor in inputs.items()}
    return one | {name: one[name][:, real] for name in ("input_ids", "attention_mask")}


def _paired(image: Any, question: str | list[str] | None) -> Any:
    """What the library's call takes. Of two lists, every question goes with every image, as in version 4."""
    if question is None:
        return image
    if isinstance(image, list) or isinstance(question, list):
        images = image if isinstance(image, list) else [image]
        questions = question if isinstance(question, list) else [question]
        return [{"image": picture, "question": asked} for asked in questions for picture in images]
    return {"image": image, "question": question}
