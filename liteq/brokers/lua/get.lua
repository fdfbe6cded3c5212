-- Broker.get: the records of messages.
-- Needs: form base | read
-- ARGV[4…]  ids
-- Answers   for each that is there: its fields (see read.lua); then, if one of them expires, what
--           time it is: whether it has, the caller's clock cannot tell

local expire = false
for i = 4, #ARGV do
  local found = put_record(ARGV[i])
  expire = expire or (found and found[4])
end
if expire then put(NOW_TEXT) end
return answer()
