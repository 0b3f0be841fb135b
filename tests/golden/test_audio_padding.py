"""The models of sound that may be padded answer as they do alone; the others, which are kept apart, would not."""

import pytest
import torch
from transformers import (
    Data2VecAudioConfig,
    Data2VecAudioForSequenceClassification,
    HubertConfig,
    HubertForSequenceClassification,
    UniSpeechConfig,
    UniSpeechForSequenceClassification,
    UniSpeechSatConfig,
    UniSpeechSatForSequenceClassification,
    Wav2Vec2Config,
    Wav2Vec2ConformerConfig,
    Wav2Vec2ConformerForSequenceClassification,
    Wav2Vec2ForSequenceClassification,
    Wav2Vec2Model,
    WavLMConfig,
    WavLMForSequenceClassification,
)

from tests.tiny_models.weights import redraw
from worker.tasks.audio_padding import PADDED_EXACTLY, takes_padding

MODELS = {
    "hubert": (HubertConfig, HubertForSequenceClassification),
    "unispeech": (UniSpeechConfig, UniSpeechForSequenceClassification),
    "unispeech-sat": (UniSpeechSatConfig, UniSpeechSatForSequenceClassification),
    "wav2vec2": (Wav2Vec2Config, Wav2Vec2ForSequenceClassification),
    "wavlm": (WavLMConfig, WavLMForSequenceClassification),
    "data2vec-audio": (Data2VecAudioConfig, Data2VecAudioForSequenceClassification),
    "wav2vec2 without a head": (Wav2Vec2Config, Wav2Vec2Model),
    "wav2vec2-conformer": (Wav2Vec2ConformerConfig, Wav2Vec2ConformerForSequenceClassification),
}
SHORT, LONG = 9_000, 16_000
"""Samples."""
ROUNDING = 2e-5
"""Of numbers of the size of 1 to 10, float32."""


def changed_by_padding(kind: str, **options: object) -> tuple[torch.nn.Module, float]:
    """A tiny model, and how far padding moves what it gives for a short sound."""
    configuration, classifier = MODELS[kind]
    config = configuration(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        conv_dim=(16,) * 7,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
        classifier_proj_size=16,
        **{"feat_extract_norm": "layer", **options},
    )
    model = classifier(config).eval()
    redraw(model, seed=0)
    sound = torch.randn(1, SHORT, generator=torch.Generator().manual_seed(0))
    padded, mask = torch.zeros(1, LONG), torch.zeros(1, LONG, dtype=torch.long)
    padded[:, :SHORT], mask[:, :SHORT] = sound, 1
    with torch.no_grad():
        alone = model(sound, attention_mask=torch.ones(1, SHORT, dtype=torch.long))[0]
        beside = model(padded, attention_mask=mask)[0]
    return model, float((alone - beside[:, : alone.shape[1]]).abs().max())


# torch deprecates how the library hands WavLM's two masks to its attention.
@pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask:UserWarning")
@pytest.mark.parametrize("kind", sorted(PADDED_EXACTLY))
@pytest.mark.parametrize("stable", [True, False])
def test_listed_models_are_padded_and_do_not_hear_it(kind: str, stable: bool) -> None:
    model, change = changed_by_padding(kind, do_stable_layer_norm=stable)
    assert takes_padding(model)
    assert change < ROUNDING


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("wav2vec2", {"feat_extract_norm": "group"}),
        ("wav2vec2 without a head", {"add_adapter": True}),
        ("data2vec-audio", {}),
        ("wav2vec2-conformer", {}),
    ],
    ids=str,
)
def test_models_that_hear_the_padding_are_not_padded(kind: str, options: dict[str, object]) -> None:
    model, change = changed_by_padding(kind, **options)
    assert not takes_padding(model)
    assert change > 100 * ROUNDING
