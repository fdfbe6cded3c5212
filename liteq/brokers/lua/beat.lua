-- Broker.beat: a worker lives.
-- Needs: form base
-- ARGV[4]   worker     [5]  details, "" if there is no news
--      [6]  what the steady time should be by the worker's own clock, "" if it cannot tell
--      [7]  queues (JSON)     [8]  concurrency; "" if there is no news
-- Answers   the version of the keys; 1, or 0 if it was given up; the steady time
--
-- Redis has no clock but the wall clock, which may be set. The keeper of a heartbeat knows by
-- its own clock how long ago the last one was: if the server's says something that is more
-- than ten seconds from that, it was set, and the shift is written down. It is of no matter
-- which worker notices first: for all the others it is right again then.

write_when_full()
local meta = call('HMGET', P .. 'meta', 'version', 'shift')
put(meta[1])
local shift = tonumber(meta[2] or '0')
local steady = STEADY
if ARGV[2] == '' then
  steady = steady - shift
  if ARGV[6] ~= '' and math.abs(steady - tonumber(ARGV[6])) > 10 then
    shift = shift + steady - tonumber(ARGV[6])
    steady = tonumber(ARGV[6])
    call('HSET', P .. 'meta', 'shift', string.format('%.6f', shift))
  end
end
if not call('ZSCORE', P .. 'workers', ARGV[4]) then
  put('0')
  return answer()
end
call('ZADD', P .. 'workers', steady, ARGV[4])
if ARGV[5] ~= '' then call('HSET', P .. 'worker:' .. ARGV[4], 'details', ARGV[5]) end
local queues = ARGV[7] ~= '' and call('HGET', P .. 'worker:' .. ARGV[4], 'queues')
if queues and queues ~= ARGV[7] then
  for _, queue in ipairs(cjson.decode(queues)) do  -- it may have left some of them
    call('SREM', P .. 'idle:' .. queue, ARGV[4])
  end
  call('HSET', P .. 'worker:' .. ARGV[4], 'queues', ARGV[7])
  -- Until it has looked at the new ones.
  call('HDEL', P .. 'worker:' .. ARGV[4], 'standby', 'idle')
end
local idle = call('HGET', P .. 'worker:' .. ARGV[4], 'idle')
if idle then  -- of no queues that it may have: see `calling.lua`
  call('HSET', P .. 'worker:' .. ARGV[4], 'idle', '-' .. (string.match(idle, ' [01]') or ' 1'))
end
if ARGV[8] ~= '' then call('HSET', P .. 'worker:' .. ARGV[4], 'concurrency', ARGV[8]) end
put('1')
put(steady)
return answer()
