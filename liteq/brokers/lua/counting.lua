-- How many unfinished messages there are, by queue and state.

-- Return a table of queue: {waiting, queued, delayed, running, parked, limited}, of
-- queues with any.
local function count_all()
  local running = {}
  local function count(workers)
    for _, worker in ipairs(workers) do
      for _, id in ipairs(call('SMEMBERS', P .. 'leases:' .. worker)) do
        local queue = given_of(call('HGET', P .. 'm:' .. id, 'g')).q
        running[queue] = (running[queue] or 0) + 1
      end
    end
  end
  count(call('ZRANGE', P .. 'workers', 0, -1))
  count(call('ZRANGE', P .. 'gone', 0, -1))
  local names, counted = call('SMEMBERS', P .. 'queues'), {}
  for queue in pairs(running) do names[#names + 1] = queue end  -- it may be in no other set
  for _, queue in ipairs(names) do
    local numbers = {call('ZCARD', P .. 'w:' .. queue), call('ZCARD', P .. 'q:' .. queue),
      call('ZCARD', P .. 'd:' .. queue), running[queue] or 0, parked_in(queue),
      call('ZCARD', P .. 'limited:' .. queue)}
    local sum = 0
    for _, number in ipairs(numbers) do sum = sum + number end
    if sum > 0 then counted[queue] = numbers end
  end
  return counted
end
