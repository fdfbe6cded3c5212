-- A slice of Broker.nodes: the messages of a workflow, and the edges between them.
-- Needs: base
-- ARGV[4]   workflow     [5]  from the how many-th     [6]  to the how many-th
-- Answers   for each node: id, task, envelope, s, V, T, Z, r, and the number of edges from it;
--           for each: letter and target, position
-- (a capital letter: see ends.lua)

for _, id in ipairs(call('ZRANGE', P .. 'nodes:' .. ARGV[4], ARGV[5], ARGV[6])) do
  local m = call('HMGET', P .. 'm:' .. id, 't', 'e', 's', 'V', 'T', 'Z', 'r')
  put(id)
  for i = 1, 7 do put(i == 7 and m[i] and '1' or m[i]) end
  local edges = call('HGETALL', P .. 'e:' .. id)
  put(#edges / 2)
  for _, text in ipairs(edges) do put(text) end
end
return answer()
