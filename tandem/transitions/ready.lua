-- Which job of a lane goes next: priorities with ageing, and within a priority a weighted fair share between owners.
-- Fair share is stride scheduling (Waldspurger and Weihl 1995): each job that goes costs its owner 1 / weight.

local AGED_TURN = 8 -- every eighth choice goes to the job that has waited longest beyond the ageing time, if any
local TICKETS_KEPT = 64 -- in a lane's list: enough to wake that many threads at once; each claim adds the next
local EXPIRED_AT_ONCE = 200 -- jobs past their deadline that one claim may meet, to keep the call short

local function share_key(p, lane) return P .. 'share:' .. p .. ':' .. lane end
local function ready_key(p, owner, lane) return P .. 'ready:' .. p .. ':' .. owner .. ':' .. lane end
local function passes_key(p, lane) return P .. 'passes:' .. p .. ':' .. lane end

local function is_paused(lane)
  local lane_since, all_since = unpack(redis.call('HMGET', P .. 'paused', lane, '*'))
  return lane_since or all_since
end

-- As many tickets in the lane's list as jobs are ready, up to a bound. A lost ticket is made good by the next call.
local function top_up(lane)
  if is_paused(lane) then return 0 end
  local ready = tonumber(redis.call('HGET', P .. 'ready', lane) or 0) + redis.call('ZCARD', P .. 'alone:' .. lane)
  local missing = math.min(ready, TICKETS_KEPT) - redis.call('LLEN', lane)
  if missing <= 0 then return 0 end
  local ticket = redis.call('HGET', P .. 'lanes', lane)
  for _ = 1, missing do
    local number = string.format('%.0f', redis.call('INCR', P .. 'tickets'))
    redis.call('LPUSH', lane, (string.gsub(ticket, '@ID@', 'ticket_' .. number)))
  end
  return missing
end

local function count_ready(lane, change)
  if redis.call('HINCRBY', P .. 'ready', lane, change) <= 0 then redis.call('HDEL', P .. 'ready', lane) end
end

local function put_ready(id, now)
  local lane, owner, p, sequence, suspect = get(id, 'lane', 'owner', 'priority', 'sequence', 'suspect')
  redis.call('HSET', job_key(id), 'ready_at', now)
  if suspect then
    redis.call('ZADD', P .. 'alone:' .. lane, sequence, id)
  else
    redis.call('ZADD', ready_key(p, owner, lane), sequence, id)
    count_ready(lane, 1)
    if not redis.call('ZSCORE', share_key(p, lane), owner) then
      -- Whoever comes back pays what it still owes, and has saved nothing up.
      local own, last = unpack(redis.call('HMGET', passes_key(p, lane), owner, '*'))
      redis.call('ZADD', share_key(p, lane), math.max(tonumber(own or 0), tonumber(last or 0)), owner)
      redis.call('HDEL', passes_key(p, lane), owner)
    end
  end
  top_up(lane)
end

-- Out of the ready jobs; answers whether it was one of them.
local function take_ready(id, lane, owner, p)
  if redis.call('ZREM', P .. 'alone:' .. lane, id) == 1 then return true end
  local key = ready_key(p, owner, lane)
  if redis.call('ZREM', key, id) == 0 then return false end
  count_ready(lane, -1)
  if redis.call('EXISTS', key) == 0 then
    local pass = redis.call('ZSCORE', share_key(p, lane), owner)
    redis.call('ZREM', share_key(p, lane), owner)
    if redis.call('EXISTS', share_key(p, lane)) == 0 then
      redis.call('DEL', passes_key(p, lane))
    else
      redis.call('HSET', passes_key(p, lane), owner, pass)
    end
  end
  return true
end

local function head(p, lane)
  local owner = redis.call('ZRANGE', share_key(p, lane), 0, 0)[1]
  if owner then return redis.call('ZRANGE', ready_key(p, owner, lane), 0, 0)[1], owner end
end

-- The priority whose next job has waited longest, and longer than the ageing time; or none.
local function aged(lane, now, ageing_ms)
  local oldest, chosen = now - ageing_ms, nil
  for p = 0, 3 do
    local id = head(p, lane)
    local since = id and tonumber((get(id, 'ready_at')))
    if since and since < oldest then oldest, chosen = since, p end
  end
  return chosen
end

-- The owner's job goes: before it is taken out.
local function charge(p, owner, lane)
  local weight = tonumber(redis.call('HGET', P .. 'weights', owner) or 1)
  local pass = tonumber(redis.call('ZSCORE', share_key(p, lane), owner))
  redis.call('HINCRBY', P .. 'turns', lane, 1)
  redis.call('HSET', passes_key(p, lane), '*', pass)
  redis.call('ZADD', share_key(p, lane), pass + 1 / weight, owner)
end

-- The lane's next ready job, with its priority and owner; it is not taken out yet. nil if there is none.
local function choose(lane, now, ageing_ms)
  local turn = tonumber(redis.call('HGET', P .. 'turns', lane) or 0) + 1
  local p = turn % AGED_TURN == 0 and aged(lane, now, ageing_ms)
  if p then
    local id, owner = head(p, lane)
    return id, p, owner
  end
  for step = 3, 0, -1 do
    local id, owner = head(step, lane)
    if id then return id, step, owner end
  end
end
