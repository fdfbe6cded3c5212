-- The lines of one step: see `limiting.lua`.

local claimer = {}  -- worker, token, queues, knows_all, ignore_rates: set by the step
local tried = 0

local function held_by(limits)  -- the buckets of a line that allow less than everything
  local found = {}
  for _, pair in ipairs(pairs_of(limits)) do
    local rule = rule_of(pair[1])
    local rate = rule and rule.interval and not claimer.ignore_rates
    if rule and type(pair[2]) == 'string' and (rate or rule.most) then
      local key = rule.own and '@' .. claimer.worker or pair[2]
      found[#found + 1] = {bucket = pair[1] .. '\n' .. key, rule = rule, rate = rate}
    end
  end
  return found
end

local function full_until(one)  -- nil if it has room; for a slot nobody knows
  if one.rule.most and call('SCARD', P .. 'slots:' .. one.bucket) >= one.rule.most then
    return math.huge
  end
  local opens_at = one.rate and opens_at_of(one.bucket, one.rule)
  if opens_at and opens_at > NOW then return opens_at end
end

-- Block a line by the bucket that will have room last; or close it for this worker. What it
-- then leaves to others in its other buckets goes to the next.
local function block_if_full(queue, limits, held)
  local last, last_at
  local full = {}
  for _, one in ipairs(held) do
    local at = full_until(one)
    if at then
      full[one] = true
      if not last_at or at > last_at then last, last_at = one, at end
    end
  end
  if not last then return false end
  if last.rule.own then
    call('ZADD', P .. 'closed:' .. claimer.worker, string.format('%.17g', last_at),
      closure(queue, limits))
  else
    local turn = call('HGET', P .. 'turns:' .. queue, limits)
    if not turn then
      turn = call('INCR', P .. 'turn')
      call('HSET', P .. 'turns:' .. queue, limits, turn)
    end
    local head = first_in(queue, limits)
    local band = math.floor(tonumber(head[2]) / BAND) * BAND
    call('ZREM', P .. 'ready:' .. queue, limits)
    call('HSET', P .. 'blocked:' .. queue, limits, last.bucket)
    call('ZADD', gate_key(queue, last.bucket), band + tonumber(turn), limits)
    call('SADD', P .. 'gates:' .. last.bucket, queue)
    if last_at == math.huge then
      call('ZREM', P .. 'due:' .. queue, last.bucket)
    else
      call('ZADD', P .. 'due:' .. queue, string.format('%.17g', last_at), last.bucket)
    end
  end
  for _, one in ipairs(held) do
    if not full[one] then unblock(one.bucket, queue, 1) end
  end
  return true
end

local function open_due()  -- let lines go on for which a rate has room by now
  local until_now = claimer.ignore_rates and '+inf' or NOW_TEXT
  call('ZREMRANGEBYSCORE', P .. 'closed:' .. claimer.worker, '-inf', until_now)
  for _, queue in ipairs(queues_with('due:', claimer.queues)) do
    local due = call('ZRANGEBYSCORE', P .. 'due:' .. queue, '-inf', until_now, 'LIMIT', 0, 500)
    for _, bucket in ipairs(due) do
      local rule = rule_of(string.match(bucket, '^[^\n]*'))
      if not rule or not rule.interval or claimer.ignore_rates then
        unblock(bucket, queue, 500)
      else
        local opens_at, room = opens_at_of(bucket, rule), 0
        if opens_at <= NOW then
          room = math.min(math.floor((NOW - opens_at) / rule.interval) + 1, rule.burst)
          unblock(bucket, queue, room)
        end
        if call('EXISTS', gate_key(queue, bucket)) == 1 then
          call('ZADD', P .. 'due:' .. queue,
            string.format('%.17g', opens_at + room * rule.interval), bucket)
        end
      end
    end
  end
end

local function earlier(due, first)
  if first[2] and (not due or tonumber(first[2]) < tonumber(due)) then return first[2] end
  return due
end

local function next_opening(due)  -- when a line is to be looked at again
  for _, queue in ipairs(queues_with('due:', claimer.queues)) do
    due = earlier(due, call('ZRANGE', P .. 'due:' .. queue, 0, 0, 'WITHSCORES'))
  end
  return earlier(due, call('ZRANGE', P .. 'closed:' .. claimer.worker, 0, 0, 'WITHSCORES'))
end

local function has_lines()
  local keys = {}
  for i, queue in ipairs(claimer.queues) do keys[i] = P .. 'limited:' .. queue end
  for i = 1, #keys, 1000 do  -- `unpack` has a limit
    if call('EXISTS', unpack(keys, i, math.min(i + 999, #keys))) > 0 then return true end
  end
  return false
end

local function first_line()  -- the one of those that may go that has the best rank
  local best
  for _, queue in ipairs(queues_with('ready:', claimer.queues)) do
    local at, some = 0, nil
    repeat
      some = call('ZRANGE', P .. 'ready:' .. queue, at, at, 'WITHSCORES')
      at = at + 1
    until not some[1]
      or not call('ZSCORE', P .. 'closed:' .. claimer.worker, closure(queue, some[1]))
    if some[1] and (not best or tonumber(some[2]) < best.at) then
      best = {queue = queue, limits = some[1], at = tonumber(some[2])}
    end
  end
  return best
end

local function leave_line(m, queue, limits)
  call('ZREM', line_key(queue, limits), m.id)
  call('ZREM', P .. 'limited:' .. queue, m.id)
end

local function drop_line(queue, limits)
  call('ZREM', P .. 'ready:' .. queue, limits)
  call('HDEL', P .. 'turns:' .. queue, limits)
end

-- Take the first message of a line; or put the line right, or block it, and return nil.
-- `useless(m)`: whether it is not to be started after all, and takes no room.
local function try(line, read, useless)
  tried = tried + 1
  local queue, limits = line.queue, line.limits
  local head = first_in(queue, limits)
  if not head[1] then
    drop_line(queue, limits)
    for _, one in ipairs(held_by(limits)) do unblock(one.bucket, queue, 1) end
    return nil
  end
  if tonumber(head[2]) ~= line.at then
    call('ZADD', P .. 'ready:' .. queue, head[2], limits)
    return nil
  end
  local m = read(head[1])
  if m.damage then
    leave_line(m, queue, limits)
    return m
  end
  local wanted = limits_of(m.what.t, limits)
  if wanted ~= limits then
    leave_line(m, queue, limits)
    call('HSET', P .. 'm:' .. m.id, 'L', wanted)
    enter_line(m.id, queue, wanted, tonumber(head[2]), m.n)
    return nil
  end
  local held = useless(m) and {} or held_by(limits)
  if block_if_full(queue, limits, held) then return nil end
  leave_line(m, queue, limits)
  local slots = {}
  for _, one in ipairs(held) do
    if one.rule.most then
      call('SADD', P .. 'slots:' .. one.bucket, m.id)
      slots[#slots + 1] = one.bucket
    end
    if one.rate then
      local free_at = math.max(free_at_of(one.bucket, one.rule), NOW) + one.rule.interval
      put_free_at(one.bucket, free_at, NOW)
    end
  end
  if #slots > 0 then call('HSET', P .. 'm:' .. m.id, 'H', cjson.encode(slots)) end
  local following = first_in(queue, limits)
  if not following[1] then
    drop_line(queue, limits)
  else
    call('ZADD', P .. 'ready:' .. queue, following[2], limits)
    if #held > 0 then
      call('HDEL', P .. 'turns:' .. queue, limits)
      block_if_full(queue, limits, held)
    end
  end
  return m
end
