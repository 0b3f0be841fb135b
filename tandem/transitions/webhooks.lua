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
