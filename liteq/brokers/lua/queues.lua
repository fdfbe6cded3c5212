-- Broker.queues, but for the dead letters: see `dead_in.lua`.
-- Needs: form base | length counting
-- Answers   for each queue that holds unfinished messages or is paused: its name; 1 or 0:
--           whether it is paused; how long the first in line has been claimable, "-" if
--           nothing is; waiting, queued, delayed, running, parked, limited

local BAND = 17592186044416  -- see `rank` in ends.lua

local function latency(queue)  -- of the first of each priority, the longest
  local key, floor, longest = P .. 'q:' .. queue, '-inf', nil
  while true do
    local first = call('ZRANGEBYSCORE', key, floor, '+inf', 'WITHSCORES', 'LIMIT', 0, 1)
    if not first[1] then return longest end
    local found = call('HMGET', P .. 'm:' .. first[1], 'Q', 'u')
    local since = math.max(tonumber(found[1]), tonumber(found[2] or '0'))
    longest = math.max(longest or 0, NOW - since)
    floor = string.format('%.17g', (math.floor(tonumber(first[2]) / BAND) + 1) * BAND)
  end
end

local counted = count_all()
for _, queue in ipairs(call('SMEMBERS', P .. 'paused')) do
  counted[queue] = counted[queue] or {0, 0, 0, 0, 0, 0}
end
for queue, numbers in pairs(counted) do
  put(queue)
  put(call('SISMEMBER', P .. 'paused', queue))
  put(latency(queue))
  for _, number in ipairs(numbers) do put(number) end
end
return answer()
