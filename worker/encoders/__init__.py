"""Encoder jobs share forwards: the texts of many callers in batches of like length, under a token budget."""

from worker.encoders.batcher import EncoderBatcher

__all__ = ["EncoderBatcher"]
