-- Broker.lead and Broker.unlead: who leads the beats.
-- Needs: form base
-- ARGV[4]   beat     [5]  until when, "" to give it up
-- Answers   1 if this beat leads (or led) , 0 if another does
--
-- Keys: lead  hash  holder, until

write_when_full()
local found = call('HMGET', P .. 'lead', 'holder', 'until')
if ARGV[5] == '' then
  if found[1] == ARGV[4] then
    call('DEL', P .. 'lead')
    call('PUBLISH', P .. 'beats', '')
  end
  put(found[1] == ARGV[4] and '1' or '0')
elseif found[1] and found[1] ~= ARGV[4] and tonumber(found[2]) > NOW then
  put('0')
else
  call('HSET', P .. 'lead', 'holder', ARGV[4], 'until', ARGV[5])
  put('1')
end
return answer()
