-- Broker.get: the records of messages.
-- Needs: form base | read
-- ARGV[4…]  ids
-- Answers   for each that is there: its fields (see read.lua)

for i = 4, #ARGV do put_record(ARGV[i]) end
return answer()
