-- How a message is put into an answer: 23 fields, first the eight of `put_message`.

local FIELDS = {'g', 'b', 'u', 'x', 'L', 'U', 'e', 's', 'r', 'N', 'M', 'k', 'Q', 'Z', 'h', 'c',
  'X', 'V', 'W', 'n', 'P'}

local function put_record(id)
  local found = redis.pcall('HMGET', P .. 'm:' .. id, unpack(FIELDS))
  if not found[1] then return false end
  local _, worker, deliveries, started = lease_of(found[12])
  put(id)
  for i = 1, 11 do put(found[i]) end
  put(deliveries) put(found[13]) put(started) put(found[14])
  put(worker and call('HGET', P .. 'worker:' .. worker, 'name') or found[15])
  for i = 16, 21 do put(found[i]) end
  return found
end
