"""Webhooks: signed messages to a receiver of the user's when a job, a batch, a training or a response has ended.

A message is of one of two kinds, each from an outbox of its own (`outbox` says what that is). `job_outbox` tells the
URLs that jobs name themselves; `payload` is what they are told. `endpoint_outbox` tells `endpoints`, which an owner
has named once; `events` announces to them what has happened, of one of the `event_types`, and `job_events` says which
events the end of a job is.

For both, `signature` proves who tells it, `destination` and `addresses` decide where it may go, `sender` makes one
try, `schedule` says when the next one is due, `host_queues` whose turn it is, and `deliverer` does all of it.
"""
