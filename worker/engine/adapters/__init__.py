"""Adapters: read from PEFT's folders, held in slots, applied row by row."""
