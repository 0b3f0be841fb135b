"""Engines on a CUDA device: the fixtures of the engine's unit tests, which know no device."""

from tests.unit.engine.conftest import crowd, tokenizer

__all__ = ["crowd", "tokenizer"]
