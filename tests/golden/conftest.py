"""Tiny models for golden tests."""

from tests.tiny_models.fixtures import one_thread, tiny_folder

__all__ = ["one_thread", "tiny_folder"]
