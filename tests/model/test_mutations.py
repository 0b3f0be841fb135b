"""The specification has teeth: a library with any single one of these faults is caught by it."""

from dataclasses import dataclass

import pytest
import redis

from tandem.function_library import library_source
from tests.model.clocked_library import replaced
from tests.model.queue_under_test import QueueUnderTest
from tests.model.random_runs import agree

RUNS = 150
"""Within which each fault must show; most do within ten."""
CONTROL_RUNS = 40
"""In which the library as it is must pass."""


@dataclass(frozen=True, slots=True)
class Mutation:
    """One fault, as a replacement of one passage of the library's text."""

    name: str
    old: str
    new: str


MUTATIONS = (
    # Attempts
    Mutation(
        "a stale fence is let in", "return state == 'running' and attempt == fence", "return state == 'running'"
    ),
    Mutation(
        "an attempt that has ended goes on",
        "return state == 'running' and attempt == fence",
        "return attempt == fence",
    ),
    Mutation(
        "an end is not told again",
        "  redis.call('HSET', job_key(id), 'finished_by', fence)\n",
        "",
    ),
    Mutation(
        "anybody is told that the job ended by them",
        "if get(id, 'finished_by') == fence then return 'already' end",
        "if get(id, 'finished_by') then return 'already' end",
    ),
    Mutation(
        "a claim keeps the old fence",
        "redis.call('HINCRBY', job_key(id), 'attempt', 1)",
        "redis.call('HINCRBY', job_key(id), 'attempt', redis.call('HGET', job_key(id), 'attempt') == '0' and 1 or 0)",
    ),
    Mutation("a claim takes no lease", "  redis.call('ZADD', P .. 'leases', lease_ends, id)\n", ""),
    Mutation(
        "a late call is heeded",
        "return tonumber(not_after) > 0 and now > tonumber(not_after) end",
        "return false end",
    ),
    Mutation(
        "a claim does not look at the deadline",
        "if deadline and tonumber(deadline) <= now then\n      conclude(id, 'queued', 'expired', now, keep)",
        "if false then\n      conclude(id, 'queued', 'expired', now, keep)",
    ),
    Mutation(
        "a lost attempt may renew",
        "if not holds(id, a[i + 1]) then\n      stop(id, 'lost')",
        "if get(id, 'state') ~= 'running' then\n      stop(id, 'lost')",
    ),
    Mutation(
        "renewing extends nothing", "redis.call('ZADD', P .. 'leases', 'XX', now + a[2], id)\n      trust", "trust"
    ),
    Mutation("the attempt is not told of a pause", "      elseif paused then\n        stop(id, 'paused')\n", ""),
    Mutation("a failed attempt is no retry", "    redis.call('HINCRBY', job_key(id), 'retries', 1)\n", ""),
    Mutation("a retry does not wait", "    redis.call('HSET', job_key(id), 'not_before', now + a[3])\n", ""),
    Mutation("an ended job keeps its checkpoint", "if kind ~= 'batch' then redis", "if false then redis"),
    Mutation("an ended shard loses its checkpoint", "if kind ~= 'batch' then redis", "if true then redis"),
    # What was asked for
    Mutation(
        "a job given back forgets that it was cancelled",
        "  if cancelled then return conclude(id, 'running', 'cancelled', now, keep) end\n",
        "",
    ),
    Mutation(
        "a job given back after its deadline goes on",
        "  if deadline and tonumber(deadline) <= now then return conclude(id, 'running', 'expired', now, keep) end\n",
        "",
    ),
    Mutation("a paused job is queued all the same", "  if paused then return end\n", ""),
    Mutation("a paused job is still ready", "    take_ready(id, lane, owner, p)\n    redis", "    redis"),
    Mutation(
        "a paused job wakes",
        "    take_ready(id, lane, owner, p)\n    redis.call('ZREM', P .. 'delayed', id)\n",
        "    take_ready(id, lane, owner, p)\n",
    ),
    Mutation(
        "a cancel is not nudged", "    emit(id, 'cancel', '{}')\n    nudge(id)\n", "    emit(id, 'cancel', '{}')\n"
    ),
    Mutation(
        "a paused lane is claimed from", "  if is_paused(lane) then return { 'nothing', now, 'paused' } end\n", ""
    ),
    Mutation("the service is never paused", "return lane_since or all_since", "return lane_since"),
    Mutation(
        "a lane that goes on is not rung", "or { a[1] }) do top_up(lane) end", "or { a[1] }) do local _ = lane end"
    ),
    # Submission
    Mutation(
        "an idempotency key is not kept",
        "  if a[7] ~= '' then redis.call('SET', idempotency, id .. ' ' .. a[8], 'PX', a[9]) end\n",
        "",
    ),
    Mutation("a key takes any body", "digest == a[8] and 'existing' or 'conflict'", "'existing'"),
    Mutation("a key is forever", "id .. ' ' .. a[8], 'PX', a[9])", "id .. ' ' .. a[8])"),
    Mutation(
        "a call sent twice makes two jobs",
        "  if redis.call('EXISTS', job_key(id)) == 1 then return { 'existing', id, unpack(record(id)) } end\n",
        "",
    ),
    Mutation("one job too many", "if limit > 0 and all >= limit", "if limit > 0 and all > limit"),
    Mutation("one job of an owner too many", "own >= owner_limit", "own > owner_limit"),
    Mutation(
        "an owner is never full again",
        "if to == 'queued' then redis.call('HINCRBY'",
        "if false then redis.call('HINCRBY'",
    ),
    # Who goes next
    Mutation("no ageing", "turn % AGED_TURN == 0 and aged", "false and aged"),
    Mutation("always ageing", "turn % AGED_TURN == 0 and aged", "aged"),
    Mutation("the least urgent first", "for step = 3, 0, -1 do", "for step = 0, 3 do"),
    Mutation("nobody is charged", "      if owner then charge(p, owner, lane) end\n", ""),
    Mutation("weights do not count", "pass + 1 / weight, owner)", "pass + 1, owner)"),
    Mutation(
        "whoever comes back has saved up", "math.max(tonumber(own or 0), tonumber(last or 0))", "tonumber(own or 0)"
    ),
    Mutation(
        "whoever comes back owes nothing", "math.max(tonumber(own or 0), tonumber(last or 0))", "tonumber(last or 0)"
    ),
    # Tickets
    Mutation(
        "a claim does not ring for the next",
        "      top_up(lane)\n      return { 'claimed'",
        "      return { 'claimed'",
    ),
    Mutation(
        "a ready job is not rung for",
        "    end\n  end\n  top_up(lane)\nend\n\n-- Out",
        "    end\n  end\nend\n\n-- Out",
    ),
    Mutation("a suspect is not rung for", " + redis.call('ZCARD', P .. 'alone:' .. lane)\n", "\n"),
    Mutation("tickets without bound", "math.min(ready, TICKETS_KEPT)", "ready"),
    # Suspects
    Mutation("suspects are not set apart", "  if suspect then\n", "  if false then\n"),
    Mutation(
        "a suspect has company",
        "return nil end\n  local idle = redis.call('HEXISTS', P .. 'running', worker) == 0",
        "return nil end\n  local idle = true",
    ),
    Mutation(
        "a lone job gets company", "  if redis.call('HEXISTS', P .. 'solo', worker) == 1 then return nil end\n", ""
    ),
    Mutation("no worker keeps quiet", "      redis.call('SET', P .. 'quiet:' .. worker, lane, 'PX', QUIET_MS)\n", ""),
    Mutation("the innocent are charged", "verdict == 'innocent' and 0 or redis.call", "redis.call"),
    Mutation("survivors are not trusted", "or now - tonumber(started) < PROBATION_MS then", "or true then"),
    Mutation("a trusted job is still suspect", "  redis.call('HDEL', job_key(id), 'suspect')\n  less", "  less"),
    Mutation(
        "the first of several dies", "local is_dead = (verdict == 'alone' and crashes", "local is_dead = (crashes"
    ),
    # Sweeps
    Mutation("a lease that is over stays", "  redis.call('ZREM', P .. 'leases', id)\n", ""),
    Mutation("a cancelled job dies of its worker", "if is_dead and not cancelled then", "if is_dead then"),
    Mutation("a restart of the server is charged", "  if not known then return end\n", "  if true then return end\n"),
    Mutation(
        "a dead letter is forgotten like any",
        "  redis.call('ZADD', P .. 'dead', now, id)\n  redis.call('ZADD', P .. 'ended', now + keep_ms, id)\n",
        "  redis.call('ZADD', P .. 'dead', now, id)\n",
    ),
    Mutation(
        "events of a forgotten job stay", ", P .. 'spec:' .. id, P .. 'events:' .. id)", ", P .. 'spec:' .. id)"
    ),
    Mutation(
        "a forgotten job stays in a list",
        "'jobs:state:' .. state, 'jobs:kind:' .. kind, 'jobs",
        "'jobs:state:' .. state, 'jobs",
    ),
    Mutation("jobs are forgotten too soon", "'ended', '-inf', now_ms(),", "'ended', '-inf', '+inf',"),
    Mutation(
        "the deadline of a waiting job passes by",
        "    if state == 'queued' then\n      conclude",
        "    if false then\n      conclude",
    ),
    Mutation("a webhook is taken twice", "    redis.call('ZADD', P .. 'webhooks', now + a[2], id)\n", ""),
    Mutation("a dead letter is requeued twice", "  redis.call('HSET', job_key(id), 'requeued_as', new_id)\n", ""),
)


@pytest.fixture(scope="module")
def faultless_queue(queue: QueueUnderTest) -> QueueUnderTest:
    """Without a fault nothing is caught: otherwise every mutant would seem to be."""
    agree(queue, CONTROL_RUNS)
    return queue


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name.replace(" ", "-"))
def test_a_fault_is_caught(faultless_queue: QueueUnderTest, mutation: Mutation) -> None:
    queue = faultless_queue
    queue.server.load(replaced(library_source(), mutation.old, mutation.new))
    try:
        with pytest.raises((AssertionError, redis.ResponseError)):
            agree(queue, RUNS, must_pass=False)
    finally:
        queue.server.load()
