-- Broker.remove_schedule
-- Needs: form base
-- ARGV[4]   name
-- Answers   1, or 0 if there was none

local said = once()
if said then return said end
local key = P .. 'schedule:' .. ARGV[4]
local there = call('DEL', key)
if there == 1 then
  call('SREM', P .. 'schedules', ARGV[4])
  call('PUBLISH', P .. 'beats', '')
end
put(there)
return answer_once()
