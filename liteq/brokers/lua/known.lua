-- Which tasks a worker knows, for `step.lua` to compare.
-- Needs: form base
-- ARGV[4]   worker     [5]  digest of the names     [6…]  the names
--
-- Keys: known:<worker>  set  names of tasks

write_when_full()
if call('EXISTS', P .. 'worker:' .. ARGV[4]) == 1 then
  call('DEL', P .. 'known:' .. ARGV[4])
  local names = {}
  for i = 6, #ARGV do names[#names + 1] = ARGV[i] end
  each_thousand('SADD', P .. 'known:' .. ARGV[4], names)
  call('HSET', P .. 'worker:' .. ARGV[4], 'known', ARGV[5])
end
return answer()
