-- What no attempt does by itself: any worker may call these at any time.

local LOST_LEASES = 4 -- leases for which it is remembered how a worker was lost: its last claim ends within one
local PRUNED_AT_ONCE = 200 -- jobs forgotten in one call, to keep the call short

-- A server that was away for longer than a lease charges nobody: every lease starts anew.
local function forgive_after_restart(now, lease_ms)
  local run_id = string.match(redis.call('INFO', 'server'), 'run_id:(%w+)')
  local known = redis.call('GET', P .. 'run_id')
  if known == run_id then return end
  redis.call('SET', P .. 'run_id', run_id)
  if not known then return end
  for _, id in ipairs(redis.call('ZRANGE', P .. 'leases', 0, -1)) do
    redis.call('ZADD', P .. 'leases', 'XX', now + lease_ms, id)
  end
end

-- What a worker's loss says of the jobs that it ran: worker -> {solo, together}.
local function losses(lost, lease_ms)
  local of = {}
  for _, id in ipairs(lost) do
    local worker, trusted = get(id, 'worker', 'trusted')
    if not of[worker] then
      -- Its last claims have later leases: they are judged as the first ones of them were.
      local known = redis.call('GET', P .. 'lost:' .. worker)
      of[worker] = { solo = known or redis.call('HGET', P .. 'solo', worker) or '', together = known == '',
        jobs = tonumber(redis.call('HGET', P .. 'running', worker) or 0) }
    end
    if trusted then of[worker].jobs = of[worker].jobs + 1 end
  end
  for worker, loss in pairs(of) do
    loss.together = loss.together or loss.jobs > 1
    if loss.together or loss.solo ~= '' then
      redis.call('SET', P .. 'lost:' .. worker, loss.solo, 'PX', LOST_LEASES * lease_ms)
    end
  end
  return of
end

-- 'alone' (it alone can have killed its worker), 'together' (any of several can), 'innocent' (another was watched)
local function guilt(id, loss)
  if loss.solo == id then return 'alone' end
  if loss.solo ~= '' then return 'innocent' end
  return loss.together and 'together' or 'alone'
end

-- limit lease_ms crashes_allowed crashes_in_all failure dead_keep_ms not_after -> {now, requeued, died}
-- Takes back the attempts whose lease is over. A job dies of a crash only if it ran alone then, or of very many.
local function reap(_, a)
  local now, requeued, died = now_ms(), 0, 0
  if is_late(a[7], now) then return { now, 0, 0 } end
  forgive_after_restart(now, a[2])
  local lost = redis.call('ZRANGEBYSCORE', P .. 'leases', '-inf', now, 'LIMIT', 0, a[1])
  local of = losses(lost, a[2])
  for _, id in ipairs(lost) do
    local worker, keep, cancelled, forgiven = get(id, 'worker', 'keep_ms', 'cancel_requested', 'forgiven')
    local verdict = guilt(id, of[worker])
    local crashes = (verdict == 'innocent' and 0 or redis.call('HINCRBY', job_key(id), 'crashes', 1)) - (forgiven or 0)
    if verdict == 'together' then redis.call('HSET', job_key(id), 'suspect', 1) end
    local is_dead = (verdict == 'alone' and crashes >= tonumber(a[3])) or crashes >= tonumber(a[4])
    if is_dead and not cancelled then
      redis.call('HSET', job_key(id), 'failure', a[5])
      conclude(id, 'running', 'failed', now, keep)
      bury(id, now, a[6])
      died = died + 1
    else
      requeue(id, now)
      requeued = requeued + 1
    end
  end
  return { now, requeued, died }
end

-- limit -> {woken, expired}: delayed jobs whose time has come, and jobs past their deadline
local function wake(_, a)
  local now, woken, expired = now_ms(), 0, 0
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', P .. 'deadlines', '-inf', now, 'LIMIT', 0, a[1])) do
    local state, keep = get(id, 'state', 'keep_ms')
    redis.call('ZREM', P .. 'deadlines', id)
    if state == 'queued' then
      conclude(id, 'queued', 'expired', now, keep)
      expired = expired + 1
    else
      nudge(id)
    end
  end
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', P .. 'delayed', '-inf', now, 'LIMIT', 0, a[1])) do
    redis.call('ZREM', P .. 'delayed', id)
    put_ready(id, now)
    woken = woken + 1
  end
  return { woken, expired }
end

-- -> how many tickets were lost: those that the lanes' lists had too few
local function ring_lost() return top_up_all() end

-- -> how many ended jobs, whose time is over, were forgotten with all their keys
local function prune()
  local over = redis.call('ZRANGEBYSCORE', P .. 'ended', '-inf', now_ms(), 'LIMIT', 0, PRUNED_AT_ONCE)
  for _, id in ipairs(over) do
    local state, kind, model, owner = get(id, 'state', 'kind', 'model', 'owner')
    for _, index in ipairs({
      'ended', 'dead', 'webhooks', 'announcements', 'jobs', 'jobs:state:' .. state, 'jobs:kind:' .. kind, 'jobs:model:' .. model,
      'jobs:owner:' .. owner,
    }) do
      redis.call('ZREM', P .. index, id)
    end
    redis.call('DEL', job_key(id), P .. 'spec:' .. id, P .. 'events:' .. id)
  end
  return #over
end
