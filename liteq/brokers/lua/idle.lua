-- A worker listens now: it wants to hear of new work.
-- Needs: form base
-- ARGV[4]   worker

write_when_full()
local queues = call('HGET', P .. 'worker:' .. ARGV[4], 'queues')
if queues then
  for _, queue in ipairs(cjson.decode(queues)) do
    call('SADD', P .. 'idle:' .. queue, ARGV[4])
  end
end
return answer()
