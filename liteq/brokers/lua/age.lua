-- Broker.age: raise the priority of what has been claimable for long.
-- Needs: form base | ends
-- ARGV[4]   the seconds that are worth one priority     [5]  how many of each at most
--      [6…] queues
-- Answers   how many were raised

write_when_full()
local seconds, most, count = tonumber(ARGV[4]), ARGV[5], 0
local BAND = 17592186044416  -- see `rank`

local function band(priority)
  return string.format('%.17g', (9 - priority) * BAND)
end

for i = 6, #ARGV do
  local key = P .. 'q:' .. ARGV[i]
  for priority = 8, 0, -1 do
    local heads = call('ZRANGEBYSCORE', key, band(priority), '(' .. band(priority - 1), 'LIMIT',
      0, most)
    for _, id in ipairs(heads) do
      local m = redis.pcall('HMGET', P .. 'm:' .. id, 'Q', 'u', 'g', 'n')
      local since, number = number_of(m[1]), tonumber(m[4] or nil)
      local waited = NOW - math.max(since or NOW, number_of(m[2]) or 0)
      local damaged = not number or given_of(m[3]).damaged  -- its claim says so
      if waited >= seconds * (priority + 1) and not damaged then
        local raised = math.min(9, math.floor(waited / seconds))
        call('HSET', P .. 'm:' .. id, 'g', (string.gsub(m[3], '^%-?%d+', tostring(raised))))
        call('ZADD', key, rank(raised, number), id)
        count = count + 1
      end
    end
  end
end
put(count)
return answer()
