-- Broker.counts: unfinished messages by queue and state.
-- Needs: base
-- Answers   for each queue with any: its name; waiting, queued, delayed, running, parked

local running = {}
local function count(workers)
  for _, worker in ipairs(workers) do
    for _, id in ipairs(call('SMEMBERS', P .. 'leases:' .. worker)) do
      local queue = call('HGET', P .. 'm:' .. id, 'q')
      running[queue] = (running[queue] or 0) + 1
    end
  end
end
count(call('ZRANGE', P .. 'workers', 0, -1))
count(call('ZRANGE', P .. 'gone', 0, -1))
for _, queue in ipairs(call('SMEMBERS', P .. 'queues')) do
  local parked = 0
  for _, task in ipairs(call('SMEMBERS', P .. 'p:' .. queue)) do
    parked = parked + call('ZCARD', P .. 'parked:' .. #queue .. ':' .. queue .. ':' .. task)
  end
  local numbers = {call('ZCARD', P .. 'w:' .. queue), call('ZCARD', P .. 'q:' .. queue),
    call('ZCARD', P .. 'd:' .. queue), running[queue] or 0, parked}
  local sum = 0
  for _, number in ipairs(numbers) do sum = sum + number end
  if sum > 0 then
    put(queue)
    for _, number in ipairs(numbers) do put(number) end
  end
end
return answer()
