-- How a message is put into an answer: 27 fields, the first of them its id.

local FIELDS = {'t', 'b', 'q', 'p', 'u', 'x', 'y', 'o', 'L', 'U', 'e', 's', 'r', 'N', 'M', 'd', 'Q', 'T',
  'Z', 'w', 'c', 'X', 'V', 'W', 'n', 'P'}

local function put_record(id)
  local found = call('HMGET', P .. 'm:' .. id, unpack(FIELDS))
  if not found[1] then return false end
  put(id)
  for i = 1, #FIELDS do
    if i == 20 and found[i] then
      put(call('HGET', P .. 'worker:' .. found[i], 'name'))
    elseif i == 20 then
      put(call('HGET', P .. 'm:' .. id, 'h'))
    else
      put(found[i])
    end
  end
  return found
end
