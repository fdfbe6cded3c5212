-- A slice of Broker.maintain: delete what has expired, end what is too late.
-- Needs: form base | ends
-- ARGV[4]   how many of each at most
--      [5]  parked before this time: named in the answer, for the caller to give up
--      [6]  gone before this time: forgotten
-- Answers   1 if there is more to do now; then for each parked too long: id, task

write_when_full()
local most = tonumber(ARGV[4])
local more = false
local function slice(key, before)
  local ids = call('ZRANGEBYSCORE', key, '-inf', before, 'LIMIT', 0, most)
  if #ids > 0 then more = true end
  return ids
end

for _, id in ipairs(slice(P .. 'expiring', NOW_TEXT)) do
  local found = call('HMGET', P .. 'm:' .. id, 's', 'W', 'U')
  delete(id, found[1], found[2], found[3], true)
end
for _, id in ipairs(slice(P .. 'expiry', NOW_TEXT)) do revoke(load(id), 'expired') end
follow()
for _, id in ipairs(slice(P .. 'gone', ARGV[6])) do
  if call('EXISTS', P .. 'leases:' .. id) == 0 then
    call('DEL', P .. 'worker:' .. id, P .. 'known:' .. id, P .. 'orders:' .. id, P .. 'closed:' .. id)
    call('ZREM', P .. 'gone', id)
  end
end
local parked = slice(P .. 'parked', ARGV[5])
ring()
put(more and '1' or '0')
for _, id in ipairs(parked) do
  put(id)
  put(given_of(call('HGET', P .. 'm:' .. id, 'g')).t)
end
return answer()
