-- What another program has damaged becomes a dead letter, which says so.

-- Say what is wrong with what a message is claimed by; nil if nothing is. `text` of its fields
-- n, g, b, k, or nothing where they are gone.
local function damage_of(n, g, b, k)
  if not (n or g or b) then return 'all its fields are gone' end
  local name, value = 'n', n
  if n and string.find(n, '^%d+$') then
    name, value = 'g', g
    if g and not given_of(g).damaged then
      if not b then return 'its field b is gone' end
      local deliveries = string.match(k or '0 - 0 -', '^%d+ %S+ (%-?%d+) %S+$')
      if deliveries and #deliveries < 11 then return nil end
      name, value = 'k', k
    end
  end
  if not value then return 'its field ' .. name .. ' is gone' end
  return 'its field ' .. name .. ' is ' .. string.sub(value, 1, 200)
end

-- Make a dead letter of it, for whoever has taken it out of where it was; what can be read of
-- it stays as it is. To be followed by `follow()`.
local function bury(id, why)
  local key = P .. 'm:' .. id
  local kind, body = call('TYPE', key).ok, nil
  if kind ~= 'hash' and kind ~= 'none' then
    body = kind == 'string' and call('GET', key) or call('DUMP', key)
    call('DEL', key)
    why = 'its key holds a ' .. kind .. ' of another program'
  end
  why = string.gsub(why, '[^\32-\126]', function(byte)
    return string.format('\\x%02x', string.byte(byte))
  end)
  why = 'damaged in Redis: ' .. why
  local said = string.sub(cjson.encode(why), 2, -2)
  local error = string.gsub(DAMAGED_ERROR, '%%s', function() return said end)
  local found = call('HMGET', key, 'n', 'g', 'b', 'k', 'Q', 'O', 'v')
  local n = found[1]
  if not (n and string.find(n, '^%d+$')) then n = call('INCR', P .. 'seq') end
  local g = found[2]
  if not g or given_of(g).damaged then g = '0,0,,,1,0,,,7,damageddamaged' end
  if damage_of('1', g, '', found[4] or '') then call('HDEL', key, 'k') end
  if not tonumber(found[5] or '') then call('HSET', key, 'Q', NOW_TEXT) end
  free_slots(id)
  call('HDEL', key, 'N', 'M', 'K', 'V')
  call('HSET', key, 'n', n, 'g', g, 'b', body or found[3] or '', 's', 'F', 'Z', NOW_TEXT,
    'X', why, 'r', error)
  call('SADD', P .. 'queues', given_of(g).q)
  for _, name in ipairs({'expiry', 'retrying', 'parked'}) do call('ZREM', P .. name, id) end
  call('ZADD', P .. 'dead', n, id)
  local behind = found[6] or call('EXISTS', P .. 'e:' .. id) == 1
  local m = {id = id, n = n, g = g, O = behind, v = found[7]}
  open_given(m)
  close(m, 'F', '')
  failed(m, error)
end
