-- A slice of Broker.maintain: delete what has expired, end what is too late, give back slots.
-- Needs: form calling base | ends limiting late
-- ARGV[4]   how many of each at most
--      [5]  parked before this time: named in the answer, for the caller to give up
--      [6]  gone before this time: forgotten
-- Answers   1 if there is more to do now; the number of slots given back; for each: bucket, id;
--           then for each parked too long: id, task

write_when_full()
local most = tonumber(ARGV[4])
local more = false
local function slice(key, before)
  local ids = call('ZRANGEBYSCORE', key, '-inf', before, 'LIMIT', 0, most)
  if #ids > 0 then more = true end
  return ids
end

for _, id in ipairs(slice(P .. 'expiring', NOW_TEXT)) do
  local found = redis.pcall('HMGET', P .. 'm:' .. id, 's', 'W', 'U')
  -- One that another program has deleted may have had any state.
  for _, state in ipairs(found[1] and {found[1]} or {'S', 'F', 'R', 'I'}) do
    delete(id, state, found[2], found[3], true)
  end
end
if end_late(most) > 0 then more = true end
for _, id in ipairs(slice(P .. 'gone', ARGV[6])) do
  if call('EXISTS', P .. 'leases:' .. id) == 0 then
    call('DEL', P .. 'worker:' .. id, P .. 'known:' .. id, P .. 'orders:' .. id, P .. 'closed:' .. id)
    call('ZREM', P .. 'gone', id)
  end
end
local parked = slice(P .. 'parked', ARGV[5])

-- Names of queues that nothing is in: some are looked at each time.
local names, empty = call('SRANDMEMBER', P .. 'queues', most), {}
for _, queue in ipairs(names) do
  if call('EXISTS', P .. 'w:' .. queue, P .. 'q:' .. queue, P .. 'd:' .. queue, P .. 'p:' .. queue,
      P .. 'limited:' .. queue, P .. 'blocked:' .. queue) == 0 then
    empty[#empty + 1] = queue
  end
end
if #empty > 0 then
  call('SREM', P .. 'queues', unpack(empty))
  if #names == most then more = true end
end

-- A message whose H another program has damaged ends without giving its slots back. They are
-- in somebody's way where a bucket blocks a line; some of those are looked at each time.
local given_back, looked_at = {}, 0
local function recount(bucket)
  local ids = call('SRANDMEMBER', P .. 'slots:' .. bucket, math.max(most - looked_at, 0))
  looked_at = looked_at + #ids
  for _, id in ipairs(ids) do
    if redis.pcall('HMGET', P .. 'm:' .. id, 's')[1] ~= 'r' then
      give_slot_back(bucket, id)
      given_back[#given_back + 1] = {bucket, id}
    end
  end
end
if call('EXISTS', P .. 'limits:rules') == 1 then
  for _, queue in ipairs(call('SRANDMEMBER', P .. 'queues', 10)) do
    local lines = call('HRANDFIELD', P .. 'blocked:' .. queue, 10, 'WITHVALUES')
    for i = 2, #lines, 2 do recount(lines[i]) end
  end
end

ring()
put(more and '1' or '0')
put(#given_back)
for _, slot in ipairs(given_back) do
  put(slot[1])
  put(slot[2])
end
for _, id in ipairs(parked) do
  put(id)
  put(given_of(redis.pcall('HMGET', P .. 'm:' .. id, 'g')[1]).t)
end
return answer()
