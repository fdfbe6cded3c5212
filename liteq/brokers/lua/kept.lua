-- A slice of a move: all that is kept of messages, for `moving.py`.
-- Needs: form base | ends read
-- ARGV[4…]  ids
-- Answers   for each that is there: its fields (see read.lua), j, the number of edges from it,
--           for each: letter and target, position, 1 if it is met; the number of its inputs,
--           for each: position, source, letter, value; the number of its attempts, and those

for i = 4, #ARGV do
  local id = ARGV[i]
  if put_record(id) then
    put(call('HGET', P .. 'm:' .. id, 'j'))
    local edges = call('HGETALL', P .. 'e:' .. id)
    put(#edges / 2)
    for j = 1, #edges, 2 do
      put(edges[j])
      put(edges[j + 1])
      put(call('HGET', P .. 'b:' .. string.sub(edges[j], 2), id) == '+' and '1' or '0')
    end
    local given_inputs = inputs(id)
    put(#given_inputs)
    for _, input in ipairs(given_inputs) do
      for j = 1, 4 do put(input[j]) end
    end
    local attempts = call('LRANGE', P .. 'a:' .. id, 0, -1)
    put(#attempts)
    for _, attempt in ipairs(attempts) do put(attempt) end
  end
end
return answer()
