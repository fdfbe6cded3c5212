-- A slice of Broker.find: messages of one place, the latest first where they are in order.
-- Needs: form base
-- ARGV[4]   the place: z in the order of numbers, q queued, u in another order, r running
--      [5]  the key of the place, below the prefix ("" of r)
--      [6]  where to go on: for z and q the number behind which, "inf" at first; for u a rank
--      [7]  how many are looked at
--      [8]  letters of the states that are wanted, "" for all; y for one that waits for
--           another attempt (which is then neither q nor d)
--      [9]  the queue     [10] the task, a pattern of * and ?     [11] enqueued since, [12] until
--      [13] "1" for dead letters only     [14] a text in why     [15] died since, [16] until;
--           each "" for any     [17] of u and r: only numbers above this one
-- Answers   where to go on ("-" if that was all); for each: number, id, task, queue, letter

local place, key, from, most = ARGV[4], P .. ARGV[5], ARGV[6], tonumber(ARGV[7])
local letters, queue, pattern = given(ARGV[8]), given(ARGV[9]), given(ARGV[10])
local since, till = tonumber(ARGV[11]), tonumber(ARGV[12])
local dead, reason = given(ARGV[13]), given(string.lower(ARGV[14]))
local died_since, died_till = tonumber(ARGV[15]), tonumber(ARGV[16])
local above = tonumber(ARGV[17])
local BAND = 17592186044416  -- see `rank` in ends.lua

-- Compare with a pattern by going back to the last star only: no pattern takes long.
local function like(text)
  local t, p, star, mark = 1, 1, nil, nil
  while t <= #text do
    local c = string.byte(pattern, p)
    if c == 42 then
      star, mark, p = p, t, p + 1
    elseif c == 63 then
      p, t = p + 1, t + 1
      while t <= #text and math.floor(string.byte(text, t) / 64) == 2 do t = t + 1 end
    elseif c and c == string.byte(text, t) then
      p, t = p + 1, t + 1
    elseif star then
      mark = mark + 1
      p, t = star + 1, mark
    else
      return false
    end
  end
  while string.byte(pattern, p) == 42 do p = p + 1 end
  return p > #pattern
end

-- Whether the queue and the task are those looked for. Most messages have one `g` of a few.
local fitting = {}
local function fits(g)
  if fitting[g] == nil then
    local t, q = given_of(g).t, given_of(g).q
    fitting[g] = t ~= 'liteq.gather' and not (queue and q ~= queue) and (not pattern or like(t))
  end
  return fitting[g]
end

local found = {}
local function look(id)
  local key = P .. 'm:' .. id
  if above and tonumber(call('HGET', key, 'n') or 0) <= above then return end
  -- One field near the front takes a third of the time of all: so those that do not fit cost.
  if (queue or pattern) and not fits(call('HGET', key, 'g')) then return end
  local n, g, s, r, Q, X, Z = unpack(call('HMGET', key, 'n', 'g', 's', 'r', 'Q', 'X', 'Z'))
  if not n or not fits(g) then return end
  local t, q = given_of(g).t, given_of(g).q
  if r and (s == 'q' or s == 'd') then s = 'y' end
  if letters and not string.find(letters, s, 1, true) then return end
  if since and tonumber(Q) < since or till and tonumber(Q) >= till then return end
  if dead and not X then return end
  if reason and not (X and string.find(string.lower(X), reason, 1, true)) then return end
  if died_since and not (Z and tonumber(Z) >= died_since) then return end
  if died_till and not (Z and tonumber(Z) < died_till) then return end
  found[#found + 1] = {n, id, t, q, s}
end

local following
if place == 'z' then
  local top = from == 'inf' and '+inf' or '(' .. from
  local some = call('ZREVRANGEBYSCORE', key, top, '-inf', 'WITHSCORES', 'LIMIT', 0, most)
  for i = 1, #some, 2 do look(some[i]) end
  if #some == 2 * most then following = some[#some] end
elseif place == 'q' then  -- the latest of each priority, down to where one gave no more
  local bands, floor, least = {}, '-inf', -1
  while true do
    local first = call('ZRANGEBYSCORE', key, floor, '+inf', 'WITHSCORES', 'LIMIT', 0, 1)
    if not first[1] then break end
    local band = math.floor(tonumber(first[2]) / BAND) * BAND
    floor = string.format('%.17g', band + BAND)
    local top = from == 'inf' and '(' .. floor or
      '(' .. string.format('%.17g', band + tonumber(from))
    local some = call('ZREVRANGEBYSCORE', key, top, string.format('%.17g', band),
      'WITHSCORES', 'LIMIT', 0, most)
    if #some == 2 * most then least = math.max(least, tonumber(some[#some]) - band) end
    bands[#bands + 1] = {band, some}
  end
  for _, one in ipairs(bands) do
    for i = 1, #one[2], 2 do
      if tonumber(one[2][i + 1]) - one[1] >= least then look(one[2][i]) end
    end
  end
  if least >= 0 then following = least end
elseif place == 'u' then
  -- From behind: what is due last has mostly come last, and the rest is then passed over.
  local some = call('ZREVRANGE', key, from, tonumber(from) + most - 1)
  for _, id in ipairs(some) do look(id) end
  if #some == most then following = tonumber(from) + most end
else
  for _, set in ipairs({'workers', 'gone'}) do
    for _, worker in ipairs(call('ZRANGE', P .. set, 0, -1)) do
      for _, id in ipairs(call('SMEMBERS', P .. 'leases:' .. worker)) do look(id) end
    end
  end
end
put(following)
for _, one in ipairs(found) do
  for i = 1, 5 do put(one[i]) end
end
return answer()
