-- How a job moves: into a terminal state, into its queue, back from an attempt.

-- The one way into a terminal state.
local function conclude(id, from, to, now, keep_ms)
  local job = job_key(id)
  local lane, owner, p, webhook, kind = get(id, 'lane', 'owner', 'priority', 'webhook', 'kind')
  if from == 'running' then worker_leaves(id) else take_ready(id, lane, owner, p) end
  redis.call('HSET', job, 'finished_at', now)
  redis.call('HDEL', job, 'ready_at', 'not_before', 'paused', 'suspect')
  -- A shard's checkpoint is what it has answered so far: its batch keeps that, however the shard ends.
  if kind ~= 'batch' then redis.call('HDEL', job, 'checkpoint') end
  redis.call('ZREM', P .. 'delayed', id)
  redis.call('ZREM', P .. 'deadlines', id)
  redis.call('ZADD', P .. 'ended', now + keep_ms, id)
  if webhook then redis.call('ZADD', P .. 'webhooks', now, id) end
  if redis.call('EXISTS', P .. 'webhook-endpoints:' .. owner) == 1 then redis.call('ZADD', P .. 'announcements', now, id) end
  count_drained(owner, now)
  count_drained('*', now)
  move(id, from, to, now)
  compact(id)
end

-- A queued job to where it waits: among the ready ones, for its time, or for whoever paused it.
local function enqueue(id, now)
  local due, paused = get(id, 'not_before', 'paused')
  if paused then return end
  if due and tonumber(due) > now then
    redis.call('ZADD', P .. 'delayed', due, id)
  else
    put_ready(id, now)
  end
end

-- A running job back to its queue, or to its end if that was asked for meanwhile.
local function requeue(id, now)
  local cancelled, deadline, keep = get(id, 'cancel_requested', 'deadline', 'keep_ms')
  if cancelled then return conclude(id, 'running', 'cancelled', now, keep) end
  if deadline and tonumber(deadline) <= now then return conclude(id, 'running', 'expired', now, keep) end
  worker_leaves(id)
  redis.call('HDEL', job_key(id), 'worker', 'started_at', 'progress')
  move(id, 'running', 'queued', now)
  enqueue(id, now)
end

local function record(id) return { redis.call('GET', P .. 'spec:' .. id), redis.call('HGETALL', job_key(id)) } end

local function holds(id, fence)
  local state, attempt = get(id, 'state', 'attempt')
  return state == 'running' and attempt == fence
end

-- Kept until somebody looks, and longer than other ended jobs.
local function bury(id, now, keep_ms)
  redis.call('HSET', job_key(id), 'dead', 1)
  redis.call('ZADD', P .. 'dead', now, id)
  redis.call('ZADD', P .. 'ended', now + keep_ms, id)
end
