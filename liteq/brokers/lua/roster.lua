-- Broker.roster: all workers that did not leave by themselves.
-- Needs: form base
-- ARGV[4]   for how many seconds the dead are told of
-- Answers   for each: what workers.lua answers, the number of its leases, and when it was
--           given up, if it was

local shift = ARGV[2] == '' and tonumber(call('HGET', P .. 'meta', 'shift') or '0') or 0
local function tell(id, beat)
  local found = call('HMGET', P .. 'worker:' .. id, 'name', 'hostname', 'pid', 'boot',
    'space', 'birth', 'queues', 'concurrency', 'details', 'started', 'ended', 'stopped')
  if not found[1] or found[11] == 'left' then return end
  put(id)
  for j = 1, 10 do put(found[j]) end
  put(beat and STEADY - shift - tonumber(beat) or NOW - tonumber(found[12]))
  put(call('SCARD', P .. 'leases:' .. id))
  put(found[12])
end

local alive = call('ZRANGE', P .. 'workers', 0, -1, 'WITHSCORES')
for i = 1, #alive, 2 do tell(alive[i], alive[i + 1]) end
for _, id in ipairs(call('ZRANGEBYSCORE', P .. 'gone', NOW - tonumber(ARGV[4]), '+inf')) do
  tell(id, nil)
end
return answer()
