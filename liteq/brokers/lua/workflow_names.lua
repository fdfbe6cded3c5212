-- A slice of a move: all workflows, the oldest first.
-- Needs: form base
-- Answers   for each: id, name, created

for _, id in ipairs(call('ZRANGE', P .. 'workflows', 0, -1)) do
  local found = call('HMGET', P .. 'workflow:' .. id, 'name', 'created')
  put(id)
  put(found[1])
  put(found[2])
end
return answer()
