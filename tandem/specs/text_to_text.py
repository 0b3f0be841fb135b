"""Tasks of encoder-decoders: a text in, another text out."""

from typing import Annotated, Literal

from pydantic import Field

from tandem.specs.base import InferenceBase, Spec, TextInputs
from tandem.specs.generate_parameters import GenerateParameters

Language = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,32}$")]
"""A language by the name that the model has for it, such as `en`, `fr_XX` or `deu_Latn`."""


class TextToTextParameters(Spec):
    clean_up_tokenization_spaces: bool | None = None
    """Take out the spaces that the tokenizer put before punctuation."""
    generate_parameters: GenerateParameters = GenerateParameters()
    truncation: Literal["do_not_truncate", "longest_first", "only_first", "only_second"] = "do_not_truncate"
    """Cut a text that is longer than the model; by default it is refused."""


class TranslationParameters(TextToTextParameters):
    src_lang: Language | None = None
    """The text's language; models of several languages need it."""
    tgt_lang: Language | None = None
    """The language to translate to."""


class SummarizationSpec(InferenceBase):
    """Texts in, summaries out."""

    task: Literal["summarization"]
    inputs: TextInputs
    parameters: TextToTextParameters = TextToTextParameters()


class TranslationSpec(InferenceBase):
    """Texts in, translations out. `translation_en_to_fr` as the task sets both languages."""

    task: Literal["translation"]
    inputs: TextInputs
    parameters: TranslationParameters = TranslationParameters()


class Text2TextGenerationSpec(InferenceBase):
    """Texts in, what the model makes of them out."""

    task: Literal["text2text-generation"]
    inputs: TextInputs
    parameters: TextToTextParameters = TextToTextParameters()
