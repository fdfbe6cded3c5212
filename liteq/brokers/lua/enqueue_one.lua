-- Broker.enqueue of one message that is claimable at once: most of what is ever sent.
--
-- What `enqueue.lua` does with such a message, and nothing else: reading a script's functions
-- takes the server longer than all that is done here. What `put` and `ring` would do is spelt
-- out, and what waits (a time, an edge, a limit, a unique key) goes the other way.
-- Needs: with calling
-- KEYS[1], ARGV[1] to [3]   see base.lua
-- ARGV[4]   id     [5]  g     [6]  body     [7]  envelope, "" for none
--      [8]  its queue     [9]  what its priority adds to its number, to be its rank (see ends.lua)
-- Answers   one empty line; or what enqueue.lua answers, for an id that was used for another
--
-- To a worker that stands by it is leased here, and the bell brings the lease. What an idle
-- step told, the worker's field `standby` says: the token and a space; for how many seconds it
-- is well without a heartbeat, and a space; "1", or "+" if it may claim more than one; "*" if it
-- takes any task, else "-"; the queues that it consumes, each behind its length and a colon.
-- The field stays. It counts while the worker holds nothing and has room (see `calling.lua`),
-- which the step that settles says again. The token is no step's: what was leased with it, no step
-- is answered, should it be repeated.
-- The bell: number, token, the lengths of id, g and body; a line feed; id, g, body, envelope.

local P, call = KEYS[1], redis.call
local id, given, body, queue = ARGV[4], ARGV[5], ARGV[6], ARGV[8]
local key = P .. 'm:' .. id
local SIZE_OF_QUEUE = '^[^,]*,[^,]*,[^,]*,[^,]*,[^,]*,[^,]*,[^,]*,[^,]*,(%d+),()'
local there = call('HMGET', key, 'g', 'b', 'j')
if there[1] and string.find(there[1], '^[^,]*,[^,]*,[^,]*,[^,]*,[^,]*,[^,]*,[^,]*,[^,]*,0,')
    and call('HGET', key, 's') == 'w' then  -- an early note (see ends.lua)
  call('HDEL', key, 'N', 'M', 'P')
  call('ZREM', P .. 'expiring', id)
elseif there[1] then
  local function task(text)
    local size, at = string.match(text, SIZE_OF_QUEUE)
    return string.sub(text, at + tonumber(size))
  end
  local other = task(there[1])
  if there[3] or (other == task(given) and there[2] == body) then return '\n' end
  return string.format('1 %d %d\nA%s%s', #id, #other, id, other)
end
local now = ARGV[1]
if now == '' then
  local time = call('TIME')
  now = string.format('%s.%06d', time[1], time[2])
end
local number = string.format('%d', call('INCR', P .. 'seq'))
if ARGV[7] == '' then
  call('HSET', key, 'n', number, 's', 'q', 'g', given, 'b', body, 'Q', now)
else
  call('HSET', key, 'n', number, 's', 'q', 'g', given, 'b', body, 'Q', now, 'e', ARGV[7], 'f', '1')
end
local line, rank = P .. 'q:' .. queue, string.format('%d', ARGV[9] + number)
if call('EXISTS', P .. 'idle:' .. queue) == 0 then
  call('ZADD', line, rank, id)
  call('SADD', P .. 'queues', queue)
  return '\n'
end

local MOST = 8192  -- bytes of a lease that go with a bell

-- Return the token to lease it to this worker with, if nothing speaks against that; and whether the
-- worker may claim more.
local function standing(worker, text)
  if not text or #id + #given + #body + #ARGV[7] > MOST then return end
  if not string.find(given, '^[^,]*,[^,]*,[^,]*,[^,]*,1,') then return end  -- acks_late is off
  local token, well, more, any, at = string.match(text, '^(%d+) (%S+) ([1+])([*-])()')
  if not token then return end  -- a later version's
  local queues, consumed = {}, false
  local keys = {P .. 'leases:' .. worker, P .. 'paused', P .. 'limits:names'}
  while at <= #text do
    local size, from = string.match(text, '^(%d+):()', at)
    at = from + tonumber(size)
    local name = string.sub(text, from, at - 1)
    queues[#queues + 1] = name
    consumed = consumed or name == queue
    local last = #keys  -- what it would claim before
    keys[last + 1], keys[last + 2] = P .. 'q:' .. name, P .. 'limited:' .. name
  end
  if not consumed then return end
  if #queues < 3 or call('EXISTS', P .. 'parked') == 1 then
    for _, name in ipairs(queues) do keys[#keys + 1] = P .. 'p:' .. name end
  end
  for _, name in ipairs(queues_with('d:', queues)) do
    if call('ZCOUNT', P .. 'd:' .. name, '-inf', now) > 0 then return end
  end
  for i = 1, #keys, 1000 do  -- `unpack` has a limit
    if call('EXISTS', unpack(keys, i, math.min(i + 999, #keys))) > 0 then return end
  end
  local beat = call('ZSCORE', P .. 'workers', worker)
  if not beat then return end
  local steady = tonumber(ARGV[2])
    or tonumber(now) - tonumber(call('HGET', P .. 'meta', 'shift') or '0')  -- see beat.lua
  if steady - tonumber(beat) >= tonumber(well) then return end
  if any == '-' then
    local size, from = string.match(given, SIZE_OF_QUEUE)
    local task = string.sub(given, from + tonumber(size))
    if call('SISMEMBER', P .. 'known:' .. worker, task) == 0 then return end
  end
  return token, more == '+'
end

local leased = false
local function ring()  -- one that listens; it is leased the message, if it stands by
  repeat
    local worker, idle, stands = next_idle(queue)
    if not worker then return end
    local token, more = standing(worker, stands)
    local channel, bell = P .. 'work:' .. worker, ''
    -- Other servers pass on what is published, a lease as well, and only those who listen
    -- here are counted: where nobody does, it is none that may be heard.
    if token and call('PUBSUB', 'NUMSUB', channel)[2] == 0 then token = nil end
    if token then
      bell = string.format('%s %s %d %d %d\n', number, token, #id, #given, #body)
        .. id .. given .. body .. ARGV[7]
    end
    local heard = call('PUBLISH', channel, bell) > 0
    if heard and token then
      leased = true
      call('HSET', key, 's', 'r', 'k', token .. ' ' .. worker .. ' 1 ' .. now)
      call('SADD', P .. 'leases:' .. worker, id)
      -- Who has what it may have has room no more, in none of its queues.
      idle = idle and idle_as(worker, idle, string.match(idle, '^%S+'), {}, more)
    end
    if idle then call('HSET', P .. 'worker:' .. worker, 'idle', idle) end
  until heard
end

-- An error there is another program's keys: whatever became of the bell, the message is kept.
local rung, why = pcall(ring)
if not leased then call('ZADD', line, rank, id) end
call('SADD', P .. 'queues', queue)
if not rung then return type(why) == 'table' and why or {err = why} end
return '\n'
