-- A slice of Broker.purge: delete what waits in a queue, or dead letters.
-- Needs: form calling base | ends
-- ARGV[4]   the queue; of dead letters, "" for any      [5]  "dead" or ""
--      [6]  how many at most     [7]  of dead letters: the number to go on behind
-- Answers   how many were deleted; the number to go on behind, "-" if that was all

local said = once()
if said then return said end
write_when_full()
local queue, count, most = ARGV[4], 0, tonumber(ARGV[6])

local function drop(m)
  purged(m)
  follow()
  delete(m.id, m.s == 'F' and 'F' or nil, m.W, m.U)
  count = count + 1
end

local last
if ARGV[5] == 'dead' then
  local some = call('ZRANGEBYSCORE', P .. 'dead', '(' .. ARGV[7], '+inf', 'LIMIT', 0, most)
  for _, id in ipairs(some) do
    local m = load(id)
    last = m.n
    if queue == '' or m.q == queue then
      m.O = nil  -- what it meant for others, it has meant already
      drop(m)
    end
  end
  if #some < most then last = nil end
else
  local sources = {P .. 'q:' .. queue, P .. 'd:' .. queue, P .. 'limited:' .. queue}
  for _, task in ipairs(call('SMEMBERS', P .. 'p:' .. queue)) do
    sources[#sources + 1] = parked_key(queue, task)
  end
  for _, key in ipairs(sources) do
    for _, id in ipairs(call('ZRANGE', key, 0, most - count - 1)) do
      local m = load(id)
      take_out(m)
      drop(m)
    end
    if count >= most then break end
  end
  if count >= most then last = '0' end
end
ring()
put(count)
put(last)
return answer_once()
