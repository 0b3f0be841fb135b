#!lua name=tandem_1
-- Every state change of a job, one atomic call each. The name carries a version: a rolling upgrade may run two.
--
-- Keys (all under `tandem:`):
--   job:<id>            hash    the record (job.py's Job); `ticket` is the Celery message that wakes a worker for it
--   events:<id>         stream  the job's events: `type` and `data` (JSON)
--   ready:<lane>        zset    queued jobs -> when their ticket was last pushed (ms)
--   lanes               set     lanes that ever had a job
--   leases              zset    running jobs -> when their lease ends (ms)
--   ended               zset    terminal jobs -> when they may be forgotten (ms)
--   jobs, jobs:state:<s>, jobs:kind:<k>, jobs:model:<m>   zsets  ids -> sequence number, for lists
--   sequence            counter the last sequence number
--   idempotency:<owner>:<key>   string "<id> <digest of the body>", expires
--   <lane>              list    Celery's queue: tickets are pushed at its head and taken at its tail
--
-- The server's clock is the only clock. `allow-oom`: ending and renewing work on a full server, submitting does not.

local P = 'tandem:'
local EVENTS_KEPT = 10000 -- events of one job: enough for a long training's metrics, and a bound on memory
local PRUNED_AT_ONCE = 200 -- jobs forgotten in one call, to keep the call short

local function now_ms()
  local t = redis.call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000)
end

local function emit(id, kind, data)
  redis.call('XADD', P .. 'events:' .. id, 'MAXLEN', '~', EVENTS_KEPT, '*', 'type', kind, 'data', data)
end

local function move(id, from, to, now)
  local job = P .. 'job:' .. id
  local sequence = redis.call('HGET', job, 'sequence')
  redis.call('HSET', job, 'state', to)
  redis.call('ZREM', P .. 'jobs:state:' .. from, id)
  redis.call('ZADD', P .. 'jobs:state:' .. to, sequence, id)
  local attempt = redis.call('HGET', job, 'attempt')
  emit(id, 'state', cjson.encode({ state = to, attempt = tonumber(attempt), at = now / 1000 }))
end

local function ring(id, lane, now)
  redis.call('ZADD', P .. 'ready:' .. lane, now, id)
  redis.call('LPUSH', lane, redis.call('HGET', P .. 'job:' .. id, 'ticket'))
end

local function requeue(id, now)
  local lane = redis.call('HGET', P .. 'job:' .. id, 'lane')
  redis.call('HDEL', P .. 'job:' .. id, 'worker', 'started_at', 'progress')
  move(id, 'running', 'queued', now)
  ring(id, lane, now)
end

-- The one way into a terminal state.
local function conclude(id, from, to, now, keep_ms)
  local job = P .. 'job:' .. id
  redis.call('HSET', job, 'finished_at', now, 'keep_ms', keep_ms)
  redis.call('HDEL', job, 'ticket')
  redis.call('ZREM', P .. 'leases', id)
  redis.call('ZREM', P .. 'ready:' .. redis.call('HGET', job, 'lane'), id)
  redis.call('ZADD', P .. 'ended', now + keep_ms, id)
  move(id, from, to, now)
end

-- id owner kind model lane spec ticket idempotency_key|'' body_digest idempotency_ms keep_ms
--   -> {'created'|'existing'|'conflict', id}
local function submit(_, a)
  local id, owner, kind, model, lane = a[1], a[2], a[3], a[4], a[5]
  local idempotency = P .. 'idempotency:' .. owner .. ':' .. a[8]
  if a[8] ~= '' then
    local known = redis.call('GET', idempotency)
    if known then
      local known_id, digest = string.match(known, '^(%S+) (%S+)$')
      return { digest == a[9] and 'existing' or 'conflict', known_id }
    end
  end
  local job = P .. 'job:' .. id
  -- A client's repeated send of the same job (its answer was lost) must not make a second one.
  if redis.call('EXISTS', job) == 1 then return { 'existing', id } end
  local now = now_ms()
  local sequence = redis.call('INCR', P .. 'sequence')
  redis.call('HSET', job, 'id', id, 'kind', kind, 'owner', owner, 'model', model, 'lane', lane, 'state', 'queued',
    'spec', a[6], 'ticket', a[7], 'attempt', 0, 'crashes', 0, 'cancel_requested', 0, 'created_at', now,
    'sequence', sequence, 'keep_ms', a[11])
  for _, index in ipairs({ 'jobs', 'jobs:state:queued', 'jobs:kind:' .. kind, 'jobs:model:' .. model }) do
    redis.call('ZADD', P .. index, sequence, id)
  end
  if a[8] ~= '' then redis.call('SET', idempotency, id .. ' ' .. a[9], 'PX', a[10]) end
  redis.call('SADD', P .. 'lanes', lane)
  emit(id, 'state', cjson.encode({ state = 'queued', attempt = 0, at = now / 1000 }))
  ring(id, lane, now)
  return { 'created', id }
end

-- id worker lease_ms -> {'claimed', fence} | {'refused', state|'missing'}
local function claim(_, a)
  local id = a[1]
  local job = P .. 'job:' .. id
  local state, lane = unpack(redis.call('HMGET', job, 'state', 'lane'))
  if state ~= 'queued' then return { 'refused', state or 'missing' } end
  local now = now_ms()
  redis.call('ZREM', P .. 'ready:' .. lane, id)
  local fence = redis.call('HINCRBY', job, 'attempt', 1)
  redis.call('HSET', job, 'worker', a[2], 'started_at', now)
  redis.call('ZADD', P .. 'leases', now + a[3], id)
  move(id, 'queued', 'running', now)
  return { 'claimed', fence }
end

-- lease_ms (id fence)* -> {id, verdict, ...} of the attempts that must stop: 'lost' or 'cancelled'
local function renew(_, a)
  local now, stopped = now_ms(), {}
  for i = 2, #a, 2 do
    local id = a[i]
    local state, fence, cancel = unpack(redis.call('HMGET', P .. 'job:' .. id, 'state', 'attempt', 'cancel_requested'))
    if state ~= 'running' or fence ~= a[i + 1] then
      table.insert(stopped, id)
      table.insert(stopped, 'lost')
    else
      redis.call('ZADD', P .. 'leases', 'XX', now + a[1], id)
      if cancel == '1' then
        table.insert(stopped, id)
        table.insert(stopped, 'cancelled')
      end
    end
  end
  return stopped
end

local function holds(id, fence)
  local state, attempt = unpack(redis.call('HMGET', P .. 'job:' .. id, 'state', 'attempt'))
  return state == 'running' and attempt == fence
end

-- id fence (type data)* -> 'reported' | 'superseded'
local function report(_, a)
  local id = a[1]
  if not holds(id, a[2]) then return 'superseded' end
  for i = 3, #a, 2 do
    emit(id, a[i], a[i + 1])
    if a[i] == 'progress' then redis.call('HSET', P .. 'job:' .. id, 'progress', a[i + 1]) end
  end
  return 'reported'
end

-- id fence state result failure -> 'finished' | 'already' | 'superseded'
local function finish(_, a)
  local id, fence, to = a[1], a[2], a[3]
  local job = P .. 'job:' .. id
  if not holds(id, fence) then
    -- The same attempt asks again because the first answer was lost on the way.
    if redis.call('HGET', job, 'finished_by') == fence then return 'already' end
    return 'superseded'
  end
  redis.call('HSET', job, 'finished_by', fence)
  if a[4] ~= '' then redis.call('HSET', job, 'result', a[4]) end
  if a[5] ~= '' then redis.call('HSET', job, 'failure', a[5]) end
  conclude(id, 'running', to, now_ms(), redis.call('HGET', job, 'keep_ms'))
  return 'finished'
end

-- id fence -> 'released' | 'superseded'; the attempt gives the job back, and nobody is charged
local function release(_, a)
  local id = a[1]
  if not holds(id, a[2]) then return 'superseded' end
  redis.call('ZREM', P .. 'leases', id)
  local now = now_ms()
  if redis.call('HGET', P .. 'job:' .. id, 'cancel_requested') == '1' then
    conclude(id, 'running', 'cancelled', now, redis.call('HGET', P .. 'job:' .. id, 'keep_ms'))
  else
    requeue(id, now)
  end
  return 'released'
end

-- id -> the state after it | 'missing'; a running job's attempt learns of it at its next renewal
local function cancel(_, a)
  local id = a[1]
  local job = P .. 'job:' .. id
  local state, keep = unpack(redis.call('HMGET', job, 'state', 'keep_ms'))
  if not state then return 'missing' end
  if state == 'queued' then
    redis.call('HSET', job, 'cancel_requested', 1)
    conclude(id, 'queued', 'cancelled', now_ms(), keep)
    return 'cancelled'
  end
  if state == 'running' and redis.call('HGET', job, 'cancel_requested') == '0' then
    redis.call('HSET', job, 'cancel_requested', 1)
    emit(id, 'cancel', '{}')
  end
  return state
end

-- limit crashes_allowed failure -> {requeued, died}: takes back the attempts whose lease is over
local function reap(_, a)
  local now, requeued, died = now_ms(), 0, 0
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', P .. 'leases', '-inf', now, 'LIMIT', 0, a[1])) do
    local job = P .. 'job:' .. id
    redis.call('ZREM', P .. 'leases', id)
    local cancelled, keep = unpack(redis.call('HMGET', job, 'cancel_requested', 'keep_ms'))
    local crashes = redis.call('HINCRBY', job, 'crashes', 1)
    if cancelled == '1' then
      conclude(id, 'running', 'cancelled', now, keep)
    elseif crashes >= tonumber(a[2]) then
      redis.call('HSET', job, 'failure', a[3])
      conclude(id, 'running', 'failed', now, keep)
      died = died + 1
    else
      requeue(id, now)
      requeued = requeued + 1
    end
  end
  return { requeued, died }
end

-- lane grace_ms limit -> how many queued jobs, whose ticket is gone, were rung again
-- Tickets are taken in the order in which they were pushed. So a job that was rung before the one whose ticket is
-- next to be taken, and is still ready, has lost its ticket.
local function ring_lost(_, a)
  local lane = a[1]
  local ready = P .. 'ready:' .. lane
  local now = now_ms()
  local before = now - a[2]
  local next_ticket = redis.call('LINDEX', lane, -1)
  if next_ticket then
    local rung = redis.call('ZSCORE', ready, cjson.decode(next_ticket)['headers']['id'])
    -- A repeated ticket of a job that is not ready says nothing about the others: wait until it is taken.
    if not rung then return 0 end
    before = math.min(before, tonumber(rung) - a[2])
  end
  -- Exclusive: the next ticket's own job has not lost it.
  local lost = redis.call('ZRANGEBYSCORE', ready, '-inf', '(' .. before, 'LIMIT', 0, a[3])
  for _, id in ipairs(lost) do ring(id, lane, now) end
  return #lost
end

-- -> how many ended jobs, whose time is over, were forgotten with all their keys
local function prune()
  local over = redis.call('ZRANGEBYSCORE', P .. 'ended', '-inf', now_ms(), 'LIMIT', 0, PRUNED_AT_ONCE)
  for _, id in ipairs(over) do
    local job = P .. 'job:' .. id
    local state, kind, model = unpack(redis.call('HMGET', job, 'state', 'kind', 'model'))
    for _, index in ipairs({ 'ended', 'jobs', 'jobs:state:' .. state, 'jobs:kind:' .. kind, 'jobs:model:' .. model }) do
      redis.call('ZREM', P .. index, id)
    end
    redis.call('DEL', job, P .. 'events:' .. id)
  end
  return #over
end

redis.register_function('tandem_1_submit', submit)

local function register(name, callback)
  redis.register_function({ function_name = 'tandem_1_' .. name, callback = callback, flags = { 'allow-oom' } })
end
register('claim', claim)
register('renew', renew)
register('report', report)
register('finish', finish)
register('release', release)
register('cancel', cancel)
register('reap', reap)
register('ring_lost', ring_lost)
register('prune', prune)
