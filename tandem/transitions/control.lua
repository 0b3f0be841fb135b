-- What users ask of jobs and lanes: cancel, pause, resume.

-- id -> the state after it | 'missing'; a running job's attempt learns of it at once, by a nudge
local function cancel(_, a)
  local id = a[1]
  local state, keep, asked = get(id, 'state', 'keep_ms', 'cancel_requested')
  if not state then return 'missing' end
  if state == 'queued' then
    conclude(id, 'queued', 'cancelled', now_ms(), keep)
    return 'cancelled'
  end
  if state == 'running' and not asked then
    redis.call('HSET', job_key(id), 'cancel_requested', 1)
    emit(id, 'cancel', '{}')
    nudge(id)
  end
  return state
end

-- id -> the state after it | 'missing'; a queued job waits until it is resumed, a running one is given back and waits
local function pause(_, a)
  local id = a[1]
  local state, paused, lane, owner, p = get(id, 'state', 'paused', 'lane', 'owner', 'priority')
  if not state then return 'missing' end
  if paused or (state ~= 'queued' and state ~= 'running') then return state end
  redis.call('HSET', job_key(id), 'paused', 1)
  if state == 'queued' then
    take_ready(id, lane, owner, p)
    redis.call('ZREM', P .. 'delayed', id)
  else
    nudge(id)
  end
  emit(id, 'pause', '{}')
  return state
end

-- id -> the state after it | 'missing'
local function resume(_, a)
  local id = a[1]
  local state, paused = get(id, 'state', 'paused')
  if not state then return 'missing' end
  if not paused then return state end
  redis.call('HDEL', job_key(id), 'paused')
  emit(id, 'resume', '{}')
  if state == 'queued' then enqueue(id, now_ms()) end
  return state
end

-- lane|'*' -> nothing; running jobs go on, queued ones wait
local function pause_lane(_, a)
  redis.call('HSETNX', P .. 'paused', a[1], now_ms())
  return 'paused'
end

local function resume_lane(_, a)
  redis.call('HDEL', P .. 'paused', a[1])
  for _, lane in ipairs(a[1] == '*' and redis.call('HKEYS', P .. 'lanes') or { a[1] }) do top_up(lane) end
  return 'resumed'
end
