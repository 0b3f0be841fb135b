"""image-to-text as transformers 4 had it."""

from typing import Any

import torch
from transformers import GenerationConfig
from transformers.image_utils import load_image
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
from transformers.pipelines.base import Pipeline


class ImageToTextPipeline(Pipeline):
    """Takes an image; gives a list with one `{"generated_text"}` for each returned sequence.

    `prompt` is how the text begins; Pix2Struct draws it over the image. Generation parameters come as
    `generate_kwargs`, the most frequent one as `max_new_tokens` too.
    """

    _pipeline_calls_generate = True
    # What the library's `pipeline` loads beside the model; it declares these as None.
    _load_processor: Any = False
    _load_image_processor: Any = True
    _load_feature_extractor: Any = False
    _load_tokenizer: Any = True
    _default_generation_config = GenerationConfig(max_new_tokens=256)
    """Version 4's."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.check_model_type(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES)

    def _sanitize_parameters(
        self,
        max_new_tokens: int | None = None,
        generate_kwargs: dict[str, Any] | None = None,
        prompt: str | None = None,
        timeout: float | None = None,
        **unknown: Any,
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        if unknown:
            raise ValueError(f"image-to-text takes no parameter of the name {', '.join(sorted(unknown))}")
        forward = dict(generate_kwargs or {})
        if max_new_tokens is not None:
            if "max_new_tokens" in forward:
                raise ValueError("`max_new_tokens` is given twice, once in `generate_kwargs`: give one")
            forward["max_new_tokens"] = max_new_tokens
        preprocess = {"prompt": prompt, "timeout": timeout}
        return {name: value for name, value in preprocess.items() if value is not None}, forward, {}

    def preprocess(self, input_: Any, **parameters: Any) -> Any:
        """A dict of tensors, each with one row; `parameters` are `prompt` and `timeout`."""
        prompt = parameters.get("prompt")
        image = load_image(input_, timeout=parameters.get("timeout"))
        if prompt is not None and not isinstance(prompt, str):
            raise ValueError(f"the prompt must be one text, not a {type(prompt).__name__}")
        model_type = self.model.config.model_type
        drawn = {"header_text": prompt} if model_type == "pix2struct" and prompt is not None else {}
        processor: Any = self.image_processor
        encoded = dict(processor(images=image, return_tensors="pt", **drawn).to(self.dtype))
        if prompt is None or drawn:
            return encoded
        return encoded | self._prompt_tokens(prompt, model_type)

    def _prompt_tokens(self, prompt: str, model_type: str) -> dict[str, torch.Tensor]:
        """Token ids [1, tokens], and their mask where the model takes one."""
        if model_type == "vision-encoder-decoder":
            raise ValueError("a vision-encoder-decoder writes by the image alone: leave out the prompt")
        tokenizer: Any = self.tokenizer
        if model_type == "git":
            # The text begins with GIT's own mark, and its end is the model's to write.
            ids = [tokenizer.cls_token_id, *tokenizer(text=prompt, add_special_tokens=False).input_ids]
            return {"input_ids": torch.tensor([ids])}
        encoded = dict(tokenizer(prompt, return_tensors="pt"))
        encoded.pop("token_type_ids", None)  # which decoders do not take
        return encoded

    def _forward(self, input_tensors: dict[str, Any], **generate_kwargs: Any) -> Any:
        """A dict with `output_ids` [rows, sequences a row, tokens]."""
        rows = next(value for value in input_tensors.values() if isinstance(value, torch.Tensor)).shape[0]
        model: Any = self.model
        output = model.generate(**input_tensors, **self._prepare_generate_kwargs(generate_kwargs))
        ids = getattr(output, "sequences", output)
        return {"output_ids": ids.reshape(rows, ids.shape[0] // rows, ids.shape[-1])}

    def postprocess(self, model_outputs: Any, **_parameters: Any) -> list[dict[str, str]]:
        tokenizer: Any = self.tokenizer
        return [
            {"generated_text": tokenizer.decode(ids, skip_special_tokens=True)}
            for ids in model_outputs["output_ids"][0]
        ]
