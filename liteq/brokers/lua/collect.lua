-- Broker.collect: take the letters for a worker or a mailbox.
-- Needs: form base
-- ARGV[4]   its id or name
-- Answers   their bytes, oldest first

local said = once()
if said then return said end
local key = P .. 'letters:' .. ARGV[4]
local letters = call('LRANGE', key, 0, -1)
if #letters == 0 then
  call('HDEL', P .. 'worker:' .. ARGV[4], 'mail')
  return answer()
end
write_when_full()
call('DEL', key)
call('HDEL', P .. 'worker:' .. ARGV[4], 'mail')
for _, letter in ipairs(letters) do
  local expires, at = string.match(letter, '^(%S+) ()')
  if tonumber(expires) > NOW then put(string.sub(letter, at)) end
end
return answer_once()
