-- A slice of Broker.queues: how many dead letters there are, by queue.
-- Needs: form base
-- ARGV[4]   the number to go on behind     [5]  how many at most
-- Answers   the number to go on behind, "-" if that was all; then for each queue of these:
--           its name, how many

local some = call('ZRANGEBYSCORE', P .. 'dead', '(' .. ARGV[4], '+inf', 'WITHSCORES',
  'LIMIT', 0, ARGV[5])
local found = {}
for i = 1, #some, 2 do
  local queue = given_of(call('HGET', P .. 'm:' .. some[i], 'g')).q
  found[queue] = (found[queue] or 0) + 1
end
put(#some == 2 * tonumber(ARGV[5]) and some[#some] or nil)
for queue, number in pairs(found) do
  put(queue)
  put(number)
end
return answer()
