"""Tiny models of images and films, with image processors of transformers' Pillow backend."""

from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import (
    DetrConfig,
    DetrForObjectDetection,
    DetrForSegmentation,
    DetrImageProcessorPil,
    DPTConfig,
    DPTForDepthEstimation,
    DPTImageProcessorPil,
    GLPNConfig,
    GLPNForDepthEstimation,
    GLPNImageProcessorPil,
    ResNetConfig,
    SamConfig,
    SamImageProcessorPil,
    SamModel,
    SamProcessor,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    SegformerImageProcessorPil,
    SuperGlueConfig,
    SuperGlueForKeypointMatching,
    SuperGlueImageProcessorPil,
    SuperPointConfig,
    VideoMAEConfig,
    VideoMAEForVideoClassification,
    VideoMAEImageProcessorPil,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessorPil,
    ViTModel,
    YolosConfig,
    YolosForObjectDetection,
    YolosImageProcessorPil,
)

from tests.tiny_models.entry import Parts, TinyModel, labels

SIDE = 32
"""Pixels of a square input's side, where an architecture lets it be this small."""
VISION_ENCODER: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
SURENESS = 9
"""Spread of DETR's class head over the usual: the panoptic pipeline drops what is less than 0.9 sure."""
THINGS = labels("cat", "dog", "house", "sea")


def square(side: int = SIDE) -> dict[str, int]:
    """An image processor's size: `side` by `side` pixels."""
    return {"height": side, "width": side}


def _vit(head: Any, _folder: Path) -> Parts:
    config = ViTConfig(**VISION_ENCODER, image_size=SIDE, patch_size=8, **THINGS)
    return Parts(head(config), [ViTImageProcessorPil(size=square())])


def _segformer(_folder: Path) -> Parts:
    config = SegformerConfig(**_pyramid(), **THINGS, decoder_hidden_size=16)
    return Parts(SegformerForSemanticSegmentation(config), [SegformerImageProcessorPil(size=square(64))])


def _pyramid() -> dict[str, Any]:
    """Four stages of one layer, shared by SegFormer and GLPN."""
    return {
        "depths": (1, 1, 1, 1),
        "hidden_sizes": (8, 16, 16, 32),
        "num_attention_heads": (1, 2, 2, 4),
        "mlp_ratios": (2, 2, 2, 2),
    }


def _resnet(*stages: str) -> ResNetConfig:
    """A ResNet in transformers' own code (timm is not needed) that gives the outputs of `stages`."""
    settings: dict[str, Any] = {
        "embedding_size": 8,
        "hidden_sizes": (8, 16, 16, 32),
        "depths": (1, 1, 1, 1),
        "layer_type": "basic",
        "out_features": list(stages),
    }
    return ResNetConfig(**settings)


def _detr_config(backbone: ResNetConfig) -> DetrConfig:
    return DetrConfig(
        backbone_config=backbone,
        d_model=32,
        num_queries=6,
        encoder_layers=1,
        decoder_layers=1,
        # 8 heads: the mask head groups its 32 + 8 channels by eight.
        encoder_attention_heads=8,
        decoder_attention_heads=8,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        **THINGS,
    )


def _detr(_folder: Path) -> Parts:
    # A shortest edge, not a square: pictures of other shapes are padded in a batch, with a pixel mask.
    processor = DetrImageProcessorPil(size={"shortest_edge": 64, "longest_edge": 96})
    return Parts(DetrForObjectDetection(_detr_config(_resnet("stage4"))), [processor])


def _yolos(_folder: Path) -> Parts:
    config = YolosConfig(**VISION_ENCODER, image_size=(64, 64), patch_size=16, num_detection_tokens=6, **THINGS)
    return Parts(YolosForObjectDetection(config), [YolosImageProcessorPil(size=square(64))])


def _detr_panoptic(_folder: Path) -> Parts:
    config = _detr_config(_resnet("stage1", "stage2", "stage3", "stage4"))
    return Parts(DetrForSegmentation(config), [DetrImageProcessorPil(size=square(64))])


def _sure_of_things(parts: Parts) -> None:
    """Makes a DETR see a thing in every query, above the threshold: the last class is "nothing"."""
    head = getattr(parts.model, "detr", parts.model).class_labels_classifier
    with torch.no_grad():
        head.weight.mul_(SURENESS)
        head.bias[-1] = -30.0


def _dpt(_folder: Path) -> Parts:
    config = DPTConfig(
        **{**VISION_ENCODER, "num_hidden_layers": 4},
        image_size=SIDE,
        patch_size=8,
        backbone_out_indices=(0, 1, 2, 3),
        neck_hidden_sizes=(8, 8, 16, 16),
        fusion_hidden_size=16,
    )
    return Parts(DPTForDepthEstimation(config), [DPTImageProcessorPil(size=square())])


def _shallow(parts: Parts) -> None:
    """Keeps depths within tens: float32 rounds hundreds too coarsely to compare by an absolute margin."""
    with torch.no_grad():
        parts.model.head.head[-2].weight.mul_(0.1)


def _glpn(_folder: Path) -> Parts:
    config = GLPNConfig(**_pyramid(), decoder_hidden_size=16)
    return Parts(GLPNForDepthEstimation(config), [GLPNImageProcessorPil()])


def _sam(_folder: Path) -> Parts:
    config = SamConfig(
        vision_config={
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "image_size": 64,
            "patch_size": 8,
            "output_channels": 16,
            "num_pos_feats": 8,
            "window_size": 4,
            "global_attn_indexes": (1,),
            "mlp_dim": 32,
        },
        prompt_encoder_config={"hidden_size": 16, "image_size": 64, "patch_size": 8, "mask_input_channels": 8},
        mask_decoder_config={
            "hidden_size": 16,
            "mlp_dim": 32,
            "num_attention_heads": 2,
            "iou_head_hidden_dim": 16,
        },
    )
    processor = SamProcessor(
        SamImageProcessorPil(
            size={"longest_edge": 64},
            pad_size=square(64),
            mask_size={"longest_edge": 16},
            mask_pad_size=square(16),
        )
    )
    return Parts(SamModel(config), [processor])


def _sure_of_masks(parts: Parts) -> None:
    """Makes SAM trust its masks and draw them with sharp edges: the pipeline drops the others."""
    decoder = parts.model.mask_decoder
    with torch.no_grad():
        decoder.iou_prediction_head.proj_out.bias.fill_(1.0)
        decoder.iou_prediction_head.proj_out.weight.mul_(0.02)
        for head in decoder.output_hypernetworks_mlps:
            head.proj_out.weight.mul_(20)


def _superglue(_folder: Path) -> Parts:
    config = SuperGlueConfig(
        keypoint_detector_config=SuperPointConfig(
            encoder_hidden_sizes=(8, 8, 16, 16),
            decoder_hidden_size=32,
            descriptor_decoder_dim=32,
            max_keypoints=16,
        ),
        hidden_size=32,
        keypoint_encoder_sizes=[16, 32],
        gnn_layers_types=["self", "cross"],
        sinkhorn_iterations=20,
    )
    return Parts(SuperGlueForKeypointMatching(config), [SuperGlueImageProcessorPil(size={"height": 48, "width": 64})])


def _videomae(_folder: Path) -> Parts:
    config = VideoMAEConfig(**VISION_ENCODER, image_size=SIDE, patch_size=8, num_frames=4, tubelet_size=2, **THINGS)
    processor = VideoMAEImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=square())
    return Parts(VideoMAEForVideoClassification(config), [processor])


VISION = {
    "tiny-vit": TinyModel(("image-classification",), partial(_vit, ViTForImageClassification)),
    "tiny-vit-features": TinyModel(("image-feature-extraction",), partial(_vit, ViTModel)),
    "tiny-segformer": TinyModel(("image-segmentation",), _segformer),
    "tiny-detr-panoptic": TinyModel(("image-segmentation",), _detr_panoptic, _sure_of_things),
    "tiny-detr": TinyModel(("object-detection",), _detr, _sure_of_things),
    "tiny-yolos": TinyModel(("object-detection",), _yolos),
    "tiny-dpt": TinyModel(("depth-estimation",), _dpt, _shallow),
    "tiny-glpn": TinyModel(("depth-estimation",), _glpn),
    "tiny-sam": TinyModel(("mask-generation",), _sam, _sure_of_masks),
    "tiny-superglue": TinyModel(("keypoint-matching",), _superglue),
    "tiny-videomae": TinyModel(("video-classification",), _videomae),
}
