-- Broker.attempts
-- Needs: form base
-- ARGV[4]   id
-- Answers   its attempts: packed, of outcome, error, worker, started, ended

for _, attempt in ipairs(call('LRANGE', P .. 'a:' .. ARGV[4], 0, -1)) do put(attempt) end
return answer()
