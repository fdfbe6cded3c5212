-- A slice of Broker.maintain: make dead letters of what nobody knows.
-- Needs: form calling base | ends
-- ARGV[4]   parked before this time     [5…]  for each: id, why, error

write_when_full()
for i = 5, #ARGV, 3 do
  local m = load(ARGV[i])
  if not m or m.s ~= 'p' then
    call('ZREM', P .. 'parked', ARGV[i])
  elseif (number_of(m.K) or 0) <= tonumber(ARGV[4]) then
    take_out(m)
    call('HSET', P .. 'm:' .. m.id, 's', 'F', 'Z', NOW_TEXT, 'X', ARGV[i + 1], 'r', ARGV[i + 2])
    call('ZADD', P .. 'dead', m.n, m.id)
    close(m, 'F', '')
    failed(m, ARGV[i + 2])
  end
end
follow()
ring()
return answer()
