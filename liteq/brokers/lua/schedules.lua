-- Broker.schedules
-- Needs: form base
-- Answers   for each entry: name, entry, due, origin, paused, last_due, last_run, last_id,
--           total, revision
--
-- Keys:
--   schedules        set   names
--   schedule:<name>  hash  those fields; absent: None

for _, name in ipairs(call('SMEMBERS', P .. 'schedules')) do
  local found = call('HMGET', P .. 'schedule:' .. name, 'entry', 'due', 'origin', 'paused',
    'last_due', 'last_run', 'last_id', 'total', 'revision')
  put(name)
  for i = 1, 9 do put(found[i]) end
end
return answer()
