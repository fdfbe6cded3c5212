-- Who is to be rung for work in a queue: a worker that consumes it, and has room.
--
-- To enter and leave hundreds of sets idle:<queue> for each task would take longer than the
-- task. So a worker without room stays in them, and its field `idle` says so: a digest of the
-- queues in whose sets it is, a space, "1" if it has room, else "0"; and the queues whose sets
-- it was taken out of since, each behind its length and a colon. It enters those again when it
-- has room; and all of them after each heartbeat, since a process of an older version takes it
-- out and does not say so. A worker of such a version has no such field, and room while it is
-- in a set.

-- Take one that has room out of the queue's set. Returns nil if there is none; else the worker,
-- what its field `idle` is to be from now on, if it has one, and the field `standby`.
local function next_idle(queue)
  while true do
    local worker = redis.call('SPOP', KEYS[1] .. 'idle:' .. queue)
    if not worker then return nil end
    local key = KEYS[1] .. 'worker:' .. worker
    local found = redis.pcall('HMGET', key, 'idle', 'standby')
    local text = found[1] and found[1] .. #queue .. ':' .. queue
    if not text or string.find(text, '^%S+ 1') then return worker, text, found[2] end
    redis.call('HSET', key, 'idle', text)
  end
end

-- Return what the field `idle` is to be from now on, and have the worker be in the sets that
-- it says. `text`: what it is, nil or false if it has none.
local function idle_as(worker, text, digest, queues, has_room)
  local same = text and string.find(text, digest .. ' ', 1, true) == 1
  local at = same and #digest + 3
  if same and not has_room then return digest .. ' 0' .. string.sub(text, at) end
  if not same then
    for _, queue in ipairs(queues) do
      redis.call('SADD', KEYS[1] .. 'idle:' .. queue, worker)
    end
  end
  while same and at <= #text do
    local size, from = string.match(text, '^(%d+):()', at)
    if not size then break end  -- another program has written it
    at = from + tonumber(size)
    redis.call('SADD', KEYS[1] .. 'idle:' .. string.sub(text, from, at - 1), worker)
  end
  return digest .. (has_room and ' 1' or ' 0')
end
