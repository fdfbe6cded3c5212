-- Broker.remove_schedule
-- Needs: base
-- ARGV[4]   name
-- Answers   1, or 0 if there was none
--
-- The highest revision of what was removed is kept (meta, field removed): an entry that is
-- made again under the name begins above it, so that a late `fire` of the old one is refused.

local said = once()
if said then return said end
local key = P .. 'schedule:' .. ARGV[4]
local revision = call('HGET', key, 'revision')
if revision then
  local removed = tonumber(call('HGET', P .. 'meta', 'removed') or '0')
  if tonumber(revision) > removed then call('HSET', P .. 'meta', 'removed', revision) end
  call('DEL', key)
  call('SREM', P .. 'schedules', ARGV[4])
  call('PUBLISH', P .. 'beats', '')
end
put(revision and '1' or '0')
return answer_once()
