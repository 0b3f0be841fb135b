"""A tiny model of image-to-image, which no pipeline of the library's own does any more."""

from pathlib import Path

import torch
from transformers import Swin2SRConfig, Swin2SRForImageSuperResolution, Swin2SRImageProcessorPil


def build_swin2sr(folder: Path) -> Path:
    """Writes a random model that doubles an image's sides into `folder`, and returns it."""
    config = Swin2SRConfig(
        image_size=16,
        embed_dim=16,
        depths=(1, 1),
        num_heads=(2, 2),
        window_size=8,
        upscale=2,
        upsampler="pixelshuffledirect",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        Swin2SRForImageSuperResolution(config).save_pretrained(folder)
    Swin2SRImageProcessorPil().save_pretrained(folder)
    return folder
