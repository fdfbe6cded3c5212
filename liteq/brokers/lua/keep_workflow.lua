-- A slice of a move: the names and dates of workflows, the oldest first.
-- Needs: form base
-- ARGV[4…]  for each: id, name, created

for i = 4, #ARGV, 3 do
  local key = P .. 'workflow:' .. ARGV[i]
  if call('HSETNX', key, 'name', ARGV[i + 1]) == 1 then
    call('HSET', key, 'created', ARGV[i + 2])
    call('ZADD', P .. 'workflows', call('INCR', P .. 'seq'), ARGV[i])
  end
end
return answer()
