-- Broker.workers, and whom Broker.reclaim looks at.
-- Needs: form base
-- Answers   for each worker that is not gone: id, name, hostname, pid, boot, space, birth,
--           queues, concurrency, details, started, seconds since its last heartbeat; and for
--           each that is gone with leases that nobody took back yet: its id, and no more

local shift = ARGV[2] == '' and tonumber(call('HGET', P .. 'meta', 'shift') or '0') or 0
local alive = call('ZRANGE', P .. 'workers', 0, -1, 'WITHSCORES')
for i = 1, #alive, 2 do
  local found = call('HMGET', P .. 'worker:' .. alive[i], 'name', 'hostname', 'pid', 'boot',
    'space', 'birth', 'queues', 'concurrency', 'details', 'started')
  put(alive[i])
  for j = 1, 10 do put(found[j]) end
  put(STEADY - shift - tonumber(alive[i + 1]))
end
for _, id in ipairs(call('ZRANGE', P .. 'gone', 0, -1)) do
  if call('EXISTS', P .. 'leases:' .. id) == 1 then
    put(id)
    for _ = 1, 11 do put(nil) end
  end
end
return answer()
