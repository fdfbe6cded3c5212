-- Broker.emit: append to the stream of events, if somebody listens.
-- Needs: form base
-- ARGV[4]   how many are kept     [5]  for how many seconds     [6…]  events
-- Answers   1 if somebody listens, 0 if nothing was kept

local said = once()
if said then return said end
local listeners = call('ZRANGEBYSCORE', P .. 'listeners', '(' .. NOW_TEXT, '+inf')
if #listeners == 0 or #ARGV < 6 then
  put(#listeners > 0 and '1' or '0')
  return answer()
end
local key = P .. 'events'
for i = 6, #ARGV, 1000 do
  call('RPUSH', key, unpack(ARGV, i, math.min(i + 999, #ARGV)))
end
call('INCRBY', P .. 'events-last', #ARGV - 5)
call('LTRIM', key, -tonumber(ARGV[4]), -1)
call('PEXPIRE', key, math.ceil(tonumber(ARGV[5]) * 1000))
for _, name in ipairs(listeners) do call('PUBLISH', P .. 'mail:' .. name, '') end
put('1')
return answer_once()
