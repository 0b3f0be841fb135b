#!lua name=tandem_3
-- Every state change of a job, one atomic call each. The name carries a version: a rolling upgrade may run two.
-- One library in several files, joined in the order that tandem/function_library.py gives.
--
-- Keys (all under `tandem:`; <p> is a priority 0..3, 3 the most urgent; times are milliseconds of the server's clock)
--   job:<id>            hash    the record (job.py's Job)
--   spec:<id>           string  what was asked (JSON, or a reference to the artifact that holds it)
--   events:<id>         stream  the job's events since its first claim: `type` and `data` (JSON)
--   share:<p>:<lane>    zset    owners with ready jobs -> their pass: who has the lowest goes next
--   ready:<p>:<owner>:<lane>  zset  ready jobs -> sequence
--   passes:<p>:<lane>   hash    owners without ready jobs -> their last pass; `*` -> the pass that went last
--   ready, turns        hashes  lane -> how many jobs are ready; how many were chosen
--   alone:<lane>        zset    ready jobs that crashed together with others -> sequence: each runs alone next
--   delayed             zset    queued jobs -> when they become ready
--   deadlines           zset    jobs that have not ended -> when they expire
--   leases              zset    running jobs -> when their lease ends
--   ended, dead         zsets   terminal jobs -> when they may be forgotten; the dead letters of these -> when they died
--   webhooks            zset    ended jobs -> when to tell their webhook
--   announcements       zset    ended jobs whose owner has webhook endpoints -> when to announce their end
--   messages            zset    `<endpoint> <event>` -> when to tell the endpoint of the event
--   webhook-event:<id>  string  what is told, expires; the keys of endpoints are in webhooks/endpoints.py
--   jobs, jobs:state:<s>, jobs:kind:<k>, jobs:model:<m>, jobs:owner:<owner>   zsets  ids -> sequence, for lists
--   sequence, tickets   counters the last sequence number, the last ticket's
--   lanes               hash    lane -> the wire form of its ticket, `@ID@` where its id goes
--   paused              hash    lane, or `*` for the whole service -> since when it is paused
--   queued, weights     hashes  owner -> queued jobs; owner -> share against other owners
--   drained             hash    `<owner>` and `*` -> "<time> <jobs ended a second, averaged>"
--   running, solo       hashes  worker -> its jobs that are still new; worker -> the job that it runs alone
--   lost:<worker>       string  the job that a lost worker ran alone, or nothing: how to judge its other jobs
--   quiet:<worker>, quiet_for:<lane>  strings  the worker that takes nothing more until it can run one alone
--   nudge:<worker>      list    what wakes its lease keeper: a job of it was cancelled, paused or has expired
--   idempotency:<owner>:<key>   string "<id> <digest of the body>", expires
--   memory              string  "<used> <limit>" bytes of the server, expires after a second
--   run_id              string  of the server's process that the last sweep saw
--   <lane>              list    Celery's queue: tickets are pushed at its head and taken at its tail
--
-- The server's clock is the only clock. `allow-oom`: all but submitting works on a full server.

local P = 'tandem:'
local EVENTS_KEPT = 10000 -- events of one job: enough for a long training's metrics, and a bound on memory
local EVENTS_REWRITTEN = 32 -- a stream this short is written anew when its job ends: see compact()
local DRAIN_MS = 60000 -- over which the rate of ended jobs is averaged
local NUDGE_MS = 60000 -- a nudge that nobody took by then is of no use

local function now_ms()
  local t = redis.call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000)
end

-- A frozen server gets to a call when it is thawed. Its caller has given up by `not_after` (0: never), and was told so.
local function is_late(not_after, now) return tonumber(not_after) > 0 and now > tonumber(not_after) end

local function job_key(id) return P .. 'job:' .. id end
local function get(id, ...) return unpack(redis.call('HMGET', job_key(id), ...)) end

local function emit(id, kind, data)
  redis.call('XADD', P .. 'events:' .. id, 'MAXLEN', '~', EVENTS_KEPT, '*', 'type', kind, 'data', data)
end

-- Redis sets 4 KB aside for a stream's last node. Written anew, a short one takes what it holds: 360 bytes.
local function compact(id)
  local key = P .. 'events:' .. id
  if redis.call('XLEN', key) < EVENTS_REWRITTEN then
    redis.call('RESTORE', key, 0, redis.call('DUMP', key), 'REPLACE')
  end
end

local function move(id, from, to, now)
  local sequence, attempt, owner = get(id, 'sequence', 'attempt', 'owner')
  redis.call('HSET', job_key(id), 'state', to)
  redis.call('ZREM', P .. 'jobs:state:' .. from, id)
  redis.call('ZADD', P .. 'jobs:state:' .. to, sequence, id)
  if from == 'queued' and redis.call('HINCRBY', P .. 'queued', owner, -1) <= 0 then
    redis.call('HDEL', P .. 'queued', owner)
  end
  if to == 'queued' then redis.call('HINCRBY', P .. 'queued', owner, 1) end
  emit(id, 'state', cjson.encode({ state = to, attempt = tonumber(attempt), at = now / 1000 }))
end

local function nudge(id)
  local worker = get(id, 'worker')
  if not worker then return end
  redis.call('LPUSH', P .. 'nudge:' .. worker, id)
  redis.call('PEXPIRE', P .. 'nudge:' .. worker, NUDGE_MS)
end

-- Jobs ended a second, of an owner or of all ('*'), averaged over the last minute or so.
local function drain_rate(owner, now)
  local at, rate = string.match(redis.call('HGET', P .. 'drained', owner) or '', '^(%S+) (%S+)$')
  if not at then return 0 end
  return tonumber(rate) * math.exp((tonumber(at) - now) / DRAIN_MS)
end

local function count_drained(owner, now)
  local rate = drain_rate(owner, now) + 1000 / DRAIN_MS
  redis.call('HSET', P .. 'drained', owner, string.format('%.0f %.9f', now, rate))
end
