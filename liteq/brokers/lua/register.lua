-- Broker.register: enter a worker.
-- Needs: form base
-- ARGV[4…]  names and values of its fields: name, hostname, pid, boot, space, birth, queues,
--           concurrency, details
-- Answers   the worker's id
--
-- Keys:
--   worker:<id>  hash  those fields; started; stopped, if it has, and how it ended (left,
--                      died); known (a digest), word and said (of its last step); mail, when
--                      letters came; heard (until when somebody listens to events); standby
--                      (see `enqueue_one.lua`); idle (see `calling.lua`)
--   workers      zset  ids of workers that are alive, by their last heartbeat (steady time)
--   gone         zset  ids of those that are not, by when they stopped
--   last-worker  the number of the worker that came last

local said = once()
if said then return said end
write_when_full()
-- By the time, in microseconds, and not counted: a server that lost its keys, or came back with
-- older ones, would count anew, and give a number to one worker that another still goes by.
local last = tonumber(call('GET', P .. 'last-worker') or '0')
local id = string.format('%d', math.max(last + 1, math.floor(NOW * 1e6)))
call('SET', P .. 'last-worker', id)
local fields = {'started', NOW_TEXT}
for i = 4, #ARGV do fields[i - 1] = ARGV[i] end
call('HSET', P .. 'worker:' .. id, unpack(fields))
local shift = ARGV[2] == '' and tonumber(call('HGET', P .. 'meta', 'shift') or '0') or 0
call('ZADD', P .. 'workers', STEADY - shift, id)  -- see beat.lua
local latest = call('ZREVRANGE', P .. 'listeners', 0, 0, 'WITHSCORES')[2]
if latest then call('HSET', P .. 'worker:' .. id, 'heard', latest) end
call('PUBLISH', P .. 'workers', 'hello')
put(id)
return answer_once()
