-- Broker.redrive: give failed messages a fresh start, and what ended with them its wait.
-- Needs: base ends
-- ARGV[4…]  ids
-- Answers   the ids of those that were failed, and not upstream

local said = once()
if said then return said end

local function reopen(m)  -- it is not over any more
  local key = P .. 'm:' .. m.id
  call('ZREM', P .. 'over:' .. m.s, m.id)
  call('ZREM', P .. 'expiring', m.id)
  call('ZREM', P .. 'dead', m.id)
  call('HDEL', key, 'r', 'X', 'K', 'Z', 'T', 'V', 'k', 'c')
end

local function can_wait(m)  -- nothing that it waits for has ended in the wrong way
  local edges = call('HGETALL', P .. 'b:' .. m.id)
  for i = 1, #edges, 2 do
    if edges[i + 1] ~= '+' then
      local state = call('HGET', P .. 'm:' .. edges[i], 's')
      if not state or string.find('SFRI', state, 1, true) then return false end
    end
  end
  return true
end

local back, driven = {}, {}
for i = 4, #ARGV do
  local m = load(ARGV[i])
  if m and m.s == 'F' and m.V ~= 'upstream' and m.t ~= '' and m.t ~= GATHER then
    reopen(m)
    local key = P .. 'm:' .. m.id
    call('HDEL', key, 'u', 'x')
    call('HSET', key, 'd', '0', 'y', '0', 'Q', NOW_TEXT,
      's', line_up(m.id, m.q, tonumber(m.p), tonumber(m.n)))
    driven[#driven + 1] = m.id
    back[#back + 1] = m
  end
end
while #back > 0 do
  local round = back
  back = {}
  for _, source in ipairs(round) do
    local edges = source.O and call('HGETALL', P .. 'e:' .. source.id) or {}
    for i = 1, #edges, 2 do
      local m = load(string.sub(edges[i], 2))
      if m and (m.s == 'F' or m.s == 'R') and m.V == 'upstream' and can_wait(m) then
        reopen(m)
        call('HSET', P .. 'm:' .. m.id, 's', 'w')
        call('ZADD', P .. 'w:' .. m.q, m.n, m.id)
        if tonumber(m.P or '0') == 0 then start(m) end
        back[#back + 1] = m
      end
    end
  end
end
ring()
for _, id in ipairs(driven) do put(id) end
return answer_once()
