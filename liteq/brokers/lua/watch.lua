-- Broker.watch: look, and leave an address with what has not ended.
-- Needs: form base | read
-- ARGV[4]   the name of a mailbox, a "+" behind it if it is to hear of notes     [5…]  ids
-- Answers   for each that has ended: its fields (see read.lua)
--
-- A message keeps the last addresses it was given, and no more than that many: whoever is
-- not woken looks again by himself.

write_when_full()
local MOST = 4000
for i = 5, #ARGV do
  local id = ARGV[i]
  local found = call('HMGET', P .. 'm:' .. id, 's', 'v')
  local state, names = found[1], found[2]
  if not state then
    -- unknown: skipped
  elseif string.find('SFRI', state, 1, true) then
    put_record(id)
  elseif not names then
    call('HSET', P .. 'm:' .. id, 'v', ARGV[4], 'f', '1')
  elseif not string.find(' ' .. names .. ' ', ' ' .. ARGV[4] .. ' ', 1, true) then
    if #names > MOST then names = string.match(string.sub(names, -MOST), ' (.*)') end
    call('HSET', P .. 'm:' .. id, 'v', names .. ' ' .. ARGV[4])
  end
end
return answer()
