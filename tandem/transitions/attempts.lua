-- An attempt: claim, renew, report, finish, release.

local function start(id, worker, alone, now, lease_ends)
  redis.call('HINCRBY', job_key(id), 'attempt', 1)
  redis.call('HSET', job_key(id), 'worker', worker, 'started_at', now)
  redis.call('HDEL', job_key(id), 'not_before', 'ready_at')
  redis.call('ZADD', P .. 'leases', lease_ends, id)
  worker_takes(worker, id, alone)
  move(id, 'queued', 'running', now)
end

-- lane worker lease_ms ageing_ms not_after -> {'claimed', now, spec, record} | {'nothing', now, why}
-- Takes the job whose turn it is.
local function claim(_, a)
  local lane, worker, now = a[1], a[2], now_ms()
  if is_late(a[5], now) then return { 'nothing', now, 'late' } end
  if is_paused(lane) then return { 'nothing', now, 'paused' } end
  local allowed = may_take(lane, worker)
  if not allowed then return { 'nothing', now, 'alone' } end
  for _ = 1, EXPIRED_AT_ONCE do
    local id, p, owner
    if allowed == 'alone' then
      id = redis.call('ZRANGE', P .. 'alone:' .. lane, 0, 0)[1]
    else
      id, p, owner = choose(lane, now, tonumber(a[4]))
    end
    if not id then return { 'nothing', now, 'empty' } end
    local deadline, keep = get(id, 'deadline', 'keep_ms')
    if deadline and tonumber(deadline) <= now then
      conclude(id, 'queued', 'expired', now, keep)
    else
      if owner then charge(p, owner, lane) end
      take_ready(id, lane, owner, p)
      start(id, worker, allowed == 'alone', now, now + a[3])
      top_up(lane)
      return { 'claimed', now, unpack(record(id)) }
    end
    if allowed == 'alone' and redis.call('EXISTS', P .. 'alone:' .. lane) == 0 then allowed = 'any' end
  end
  top_up(lane)
  return { 'nothing', now, 'expired' }
end

-- worker lease_ms (id fence)* -> {now, (id verdict)*} of the attempts that must stop
local function renew(_, a)
  local worker, now = a[1], now_ms()
  local answer = { now }
  local function stop(id, verdict)
    table.insert(answer, id)
    table.insert(answer, verdict)
  end
  for i = 3, #a, 2 do
    local id = a[i]
    if not holds(id, a[i + 1]) then
      stop(id, 'lost')
    else
      redis.call('ZADD', P .. 'leases', 'XX', now + a[2], id)
      trust_survivor(worker, id, now)
      local cancelled, paused, deadline = get(id, 'cancel_requested', 'paused', 'deadline')
      if cancelled then
        stop(id, 'cancelled')
      elseif deadline and tonumber(deadline) <= now then
        stop(id, 'expired')
      elseif paused then
        stop(id, 'paused')
      end
    end
  end
  return answer
end

-- A shard's checkpoint names the rows that are in flight, so that its loss brings the guilty row nearer to its end:
-- neither this attempt's loss nor an earlier one counts against the shard.
local function forgive_shard(id)
  local kind, crashes = get(id, 'kind', 'crashes')
  if kind == 'batch' then redis.call('HSET', job_key(id), 'forgiven', (crashes or 0) + 1) end
end

-- id fence (type data)* -> 'reported' | 'superseded'; the last `progress` and `$checkpoint` stay in the record
local function report(_, a)
  local id = a[1]
  if not holds(id, a[2]) then return 'superseded' end
  for i = 3, #a, 2 do
    if a[i] == '$checkpoint' then
      redis.call('HSET', job_key(id), 'checkpoint', a[i + 1])
      forgive_shard(id)
    else
      emit(id, a[i], a[i + 1])
    end
    if a[i] == 'progress' then redis.call('HSET', job_key(id), 'progress', a[i + 1]) end
  end
  return 'reported'
end

-- id fence state result failure dead_keep_ms|'' -> 'finished' | 'already' | 'superseded'
-- With dead_keep_ms the job is a dead letter: its attempts are used up.
local function finish(_, a)
  local id, fence, to = a[1], a[2], a[3]
  if not holds(id, fence) then
    -- The same attempt asks again because the first answer was lost on the way.
    if get(id, 'finished_by') == fence then return 'already' end
    return 'superseded'
  end
  local now = now_ms()
  redis.call('HSET', job_key(id), 'finished_by', fence)
  if a[4] ~= '' then redis.call('HSET', job_key(id), 'result', a[4]) end
  if a[5] ~= '' then redis.call('HSET', job_key(id), 'failure', a[5]) end
  conclude(id, 'running', to, now, (get(id, 'keep_ms')))
  if a[6] ~= '' then bury(id, now, a[6]) end
  return 'finished'
end

-- id fence delay_ms failure -> 'released' | 'superseded'
-- The attempt gives the job back. With a failure it has failed for a passing reason, which counts as a retry.
local function release(_, a)
  local id, now = a[1], now_ms()
  if not holds(id, a[2]) then return 'superseded' end
  if a[4] ~= '' then
    redis.call('HINCRBY', job_key(id), 'retries', 1)
    redis.call('HSET', job_key(id), 'not_before', now + a[3])
    emit(id, 'retry', '{"failure":' .. a[4] .. ',"at":' .. string.format('%.3f', (now + a[3]) / 1000) .. '}')
  end
  requeue(id, now)
  return 'released'
end

-- worker grace_ms id* -> how many of the worker's running jobs were given back, uncharged: all but these, and but those
-- claimed within the grace, whose answer may still be on its way to it
local function disown(_, a)
  local worker, now, held, given = a[1], now_ms(), {}, 0
  for i = 3, #a do held[a[i]] = true end
  for _, id in ipairs(redis.call('ZRANGE', P .. 'leases', 0, -1)) do
    local of, started = get(id, 'worker', 'started_at')
    if of == worker and not held[id] and tonumber(started) + a[2] <= now then
      requeue(id, now)
      given = given + 1
    end
  end
  return given
end
