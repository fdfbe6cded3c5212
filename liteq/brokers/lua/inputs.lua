-- Broker.inputs: what the messages that one waited for have left for it.
-- Needs: form base | ends
-- ARGV[4]   its id
-- Answers   how many; for each: position, source, letter, value

local found = inputs(ARGV[4])
put(#found)
for _, input in ipairs(found) do
  for i = 1, 4 do put(input[i]) end
end
return answer()
