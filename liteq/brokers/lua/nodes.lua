-- A slice of Broker.nodes: the messages of a workflow, and the edges between them.
-- Needs: form base
-- ARGV[4]   workflow     [5]  from the how many-th     [6]  to the how many-th
-- Answers   for each node: id, task, envelope, s, V, T, Z, r, and the number of edges from it;
--           for each: letter and target, position
-- (a capital letter: see ends.lua)

for _, id in ipairs(call('ZRANGE', P .. 'nodes:' .. ARGV[4], ARGV[5], ARGV[6])) do
  local m = call('HMGET', P .. 'm:' .. id, 'g', 'e', 's', 'V', 'k', 'Z', 'r')
  local _, _, _, started = lease_of(m[5])
  put(id) put(given_of(m[1]).t) put(m[2]) put(m[3]) put(m[4]) put(started) put(m[6])
  put(m[7] and '1')
  local found, edges = call('HGETALL', P .. 'e:' .. id), {}
  for i = 1, #found, 2 do
    local on, target = string.sub(found[i], 1, 1), string.sub(found[i], 2)
    -- Another message may have the id of the one that it led to.
    if on == string.upper(on) or call('HEXISTS', P .. 'b:' .. target, id) == 1 then
      edges[#edges + 1] = found[i]
      edges[#edges + 1] = found[i + 1]
    end
  end
  put(#edges / 2)
  for _, text in ipairs(edges) do put(text) end
end
return answer()
