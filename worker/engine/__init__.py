"""Continuous batching with mixed adapters: one engine per resident decoder model.

`scheduler`, `sequence`, `adapter_slots`, `stop_strings` and `detokenizer` decide in plain Python; `forward`,
`kv_slots`, `attention`, `linear`, `adapter_bank` and `sampler` execute in torch; `engine` joins them and `loop`
runs the engine in its thread. Nothing here knows Redis, Celery or jobs.
"""
