-- How many messages wait in a queue to be started.

local function parked_in(queue)
  local parked = 0
  for _, task in ipairs(call('SMEMBERS', P .. 'p:' .. queue)) do
    parked = parked + call('ZCARD', P .. 'parked:' .. #queue .. ':' .. queue .. ':' .. task)
  end
  return parked
end

local function length_of(queue)
  return call('ZCARD', P .. 'q:' .. queue) + call('ZCARD', P .. 'd:' .. queue)
    + parked_in(queue) + call('ZCARD', P .. 'limited:' .. queue)
end
