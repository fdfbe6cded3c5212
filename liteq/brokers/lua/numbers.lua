-- A slice of a move: the numbers of messages, in the order of which they move.
-- Needs: form base
-- ARGV[4…]  ids
-- Answers   for each: its number, 0 if it is gone meanwhile

for i = 4, #ARGV do put(call('HGET', P .. 'm:' .. ARGV[i], 'n') or '0') end
return answer()
