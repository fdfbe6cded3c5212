-- Broker.store: write a state from outside of any lease.
-- Needs: form calling base | ends limiting lease enter
-- ARGV[4]   a final state's letter, "" for a note     [5]  its Celery name
--      [6]  "=…" the value, "" for none     [7]  result_expires, "" for ever
--      [8…] a graph of one message, to enter if there is none

local final, name, value, keep = given(take()), take(), take(), take()
local graph = read_graph()
local id = graph.messages[1].id
local m = load(id)
local one = graph.messages[1]
if not m then
  local number = call('INCR', P .. 'seq')
  call('HSET', P .. 'm:' .. id, 'n', number, 's', 'w', 'g', one.g, 'b', one.b, 'Q', NOW_TEXT,
    'P', '1', 'f', '1')
  m = load(id)
end
if string.find('SFRI', m.s, 1, true) then return answer() end
local key, early = P .. 'm:' .. id, is_early(m.s, m.g)
if early then call('HSET', key, 'g', one.g, 'Q', NOW_TEXT) end
if final then
  if early then clear_early(id) end
  if m.s == 'r' then
    give_lease_up(m)
    call('HSET', key, 'k', string.format('0 %s %d %s', m.w, m.d, m.T))
    free_slots(id)
  else
    take_out(m)
  end
  call('HDEL', key, 'r', 'N', 'M')
  call('HSET', key, 's', final, 'Z', NOW_TEXT)
  local bytes = value ~= '' and string.sub(value, 2) or nil
  if bytes then call('HSET', key, 'r', bytes) end
  close(m, final, keep)
  if final == 'S' then
    succeeded(m, bytes or 'null')
  elseif final == 'F' then
    failed(m, bytes or 'null')
  elseif final == 'R' then
    revoked(m, bytes or revocation('revoked'))
  else
    ignored(m)
  end
  follow()
  ring()
else
  call('HSET', key, 'N', name, 'f', '1')
  if value ~= '' then call('HSET', key, 'M', string.sub(value, 2)) end
  if early then
    call('ZREM', P .. 'expiring', id)
    if keep ~= '' then call('ZADD', P .. 'expiring', NOW + tonumber(keep), id) end
  end
end
return answer()
