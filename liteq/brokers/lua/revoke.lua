-- Broker.revoke: keep messages from running.
-- Needs: form calling base | ends
-- ARGV[4]   a signal's name, "" for none     [5…]  ids
-- Answers   for each id: revoked, signalled, running, settled, unknown

local said = once()
if said then return said end
write_when_full()
local signal = given(ARGV[4])
for i = 5, #ARGV do
  local id = ARGV[i]
  local m = load(id)
  if not m or is_early(m.s, m.g) then
    put('unknown')
  elseif m.s == 'r' then
    local order = signal or m.V or 'revoked'
    call('HSET', P .. 'm:' .. id, 'V', order, 'f', '1')
    call('HSET', P .. 'orders:' .. m.w, m.n, order)
    call('PUBLISH', P .. 'work:' .. m.w, 'orders')
    put(signal and 'signalled' or 'running')
  elseif string.find('SFRI', m.s, 1, true) then
    put('settled')
  else
    revoke(m, 'revoked')
    put('revoked')
  end
end
follow()
ring()
return answer_once()
