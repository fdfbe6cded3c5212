-- A worker listens now: it wants to hear of new work.
-- Needs: form base
-- ARGV[4]   worker
--      [5]  1 if it has listened before: it is to look for what came meanwhile

write_when_full()
local queues = call('HGET', P .. 'worker:' .. ARGV[4], 'queues')
if queues then
  for _, queue in ipairs(cjson.decode(queues)) do
    call('SADD', P .. 'idle:' .. queue, ARGV[4])
  end
end
if ARGV[5] == '1' then call('PUBLISH', P .. 'work:' .. ARGV[4], '') end
return answer()
