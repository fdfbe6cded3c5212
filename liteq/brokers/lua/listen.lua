-- Broker.listen: a mailbox wants to be woken by events, or no longer.
-- Needs: form base
-- ARGV[4]   the mailbox     [5]  for how many seconds, 0 for no more
-- Answers   the number of the last event
--
-- Keys:
--   listeners           zset     mailboxes, by until when they listen
--   events              list     the last events; expires when none has come for a while
--   events-last         integer  the number of the last one
--   worker:<id>         hash     its field `heard` says until when somebody listens, so that a
--                                step need not ask

write_when_full()
local key, seconds = P .. 'listeners', tonumber(ARGV[5])
call('ZREMRANGEBYSCORE', key, '-inf', NOW_TEXT)
local unheard = call('ZCARD', key) == 0
if seconds > 0 then
  call('ZADD', key, NOW + seconds, ARGV[4])
else
  call('ZREM', key, ARGV[4])
end
local latest = call('ZREVRANGE', key, 0, 0, 'WITHSCORES')[2]
for _, worker in ipairs(call('ZRANGE', P .. 'workers', 0, -1)) do
  if latest then
    call('HSET', P .. 'worker:' .. worker, 'heard', latest)
    if unheard then call('PUBLISH', P .. 'work:' .. worker, 'mail') end
  else
    call('HDEL', P .. 'worker:' .. worker, 'heard')
  end
end
put(tonumber(call('GET', P .. 'events-last') or '0'))
return answer()
