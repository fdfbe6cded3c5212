-- Broker.enqueue of one message that is claimable at once: most of what is ever sent.
--
-- What `enqueue.lua` does with such a message, and nothing else: reading a script's functions
-- takes the server longer than all that is done here. What `put` and `ring` would do is spelt
-- out, and what waits (a time, an edge, a limit, a unique key) goes the other way.
-- Needs: nothing
-- KEYS[1], ARGV[1] to [3]   see base.lua
-- ARGV[4]   id     [5]  g     [6]  body     [7]  envelope, "" for none
--      [8]  its queue     [9]  what its priority adds to its number, to be its rank (see ends.lua)
-- Answers   one empty line; or what enqueue.lua answers, for an id that was used for another

local P, call = KEYS[1], redis.call
local id, given, body, queue = ARGV[4], ARGV[5], ARGV[6], ARGV[8]
local key = P .. 'm:' .. id
local there = call('HMGET', key, 'g', 'b', 'j')
if there[1] then
  local function task(text)
    local size, at = string.match(text, '^[^,]*,[^,]*,[^,]*,[^,]*,[^,]*,[^,]*,[^,]*,[^,]*,(%d+),()')
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
call('ZADD', P .. 'q:' .. queue, string.format('%d', ARGV[9] + number), id)
call('SADD', P .. 'queues', queue)
repeat  -- until one is rung that listens
  local worker = call('SPOP', P .. 'idle:' .. queue)
until not worker or call('PUBLISH', P .. 'work:' .. worker, '') > 0
return '\n'
