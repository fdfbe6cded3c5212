-- Which of a worker's queues have a key of a kind, such as `d:`. Of hundreds of queues most have
-- none, and to ask each would take longer than all else: so many are asked at once, and by halves.

local function add_those_with(found, queues, keys, first, last, count)
  if count == 0 then return end
  if count == last - first + 1 then
    for i = first, last do found[#found + 1] = queues[i] end
    return
  end
  local middle = math.floor((first + last) / 2)
  local left = redis.call('EXISTS', unpack(keys, first, middle))
  add_those_with(found, queues, keys, first, middle, left)
  add_those_with(found, queues, keys, middle + 1, last, count - left)
end

-- Return those of these queues that have such a key; or all, if they are so few that it is no
-- more to look into each. `known`: some that have one, which may be all that do.
local function queues_with(kind, queues, known)
  if #queues < 3 then return queues end
  local found, keys = {}, {}
  for i, queue in ipairs(queues) do keys[i] = KEYS[1] .. kind .. queue end
  for first = 1, #keys, 1000 do  -- `unpack` has a limit
    local last = math.min(first + 999, #keys)
    local count = redis.call('EXISTS', unpack(keys, first, last))
    if known and count == #known and #keys <= 1000 then return known end
    add_those_with(found, queues, keys, first, last, count)
  end
  return found
end
