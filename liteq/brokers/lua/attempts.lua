-- Broker.attempts
-- Needs: form base
-- ARGV[4]   id
-- Answers   how many attempts were before the first that is kept, "" for none; those that are:
--           packed, of outcome, error, worker, started, ended

put(call('HGET', P .. 'm:' .. ARGV[4], 'A'))
for _, attempt in ipairs(call('LRANGE', P .. 'a:' .. ARGV[4], 0, -1)) do put(attempt) end
return answer()
