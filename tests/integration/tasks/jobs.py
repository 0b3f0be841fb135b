"""A job of every task, as a program has its input in its hands."""

from typing import Any

from tests.tiny_models import samples
from tests.tiny_models.calls import SOUND_PROMPT

PICTURE = samples.image(96, 64)
SOUND = samples.wav(samples.sound())
FILM = samples.mp4(samples.frames(16))
PAGE = samples.document()
CHAT = [
    {
        "role": "user",
        "content": [{"type": "image", "image": PICTURE}, {"type": "text", "text": "what is the price?"}],
    }
]
LABELS = {"candidate_labels": ["red", "green"]}

JOBS: dict[str, tuple[str, Any, dict[str, Any]]] = {
    "text-generation": ("tiny-llama", "the sea", {"max_new_tokens": 4}),
    "feature-extraction": ("tiny-bert", "the sea", {}),
    "sentence-similarity": ("all-minilm-l6-v2", {"source_sentence": "a cat", "sentences": ["a dog", "tax law"]}, {}),
    "fill-mask": ("tiny-bert-masked", "the [MASK] sat on the mat", {}),
    "text-classification": ("tiny-bert-sentiment", "the sea was calm", {}),
    "token-classification": ("tiny-bert-entities", "Anna Smith works at the bank in London", {}),
    "zero-shot-classification": ("tiny-bert-nli", "who won the match", {"candidate_labels": ["sport", "money"]}),
    "question-answering": ("tiny-bert-answers", {"question": "who slept?", "context": "the old man slept"}, {}),
    "table-question-answering": ("tiny-tapas", {"query": samples.TABLE_QUERIES[0], "table": samples.TABLE}, {}),
    "summarization": ("tiny-t5", samples.SENTENCES[3], {"generate_parameters": {"max_new_tokens": 5}}),
    "translation": ("tiny-marian", "the house is small", {"generate_parameters": {"max_new_tokens": 5}}),
    "text2text-generation": ("tiny-bart", "the house", {"generate_parameters": {"max_new_tokens": 5}}),
    "decision": ("tiny-llama", samples.decision(), {}),
    "image-classification": ("tiny-vit", PICTURE, {}),
    "image-feature-extraction": ("tiny-vit-features", PICTURE, {}),
    "image-segmentation": ("tiny-segformer", PICTURE, {}),
    "image-to-image": ("tiny-swin2sr", PICTURE, {}),
    "object-detection": ("tiny-yolos", PICTURE, {"threshold": 0.0}),
    "depth-estimation": ("tiny-dpt", PICTURE, {}),
    "mask-generation": ("tiny-sam", PICTURE, {}),
    "keypoint-matching": ("tiny-superglue", {"images": [PICTURE, samples.image(80, 80, seed=3)]}, {}),
    "video-classification": ("tiny-videomae", FILM, {}),
    "zero-shot-image-classification": ("tiny-clip", PICTURE, LABELS),
    "zero-shot-object-detection": ("tiny-owlvit", PICTURE, {**LABELS, "threshold": 0.0}),
    "audio-classification": ("tiny-wav2vec2", SOUND, {}),
    "automatic-speech-recognition": ("tiny-wav2vec2-ctc", SOUND, {}),
    "text-to-audio": ("tiny-vits", "the sea was calm", {}),
    "zero-shot-audio-classification": ("tiny-clap", SOUND, {"candidate_labels": ["music", "speech"]}),
    "document-question-answering": (
        "tiny-layoutlm",
        {"image": PAGE["image"], "question": PAGE["question"]},
        {"word_boxes": PAGE["word_boxes"]},
    ),
    "visual-question-answering": ("tiny-vilt", {"image": PICTURE, "question": "what is the price?"}, {}),
    "image-text-to-text": ("tiny-llava", CHAT, {"max_new_tokens": 4}),
    "image-to-text": ("tiny-donut-captions", PICTURE, {"max_new_tokens": 4}),
    "any-to-any": (
        "tiny-qwen2-audio",
        {"audio": SOUND, "text": SOUND_PROMPT},
        {"generation_parameters": {"max_new_tokens": 4}},
    ),
}
"""Task → a model, an input as a program has it in its hands, and parameters."""
