"""Tiny models that join two kinds of input: pictures with text, pages with questions, sounds with text."""

from pathlib import Path
from typing import Any

import torch
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPProcessor,
    CLIPVisionConfig,
    DonutImageProcessorPil,
    DonutProcessor,
    DonutSwinConfig,
    DonutSwinModel,
    LayoutLMConfig,
    LayoutLMForQuestionAnswering,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    MBartConfig,
    MBartForCausalLM,
    OwlViTConfig,
    OwlViTForObjectDetection,
    OwlViTImageProcessorPil,
    OwlViTProcessor,
    Qwen2AudioConfig,
    Qwen2AudioEncoderConfig,
    Qwen2AudioForConditionalGeneration,
    Qwen2AudioProcessor,
    Qwen2Config,
    ViltConfig,
    ViltForQuestionAnswering,
    ViltImageProcessorPil,
    ViltProcessor,
    VisionEncoderDecoderModel,
    WhisperFeatureExtractor,
)

from tests.tiny_models.audio import WINDOW_SECONDS
from tests.tiny_models.entry import Parts, TinyModel, labels
from tests.tiny_models.text import ENCODER, greedy, sure_of_spans
from tests.tiny_models.tokenizers import CHATML, MAX_TOKENS, bart_pieces, byte_pairs, clip_pieces, word_pieces
from tests.tiny_models.vision import SIDE, square


def _tower(**options: Any) -> dict[str, Any]:
    """A CLIP-like encoder of two layers."""
    return {**ENCODER, "projection_dim": 16, **options}


def _clip(_folder: Path) -> Parts:
    tokenizer = clip_pieces()
    config = CLIPConfig(
        text_config=_tower(
            vocab_size=len(tokenizer),
            max_position_embeddings=tokenizer.model_max_length,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        ),
        vision_config=_tower(image_size=SIDE, patch_size=8),
        projection_dim=16,
    )
    images = CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=square())
    return Parts(CLIPModel(config), [CLIPProcessor(images, tokenizer)])


def _owlvit(_folder: Path) -> Parts:
    tokenizer = clip_pieces(pad="!")
    config = OwlViTConfig(
        text_config=_tower(
            vocab_size=len(tokenizer),
            max_position_embeddings=tokenizer.model_max_length,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        ),
        vision_config=_tower(image_size=SIDE, patch_size=8),
        # Its class head compares projected texts with pictures in the text encoder's own width.
        projection_dim=ENCODER["hidden_size"],
    )
    images = OwlViTImageProcessorPil(size=square(), crop_size=square())
    return Parts(OwlViTForObjectDetection(config), [OwlViTProcessor(images, tokenizer)])


def _unsure_of_objects(parts: Parts) -> None:
    """Lets the text decide: drawn as they are, shift and scale push every score of OWL-ViT to 1."""
    head = parts.model.class_head
    with torch.no_grad():
        head.logit_shift.weight.mul_(0.2)
        head.logit_scale.weight.mul_(0.2)
        head.logit_scale.bias.fill_(2.0)


def _layoutlm(_folder: Path) -> Parts:
    tokenizer = word_pieces()
    config = LayoutLMConfig(**ENCODER, vocab_size=len(tokenizer), max_position_embeddings=MAX_TOKENS)
    return Parts(LayoutLMForQuestionAnswering(config), [tokenizer])


def _donut(_folder: Path) -> Parts:
    tokenizer = bart_pieces(extra=["<s_docvqa>", "<s_question>", "</s_question>", "<s_answer>", "</s_answer>"])
    encoder = DonutSwinModel(
        DonutSwinConfig(
            image_size=(64, 64),
            patch_size=4,
            embed_dim=8,
            depths=(1, 1),
            num_heads=(2, 2),
            window_size=4,
            mlp_ratio=2.0,
            drop_path_rate=0.0,
        )
    )
    decoder: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "d_model": 16,
        "decoder_layers": 2,
        "decoder_attention_heads": 4,
        "decoder_ffn_dim": 32,
        "max_position_embeddings": MAX_TOKENS,
        "is_decoder": True,
        "add_cross_attention": True,
        "is_encoder_decoder": False,
        "tie_word_embeddings": False,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "forced_eos_token_id": tokenizer.eos_token_id,
    }
    model = VisionEncoderDecoderModel(encoder=encoder, decoder=MBartForCausalLM(MBartConfig(**decoder)))
    model.config.tie_word_embeddings = False
    model.config.decoder_start_token_id = tokenizer.bos_token_id
    model.config.pad_token_id = tokenizer.pad_token_id
    greedy(model, tokenizer, decoder_start_token_id=tokenizer.bos_token_id)
    # An answer is at least one token, and ends with its mark.
    mark = tokenizer.convert_tokens_to_ids("</s_answer>")
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, mark]
    model.generation_config.begin_suppress_tokens = [mark]
    images = DonutImageProcessorPil(size=square(64), do_align_long_axis=False)
    return Parts(model, [DonutProcessor(images, tokenizer)])


def _closes_answers(parts: Parts) -> None:
    """Makes Donut write the mark that ends an answer: the pipeline drops an answer without one."""
    mark = parts.preprocessors[0].tokenizer.convert_tokens_to_ids("</s_answer>")
    decoder = parts.model.decoder.model.decoder
    with torch.no_grad():
        # The page alone would decide, and every token would be the same one.
        for layer in decoder.layers:
            layer.encoder_attn.out_proj.weight.mul_(0.3)
        # The last norm's output has mean zero: with a constant bias, a constant row adds 16 * 0.5 * 0.7 to its logit,
        # and nothing that depends on the page.
        decoder.layer_norm.bias.fill_(0.5)
        parts.model.decoder.lm_head.weight[mark] += 0.7


def _vilt(_folder: Path) -> Parts:
    tokenizer = word_pieces()
    config = ViltConfig(
        **ENCODER,
        vocab_size=len(tokenizer),
        max_position_embeddings=MAX_TOKENS,
        image_size=SIDE,
        patch_size=8,
        **labels("yes", "no", "red", "two", "cat", "sea"),
    )
    sizes: dict[str, Any] = {"size": {"shortest_edge": SIDE}, "size_divisor": 8}
    images = ViltImageProcessorPil(**sizes)
    return Parts(ViltForQuestionAnswering(config), [ViltProcessor(images, tokenizer)])


def _chat_tokenizer(*extra: str) -> Any:
    return byte_pairs(
        bos="<|im_start|>",
        eos="<|im_end|>",
        pad="<pad>",
        extra=extra,
        chat_template=CHATML,
        padding_side="left",
    )


def _llava(_folder: Path) -> Parts:
    tokenizer = _chat_tokenizer("<image>")
    image_token = tokenizer.convert_tokens_to_ids("<image>")
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**_tower(image_size=SIDE, patch_size=8)),
        text_config=LlamaConfig(
            **ENCODER,
            num_key_value_heads=2,
            vocab_size=len(tokenizer),
            max_position_embeddings=MAX_TOKENS,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        ),
        image_token_index=image_token,
        vision_feature_layer=-1,
    )
    model = LlavaForConditionalGeneration(config)
    greedy(model, tokenizer)
    processor = LlavaProcessor(
        CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=square()),
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        chat_template=CHATML,
        num_additional_image_tokens=1,
    )
    return Parts(model, [processor])


def _qwen2_audio(_folder: Path) -> Parts:
    tokenizer = _chat_tokenizer("<|audio_bos|>", "<|AUDIO|>", "<|audio_eos|>")
    config = Qwen2AudioConfig(
        audio_config=Qwen2AudioEncoderConfig(
            num_mel_bins=16,
            d_model=32,
            encoder_layers=2,
            encoder_attention_heads=4,
            encoder_ffn_dim=64,
            max_source_positions=WINDOW_SECONDS * 50,
        ),
        text_config=Qwen2Config(
            **ENCODER,
            num_key_value_heads=2,
            vocab_size=len(tokenizer),
            max_position_embeddings=2 * MAX_TOKENS,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        ),
        audio_token_index=tokenizer.convert_tokens_to_ids("<|AUDIO|>"),
    )
    model = Qwen2AudioForConditionalGeneration(config)
    greedy(model, tokenizer)
    hearing = WhisperFeatureExtractor(feature_size=16, chunk_length=WINDOW_SECONDS)
    return Parts(model, [Qwen2AudioProcessor(hearing, tokenizer, chat_template=CHATML)])


MULTIMODAL = {
    "tiny-clip": TinyModel(("zero-shot-image-classification",), _clip),
    "tiny-owlvit": TinyModel(("zero-shot-object-detection",), _owlvit, _unsure_of_objects),
    "tiny-layoutlm": TinyModel(("document-question-answering",), _layoutlm, sure_of_spans),
    "tiny-donut": TinyModel(("document-question-answering",), _donut, _closes_answers),
    "tiny-vilt": TinyModel(("visual-question-answering",), _vilt),
    "tiny-llava": TinyModel(("image-text-to-text", "decision"), _llava),
    "tiny-qwen2-audio": TinyModel(("any-to-any",), _qwen2_audio),
}
