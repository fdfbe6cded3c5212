-- A slice of a move: all that is kept of messages, for `moving.py`.
-- Needs: form base | ends read
-- ARGV[4…]  ids
-- Answers   for each that is there: its fields (see read.lua), j, the number of edges from it,
--           for each: letter and target, position, 1 if it is met; the number of its inputs,
--           for each: position, source, letter, value; how many attempts were before
--           the first that is kept; the number of those, and they

-- Those of a message that lead to what they led to at first; another may have its id.
local function edges_of(id)
  local found, edges = call('HGETALL', P .. 'e:' .. id), {}
  for i = 1, #found, 2 do
    local on, target = string.sub(found[i], 1, 1), string.sub(found[i], 2)
    local edge = edge_from(id, {id = target})
    if edge or on == string.upper(on) then
      edges[#edges + 1] = {found[i], found[i + 1], edge == '+'}
    end
  end
  return edges
end

for i = 4, #ARGV do
  local id = ARGV[i]
  if put_record(id) then
    put(call('HGET', P .. 'm:' .. id, 'j'))
    local edges = edges_of(id)
    put(#edges)
    for _, edge in ipairs(edges) do
      put(edge[1]) put(edge[2]) put(edge[3] and '1' or '0')
    end
    local given_inputs = inputs(id)
    put(#given_inputs)
    for _, input in ipairs(given_inputs) do
      for j = 1, 4 do put(input[j]) end
    end
    local attempts = call('LRANGE', P .. 'a:' .. id, 0, -1)
    put(call('HGET', P .. 'm:' .. id, 'A'))
    put(#attempts)
    for _, attempt in ipairs(attempts) do put(attempt) end
  end
end
return answer()
