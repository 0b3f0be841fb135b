"""Tiny models of sound: classifiers, recognisers, a speaker, and CLAP."""

from pathlib import Path
from typing import Any

import torch
from transformers import (
    ASTConfig,
    ASTFeatureExtractor,
    ASTForAudioClassification,
    ClapConfig,
    ClapFeatureExtractor,
    ClapModel,
    ClapProcessor,
    GenerationConfig,
    VitsConfig,
    VitsModel,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForCTC,
    Wav2Vec2ForSequenceClassification,
    Wav2Vec2Processor,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperProcessor,
)

from tests.tiny_models.entry import Parts, TinyModel, labels
from tests.tiny_models.samples import SAMPLING_RATE
from tests.tiny_models.tokenizers import bart_pieces, letters_for_ctc, letters_for_speech, whisper_pieces

SOUNDS = labels("speech", "music", "rain", "dog", "sea", "noise")
WINDOW_SECONDS = 2
"""Seconds of sound that Whisper and CLAP hear at once: longer than any sample, far below their usual 30 and 10."""


def _wav2vec2_config(**options: Any) -> Wav2Vec2Config:
    """Layer norms in the convolutions: with group norms, padding would change every answer in a batch."""
    return Wav2Vec2Config(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        conv_dim=(16,) * 7,
        feat_extract_norm="layer",
        do_stable_layer_norm=True,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
        classifier_proj_size=16,
        **options,
    )


def _hearing() -> Wav2Vec2FeatureExtractor:
    return Wav2Vec2FeatureExtractor(sampling_rate=SAMPLING_RATE, return_attention_mask=True, do_normalize=True)


def _wav2vec2(_folder: Path) -> Parts:
    return Parts(Wav2Vec2ForSequenceClassification(_wav2vec2_config(**SOUNDS)), [_hearing()])


def _wav2vec2_ctc(folder: Path) -> Parts:
    tokenizer = letters_for_ctc(folder)
    config = _wav2vec2_config(vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id)
    return Parts(Wav2Vec2ForCTC(config), [Wav2Vec2Processor(_hearing(), tokenizer)])


def _ast(_folder: Path) -> Parts:
    config = ASTConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_mel_bins=32,
        max_length=64,
        **SOUNDS,
    )
    return Parts(ASTForAudioClassification(config), [ASTFeatureExtractor(num_mel_bins=32, max_length=64)])


def _whisper(_folder: Path) -> Parts:
    tokenizer = whisper_pieces(seconds=WINDOW_SECONDS)
    hearing = WhisperFeatureExtractor(feature_size=16, chunk_length=WINDOW_SECONDS)
    start: Any = tokenizer.convert_tokens_to_ids("<|startoftranscript|>")
    end = tokenizer.eos_token_id
    config = WhisperConfig(
        vocab_size=len(tokenizer),
        num_mel_bins=16,
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        # Two mel frames (10 ms each) make one position.
        max_source_positions=WINDOW_SECONDS * 50,
        max_target_positions=32,
        decoder_start_token_id=start,
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
        begin_suppress_tokens=[end],
        tie_word_embeddings=False,
    )
    model = WhisperForConditionalGeneration(config)
    model.generation_config = GenerationConfig(
        max_length=12,
        decoder_start_token_id=start,
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
        # An English-only Whisper: no language and no task token in its prompt.
        is_multilingual=False,
        no_timestamps_token_id=tokenizer.convert_tokens_to_ids("<|notimestamps|>"),
        alignment_heads=[[0, 0], [1, 1]],
    )
    return Parts(model, [WhisperProcessor(hearing, tokenizer)])


def _vits(folder: Path) -> Parts:
    tokenizer = letters_for_speech(folder)
    config = VitsConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=1,
        ffn_dim=32,
        flow_size=16,
        spectrogram_bins=9,
        upsample_initial_channel=16,
        upsample_rates=(4, 4),
        upsample_kernel_sizes=(8, 8),
        resblock_kernel_sizes=(3,),
        resblock_dilation_sizes=((1, 3),),
        duration_predictor_num_flows=2,
        duration_predictor_filter_channels=16,
        prior_encoder_num_flows=2,
        prior_encoder_num_wavenet_layers=1,
        posterior_encoder_num_wavenet_layers=1,
        # No noise: the same text is the same sound, whatever the seed.
        noise_scale=0.0,
        noise_scale_duration=0.0,
        use_stochastic_duration_prediction=False,
        sampling_rate=SAMPLING_RATE,
    )
    return Parts(VitsModel(config), [tokenizer])


def _speaks_softly(parts: Parts) -> None:
    """Keeps VITS's last tanh from pressing every sample to 1 or -1, where different sounds are the same."""
    with torch.no_grad():
        parts.model.decoder.conv_post.weight.mul_(0.1)


def _clap(_folder: Path) -> Parts:
    tokenizer = bart_pieces()
    hearing = ClapFeatureExtractor(
        feature_size=16,
        sampling_rate=SAMPLING_RATE,
        hop_length=160,
        max_length_s=WINDOW_SECONDS,
        fft_window_size=400,
        frequency_max=8000,
        truncation="rand_trunc",
    )
    config = ClapConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": 64,
            "pad_token_id": tokenizer.pad_token_id,
            "projection_dim": 16,
        },
        audio_config={
            "num_mel_bins": 16,
            "spec_size": 64,
            "window_size": 4,
            "patch_size": 4,
            "patch_stride": (4, 4),
            "patch_embeds_hidden_size": 8,
            "hidden_size": 16,
            "depths": (1, 1),
            "num_attention_heads": (2, 2),
            "num_hidden_layers": 2,
            "projection_dim": 16,
        },
        projection_dim=16,
    )
    return Parts(ClapModel(config), [ClapProcessor(hearing, tokenizer)])


AUDIO = {
    "tiny-wav2vec2": TinyModel(("audio-classification",), _wav2vec2),
    "tiny-ast": TinyModel(("audio-classification",), _ast),
    "tiny-wav2vec2-ctc": TinyModel(("automatic-speech-recognition",), _wav2vec2_ctc),
    "tiny-whisper": TinyModel(("automatic-speech-recognition",), _whisper),
    "tiny-vits": TinyModel(("text-to-audio",), _vits, _speaks_softly),
    "tiny-clap": TinyModel(("zero-shot-audio-classification",), _clap),
}
