-- Who runs what. A job whose worker was lost together with other jobs is suspect: it runs alone next, so that the
-- one which kills its workers is found, and no other dies with it.

local PROBATION_MS = 30000 -- a job that has run for so long is trusted: it no longer counts as company
local QUIET_MS = 60000 -- for so long a worker takes nothing new, so that it comes to run a suspect alone

local function top_up_all()
  local rung = 0
  for _, lane in ipairs(redis.call('HKEYS', P .. 'lanes')) do rung = rung + top_up(lane) end
  return rung
end

local function worker_takes(worker, id, alone)
  redis.call('HINCRBY', P .. 'running', worker, 1)
  if alone then redis.call('HSET', P .. 'solo', worker, id) end
end

-- One job fewer is new on this worker. If it kept quiet, or ran that one alone, it may take others now.
local function less_company(worker, id)
  if redis.call('HINCRBY', P .. 'running', worker, -1) <= 0 then
    redis.call('HDEL', P .. 'running', worker)
    local quiet_lane = redis.call('GET', P .. 'quiet:' .. worker)
    if quiet_lane then top_up(quiet_lane) end
  end
  if redis.call('HGET', P .. 'solo', worker) == id then
    redis.call('HDEL', P .. 'solo', worker)
    top_up_all()
  end
end

local function worker_leaves(id)
  local worker, trusted = get(id, 'worker', 'trusted')
  redis.call('ZREM', P .. 'leases', id)
  if not trusted then less_company(worker, id) end
  redis.call('HDEL', job_key(id), 'trusted')
end

local function trust_survivor(worker, id, now)
  local started, trusted = get(id, 'started_at', 'trusted')
  if trusted or now - tonumber(started) < PROBATION_MS then return end
  redis.call('HSET', job_key(id), 'trusted', 1)
  redis.call('HDEL', job_key(id), 'suspect')
  less_company(worker, id)
end

-- Whether this worker may take an ordinary job of the lane ('any'), a suspect ('alone') or nothing (nil).
local function may_take(lane, worker)
  if redis.call('HEXISTS', P .. 'solo', worker) == 1 then return nil end
  local idle = redis.call('HEXISTS', P .. 'running', worker) == 0
  if redis.call('EXISTS', P .. 'alone:' .. lane) == 1 then
    if idle then
      redis.call('DEL', P .. 'quiet:' .. worker, P .. 'quiet_for:' .. lane)
      return 'alone'
    end
    if redis.call('SET', P .. 'quiet_for:' .. lane, worker, 'NX', 'PX', QUIET_MS) then
      redis.call('SET', P .. 'quiet:' .. worker, lane, 'PX', QUIET_MS)
    end
  end
  local quiet_lane = redis.call('GET', P .. 'quiet:' .. worker)
  if quiet_lane then
    if redis.call('EXISTS', P .. 'alone:' .. quiet_lane) == 1 then return nil end
    -- Another worker was quicker.
    redis.call('DEL', P .. 'quiet:' .. worker)
  end
  return 'any'
end
