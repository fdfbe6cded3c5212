-- Broker.put_schedule: write an entry.
-- Needs: form base
-- ARGV[4]   name   [5]  entry   [6]  due ("" never)   [7]  origin   [8]  paused (1, 0)
--      [9]  the revision it must have ("" any, 0: there is none)
--      [10…13]  last_due, last_run, last_id ("" none), total: for the first write
--      [14]  its new revision
-- Answers   1, or 0 if it had another revision

local said = once()
if said then return said end
local key = P .. 'schedule:' .. ARGV[4]
local revision = call('HGET', key, 'revision')
if ARGV[9] ~= '' and ARGV[9] ~= (revision or '0') then
  put('0')
  return answer()
end
call('HSET', key, 'entry', ARGV[5], 'origin', ARGV[7], 'paused', ARGV[8],
  'revision', ARGV[14])
if ARGV[6] ~= '' then call('HSET', key, 'due', ARGV[6]) else call('HDEL', key, 'due') end
if not revision then
  call('SADD', P .. 'schedules', ARGV[4])
  call('HSET', key, 'total', ARGV[13])
  for i, field in ipairs({'last_due', 'last_run', 'last_id'}) do
    if ARGV[9 + i] ~= '' then call('HSET', key, field, ARGV[9 + i]) end
  end
end
call('PUBLISH', P .. 'beats', '')
put('1')
return answer_once()
