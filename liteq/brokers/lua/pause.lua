-- Broker.pause and Broker.resume.
-- Needs: form calling base
-- ARGV[4]   the queue     [5]  "1": pause it, "": resume it
-- Answers   1 if that changed anything

local said = once()
if said then return said end
write_when_full()
local queue = ARGV[4]
local changed
if ARGV[5] == '1' then
  changed = call('SADD', P .. 'paused', queue)
else
  changed = call('SREM', P .. 'paused', queue)
  if changed == 1 then
    -- A worker takes what has come due, too, when it is woken, and says when more will be.
    fresh[queue] = call('ZCARD', P .. 'q:' .. queue) + call('ZCARD', P .. 'd:' .. queue)
    ring()
  end
end
put(changed)
return answer_once()
