-- A slice of Broker.browse: which messages are in a state.
-- Needs: form base
-- ARGV[4]   which: dead, S, F, R, I, y retrying, w waiting, q queued, d delayed, r running,
--           p parked, l limited
--      [5]  the queue, "" for all (but w, q, d and l: those are looked at queue by queue)
--      [6]  how many at most     [7]  where to go on
-- Answers   where to go on ("-" if that was all); then for each: number, id
--
-- What is delayed, running or parked comes in another order than that of the numbers.

local which, queue, most, from = ARGV[4], ARGV[5], tonumber(ARGV[6]), tonumber(ARGV[7])
local BAND = 17592186044416  -- see `rank` in ends.lua
local found, following = {}, nil

local function look(ids)
  for _, id in ipairs(ids) do
    local m = call('HMGET', P .. 'm:' .. id, 'n', 'g', 'r')
    local mine = queue == '' or given_of(m[2]).q == queue
    if mine and not (m[3] and (which == 'q' or which == 'd')) then
      found[#found + 1] = m[1]
      found[#found + 1] = id
    end
  end
end

if which == 'r' then
  for _, set in ipairs({'workers', 'gone'}) do
    for _, worker in ipairs(call('ZRANGE', P .. set, 0, -1)) do
      look(call('SMEMBERS', P .. 'leases:' .. worker))
    end
  end
elseif which == 'q' then  -- the oldest of each priority
  local key, floor = P .. 'q:' .. queue, '-inf'
  while true do
    local first = call('ZRANGEBYSCORE', key, floor, '+inf', 'WITHSCORES', 'LIMIT', 0, 1)
    if not first[1] then break end
    local top = string.format('%.17g', (math.floor(tonumber(first[2]) / BAND) + 1) * BAND)
    local at, enough = 0, #found + 2 * most
    repeat
      local some = call('ZRANGEBYSCORE', key, first[2], '(' .. top, 'LIMIT', at, most)
      look(some)
      at = at + most
    until #some < most or #found >= enough
    floor = top
  end
else
  local key
  if string.find('SFRI', which, 1, true) then
    key = P .. 'over:' .. which
  else
    key = ({dead = P .. 'dead', y = P .. 'retrying', p = P .. 'parked',
      w = P .. 'w:' .. queue, l = P .. 'limited:' .. queue, d = P .. 'd:' .. queue})[which]
  end
  local some = call('ZRANGE', key, from, from + most - 1)
  look(some)
  if #some == most then following = from + most end
end
put(following)
for _, text in ipairs(found) do put(text) end
return answer()
