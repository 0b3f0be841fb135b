"""Continuous batching with mixed adapters: one engine per resident decoder model.

`engine` joins the parts and `loop` runs it in its thread: `scheduling` decides in plain Python, `forward` executes a
step in torch over `kv` and `adapters`, `tokens` chooses and `text` writes. Nothing here knows Redis, Celery or jobs.
"""
