-- Broker.post: leave letters for workers and mailboxes.
-- Needs: form base
-- ARGV[4]   how many may wait for one receiver
--      [5…] for each: "w" for a worker or "m" for a mailbox, its id or name, bytes, seconds
-- Answers   1 or 0 for each: whether it was left
--
-- Keys: letters:<worker or mailbox>  list  "<expires> <bytes>"; expires with the last of them

local said = once()
if said then return said end
write_when_full()
local most = tonumber(ARGV[4])
local rung = {}
for i = 5, #ARGV, 4 do
  local to, seconds = ARGV[i + 1], tonumber(ARGV[i + 3])
  local worker = ARGV[i] == 'w'
  local key = P .. 'letters:' .. to
  local left = (not worker or call('ZSCORE', P .. 'workers', to))
    and call('LLEN', key) < most
  if left then
    local stays = math.max(call('PTTL', key), math.ceil(seconds * 1000), 1)
    call('RPUSH', key, string.format('%.6f ', NOW + seconds) .. ARGV[i + 2])
    call('PEXPIRE', key, stays)
    if worker then call('HSET', P .. 'worker:' .. to, 'mail', '1') end
    rung[(worker and 'work:' or 'mail:') .. to] = worker and 'mail' or ''
  end
  put(left and '1' or '0')
end
for channel, word in pairs(rung) do call('PUBLISH', P .. channel, word) end
return answer_once()
