-- Broker.events: read on in the stream of events.
-- Needs: form base
-- ARGV[4]   after this number     [5]  how many at most
-- Answers   the number of the last one read; how many are missing before the first; the events
--
-- A reader may be ahead of the stream: the server came back without its data, or with older
-- data. What was lost nobody knows: it counts as one, and the reader begins anew.

local after, key = tonumber(ARGV[4]), P .. 'events'
local last, kept = tonumber(call('GET', P .. 'events-last') or '0'), call('LLEN', key)
local first = last - kept + 1
if after > last then after = first - 2 end
local from = math.max(after + 1, first)
local found = {}
if from <= last then
  found = call('LRANGE', key, from - first, from - first + tonumber(ARGV[5]) - 1)
end
put(from - 1 + #found)
put(from - 1 - after)
for _, event in ipairs(found) do put(event) end
return answer()
