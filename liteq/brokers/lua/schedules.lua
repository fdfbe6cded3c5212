-- Broker.schedules
-- Needs: form base
-- ARGV[4…]  the names of those that are wanted; none: all
-- Answers   for each entry: name, entry, due, origin, paused, last_due, last_run, last_id,
--           total, revision
--
-- Keys:
--   schedules        set   names
--   schedule:<name>  hash  those fields; absent: None

local names = {}
for i = 4, #ARGV do names[#names + 1] = ARGV[i] end
if not names[1] then names = call('SMEMBERS', P .. 'schedules') end
for _, name in ipairs(names) do
  local found = call('HMGET', P .. 'schedule:' .. name, 'entry', 'due', 'origin', 'paused',
    'last_due', 'last_run', 'last_id', 'total', 'revision')
  if found[1] then
    put(name)
    for i = 1, 9 do put(found[i]) end
  end
end
return answer()
