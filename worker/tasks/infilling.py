"""Filling a gap: a prompt, the text after the gap, and a model that was trained to write what lies between them."""

from transformers import PreTrainedTokenizerBase

from tandem.errors import InvalidRequest

PARAM = "parameters.suffix"
GAP_TOKENS = (
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),
    ("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),
    ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),  # noqa: RUF001 - so they are spelt
    ("▁<PRE>", "▁<SUF>", "▁<MID>"),
)
"""What stands before the prompt, before the suffix and before the middle: Qwen Coder and CodeGemma, StarCoder,
SantaCoder, DeepSeek Coder, Code Llama. All were trained in this order (Bavarian et al. 2022, arXiv 2207.14255)."""


def encode_gap(tokenizer: PreTrainedTokenizerBase, prompt: str, suffix: str) -> list[int]:
    """Token ids after which the model writes the middle. Raises InvalidRequest if it has no tokens for that."""
    vocabulary = tokenizer.get_vocab()
    marks = next((marks for marks in GAP_TOKENS if all(mark in vocabulary for mark in marks)), None)
    if marks is None:
        raise InvalidRequest(
            "`parameters.suffix`: the model's tokenizer has no fill-in-the-middle tokens, so that the model cannot "
            "know what comes after the text; leave it out, or take a code model that was trained to fill gaps",
            param=PARAM,
        )
    before, behind, middle = (vocabulary[mark] for mark in marks)
    prefix = list(tokenizer(prompt).input_ids)
    # The mark comes behind what the tokenizer puts at the beginning of every text.
    start = 1 if prefix[:1] == [tokenizer.bos_token_id] else 0
    inside = list(tokenizer(suffix, add_special_tokens=False).input_ids)
    return [*prefix[:start], before, *prefix[start:], behind, *inside, middle]
