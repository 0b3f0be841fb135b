-- New jobs: submitted, or requeued from a dead letter; and when there is no room for them.

local MEMORY_SHARE = 0.8 -- of the server's memory: the rest is for running jobs to report and to end
local MEMORY_LOOK_MS = 1000 -- how old the known figure may be: at 1,000 submissions of 4 KB a second, 4 MB more

-- A new job: `fields` are the record's own, as given by the caller.
local function create(id, lane, spec, fields, now)
  local job = job_key(id)
  local sequence = redis.call('INCR', P .. 'sequence')
  redis.call('HSET', job, unpack(fields))
  redis.call('HSET', job, 'id', id, 'lane', lane, 'state', 'queued', 'attempt', 0, 'created_at', now,
    'sequence', sequence)
  redis.call('SET', P .. 'spec:' .. id, spec)
  local owner, kind, model, deadline = get(id, 'owner', 'kind', 'model', 'deadline')
  for _, index in ipairs({ 'jobs', 'jobs:state:queued', 'jobs:kind:' .. kind, 'jobs:model:' .. model, 'jobs:owner:' .. owner }) do
    redis.call('ZADD', P .. index, sequence, id)
  end
  redis.call('HINCRBY', P .. 'queued', owner, 1)
  if deadline then redis.call('ZADD', P .. 'deadlines', deadline, id) end
  enqueue(id, now)
end

-- "<used> <limit>" of the server's memory, in bytes, looked at once a second.
local function memory()
  local known = redis.call('GET', P .. 'memory')
  if known then return known end
  local info = redis.call('INFO', 'memory')
  known = string.match(info, 'used_memory:(%d+)') .. ' ' .. string.match(info, 'maxmemory:(%d+)')
  redis.call('SET', P .. 'memory', known, 'PX', MEMORY_LOOK_MS)
  return known
end

-- Whether one more queued job is too many: nil, or what is full, how many are queued (or how much memory is used and
-- may be), and how many end a second.
local function fullness(owner, limit, owner_limit, now)
  local used, most = string.match(memory(), '^(%d+) (%d+)$')
  if tonumber(most) > 0 and tonumber(used) > tonumber(most) * MEMORY_SHARE then return { 'full', 'memory', used, most } end
  local all = redis.call('ZCARD', P .. 'jobs:state:queued')
  if limit > 0 and all >= limit then return { 'full', 'all', all, tostring(drain_rate('*', now)) } end
  local own = tonumber(redis.call('HGET', P .. 'queued', owner) or 0)
  if owner_limit > 0 and own >= owner_limit then return { 'full', 'owner', own, tostring(drain_rate(owner, now)) } end
end

-- id owner weight lane ticket spec idempotency_key|'' digest idempotency_ms limit owner_limit delay_ms deadline_ms|''
-- not_after (field value)*
--   -> {'created'|'existing'|'conflict', id, spec, record} | {'late'}
--    | {'full', 'all'|'owner', queued, rate} | {'full', 'memory', used, limit}
-- Limits of 0 are none. The fields are owner, kind, model, priority, keep_ms, and not_before and webhook if there are.
local function submit(_, a)
  local id, owner, lane = a[1], a[2], a[4]
  local now, idempotency = now_ms(), P .. 'idempotency:' .. owner .. ':' .. a[7]
  if is_late(a[14], now) then return { 'late' } end
  if a[7] ~= '' then
    local known_id, digest = string.match(redis.call('GET', idempotency) or '', '^(%S+) (%S+)$')
    if known_id and redis.call('EXISTS', job_key(known_id)) == 1 then
      return { digest == a[8] and 'existing' or 'conflict', known_id, unpack(record(known_id)) }
    end
  end
  -- A client's repeated send of the same job (its answer was lost) must not make a second one.
  if redis.call('EXISTS', job_key(id)) == 1 then return { 'existing', id, unpack(record(id)) } end
  local full = fullness(owner, tonumber(a[10]), tonumber(a[11]), now)
  if full then return full end
  if a[7] ~= '' then redis.call('SET', idempotency, id .. ' ' .. a[8], 'PX', a[9]) end
  redis.call('HSET', P .. 'weights', owner, a[3])
  redis.call('HSET', P .. 'lanes', lane, a[5])
  local fields = { unpack(a, 15) }
  local delay, deadline = tonumber(a[12]), a[13]
  if delay > 0 then
    table.insert(fields, 'not_before')
    table.insert(fields, now + delay)
  end
  if deadline ~= '' then
    table.insert(fields, 'deadline')
    table.insert(fields, now + deadline)
  end
  create(id, lane, a[6], fields, now)
  return { 'created', id, unpack(record(id)) }
end

-- id new_id ticket limit -> {'created'|'existing', new_id, spec, record} | {'missing'} | {'not_dead', state} | {'full', …}
-- A dead letter's work as a new job, without its delay and deadline: the old one's end stands.
local function requeue_dead(_, a)
  local id, new_id, now = a[1], a[2], now_ms()
  local state, dead, successor, lane, owner = get(id, 'state', 'dead', 'requeued_as', 'lane', 'owner')
  if not state then return { 'missing' } end
  if successor and redis.call('EXISTS', job_key(successor)) == 1 then return { 'existing', successor, unpack(record(successor)) } end
  if not dead then return { 'not_dead', state } end
  local full = fullness(owner, tonumber(a[4]), 0, now)
  if full then return full end
  local fields = { 'requeued_from', id }
  for _, name in ipairs({ 'owner', 'kind', 'model', 'priority', 'keep_ms', 'webhook' }) do
    local value = get(id, name)
    if value then
      table.insert(fields, name)
      table.insert(fields, value)
    end
  end
  redis.call('HSET', P .. 'lanes', lane, a[3])
  create(new_id, lane, redis.call('GET', P .. 'spec:' .. id), fields, now)
  redis.call('HSET', job_key(id), 'requeued_as', new_id)
  redis.call('ZREM', P .. 'dead', id)
  return { 'created', new_id, unpack(record(new_id)) }
end
