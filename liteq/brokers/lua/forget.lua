-- Broker.forget: delete what is over.
-- Needs: form base | ends
-- ARGV[4…]  ids

write_when_full()
for i = 4, #ARGV do
  local found = call('HMGET', P .. 'm:' .. ARGV[i], 's', 'W', 'U')
  if found[1] and string.find('SFRI', found[1], 1, true) then
    delete(ARGV[i], found[1], found[2], found[3])
  end
end
return answer()
