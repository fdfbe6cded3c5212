-- Broker.claimable: how much is claimable now.
-- Needs: form base
-- ARGV[4…]  queues
-- Answers   a number

local total = 0
for i = 4, #ARGV do
  if call('SISMEMBER', P .. 'paused', ARGV[i]) == 0 then
    total = total + call('ZCARD', P .. 'q:' .. ARGV[i])
      + call('ZCOUNT', P .. 'd:' .. ARGV[i], '-inf', NOW_TEXT)
  end
end
put(total)
return answer()
