-- A slice of Broker.reclaim and Broker.unregister: what a worker holds that is to hold nothing.
-- Needs: form calling base | ends limiting lease bury
-- ARGV[4]   worker
--      [5]  "dead": it is given up now, and must register anew should it live after all;
--           "gone": it leaves by itself; "": it is only looked at
--      [6]  how many leases
--      then, for each lease that is left alone: id, token
-- Answers   the word of its last step; the number of ids looked at, without those; the number of
--           leases; for each: number, token, delivery, the fields of a message

write_when_full()
local worker = ARGV[4]
if ARGV[5] ~= '' and call('ZREM', P .. 'workers', worker) == 1 then
  local queues = call('HGET', P .. 'worker:' .. worker, 'queues')
  for _, queue in ipairs(cjson.decode(queues)) do
    call('SREM', P .. 'idle:' .. queue, worker)
  end
  call('HSET', P .. 'worker:' .. worker, 'stopped', NOW_TEXT,
    'ended', ARGV[5] == 'dead' and 'died' or 'left')
  call('DEL', P .. 'letters:' .. worker)
  call('ZADD', P .. 'gone', NOW, worker)
  call('DEL', P .. 'known:' .. worker)
end
-- Of what is on the way to it, nothing is to be taken for what comes after this.
call('HDEL', P .. 'worker:' .. worker, 'standby')
local left, most = {}, tonumber(ARGV[6])
for i = 7, #ARGV, 2 do
  left[ARGV[i]] = ARGV[i + 1]
  most = most + 1  -- so that none of the others is hidden behind them
end
local ids = call('SRANDMEMBER', P .. 'leases:' .. worker, most)
local passed, held = 0, {}
for _, id in ipairs(ids) do
  local m = redis.pcall('HMGET', P .. 'm:' .. id, 'n', 'k', 'g', 'b', 'u', 'x', 'L', 'U', 'e')
  local why = damage_of(m[1], m[3], m[4], m[2] or '')
  if left[id] and is_of(m[2], left[id]) then
    passed = passed + 1
  elseif why then
    call('SREM', P .. 'leases:' .. worker, id)
    bury(id, why)
  else
    held[#held + 1] = {id, m}
  end
end
follow()
ring()
put(call('HGET', P .. 'worker:' .. worker, 'word') or '')
put(#ids - passed)
put(#held)
for _, one in ipairs(held) do
  local id, m = one[1], one[2]
  local token, _, deliveries = lease_of(m[2])
  put(m[1]) put(token) put(deliveries)
  put(id)
  for i = 3, 9 do put(m[i]) end
end
return answer()
