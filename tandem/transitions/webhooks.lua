-- Webhooks that are due: leased to whoever delivers them, so that a crash of the deliverer delays and loses none.

-- limit lease_ms -> {(id, tries so far)*}
local function take_webhooks(_, a)
  local now, due = now_ms(), {}
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', P .. 'webhooks', '-inf', now, 'LIMIT', 0, a[1])) do
    redis.call('ZADD', P .. 'webhooks', now + a[2], id)
    table.insert(due, id)
    table.insert(due, tonumber(get(id, 'webhook_tries') or 0))
  end
  return due
end

-- id retry_ms|'' note -> 'settled' | 'missing'
local function settle_webhook(_, a)
  if redis.call('EXISTS', job_key(a[1])) == 0 then return 'missing' end
  redis.call('HSET', job_key(a[1]), 'webhook_note', a[3])
  if a[2] == '' then
    redis.call('ZREM', P .. 'webhooks', a[1])
  elseif redis.call('ZSCORE', P .. 'webhooks', a[1]) then
    -- Counted here and not when it is taken: what was leased and not tried has cost no try.
    redis.call('HINCRBY', job_key(a[1]), 'webhook_tries', 1)
    redis.call('ZADD', P .. 'webhooks', now_ms() + a[2], a[1])
  end
  return 'settled'
end

-- Messages to webhook endpoints: what an event is once for each endpoint that asked for it.

-- set limit lease_ms -> {member*} of a set by time, those that are due: nobody else gets them for so long
local function take_due(_, a)
  local now = now_ms()
  local due = redis.call('ZRANGEBYSCORE', P .. a[1], '-inf', now, 'LIMIT', 0, a[2])
  for _, member in ipairs(due) do redis.call('ZADD', P .. a[1], now + a[3], member) end
  return due
end

-- event body keep_ms endpoint* -> how many will be told: none, if the event was announced before
local function announce(_, a)
  if not redis.call('SET', P .. 'webhook-event:' .. a[1], a[2], 'PX', a[3], 'NX') then return 0 end
  for i = 4, #a do redis.call('ZADD', P .. 'messages', now_ms(), a[i] .. ' ' .. a[1]) end
  return #a - 3
end

-- limit lease_ms -> {('<endpoint> <event>', tries so far)*}
local function take_messages(_, a)
  local answer = {}
  for _, message in ipairs(take_due(nil, { 'messages', a[1], a[2] })) do
    local endpoint, event = string.match(message, '^(%S+) (%S+)$')
    table.insert(answer, message)
    table.insert(answer, tonumber(redis.call('HGET', P .. 'webhook-tries:' .. endpoint, event) or 0))
  end
  return answer
end

-- endpoint event
local function drop_message(_, a)
  redis.call('ZREM', P .. 'messages', a[1] .. ' ' .. a[2])
  redis.call('HDEL', P .. 'webhook-tries:' .. a[1], a[2])
  return 'dropped'
end

-- endpoint event outcome retry_ms|'' note disable_ms -> 'settled' | 'missing'
-- An endpoint that wants no more messages, or of which a message was given up after a long time of nothing but
-- failures, is disabled.
local function settle_message(_, a)
  local endpoint, outcome, now = P .. 'webhook-endpoint:' .. a[1], a[3], now_ms()
  local is_there = redis.call('EXISTS', endpoint) == 1
  if outcome == 'failed' and is_there then
    redis.call('HINCRBY', P .. 'webhook-tries:' .. a[1], a[2], 1)
    redis.call('ZADD', P .. 'messages', now + a[4], a[1] .. ' ' .. a[2])
  else
    drop_message(nil, a)
  end
  if not is_there then return 'missing' end
  redis.call('HSET', endpoint, 'note', a[5])
  if outcome == 'delivered' then
    redis.call('HSET', endpoint, 'delivered_at', now)
    redis.call('HDEL', endpoint, 'failing_since')
    return 'settled'
  end
  redis.call('HSETNX', endpoint, 'failing_since', now)
  local failing_since = tonumber(redis.call('HGET', endpoint, 'failing_since'))
  if outcome == 'gone' or (outcome == 'given up' and failing_since + a[6] <= now) then
    redis.call('HSETNX', endpoint, 'disabled_at', now)
  end
  return 'settled'
end
