"""Decodes images, sounds and videos that users send, under limits, and encodes those that models give back."""
