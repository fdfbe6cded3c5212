-- The step that most steps are: it settles plain successes that nothing is behind, and claims
-- messages that nothing is to be said about; or finds nothing.
--
-- What `step.lua` does with such a step, and nothing else. Making the functions of that script
-- takes the server longer than all that is done here, and each local that a function takes from
-- outside adds to it: so this one takes none. First it looks at all that the step would touch,
-- and changes nothing; if there is anything else, it returns nothing, and the whole script runs.
-- What has come due is claimed where it is, if it is all that the step claims. Else the whole
-- script is told which queues have something delayed.
-- Arguments and answer are those of `step.lua`.

-- Write leases behind the first `at` fields of an answer: their number; number and delivery of
-- each, in one field; for each: id, g, body. If there is more to a message, a minus stands
-- before the delivery, and in the body's place these in one: body, run_at, expires_at, L, U,
-- envelope, the number of inputs, and for each of them position, source, letter, value.
local function put_leases(sizes, data, at, text_of, pack, leases, inputs)
  local heads, count_at = {}, at + 1
  at = at + 2
  for i, m in ipairs(leases) do
    local body = m.b
    heads[i] = m.n .. ' ' .. m.d
    if m.more then
      local list, count = {m.b, m.u, m.x, m.L, m.U, m.e, '0'}, 7
      if m.P then
        local given = inputs(m.id)
        list[7] = text_of[#given]
        for _, input in ipairs(given) do
          list[count + 1], list[count + 2] = text_of[input[1]], input[2]
          list[count + 3], list[count + 4] = input[3], input[4]
          count = count + 4
        end
      end
      heads[i] = m.n .. ' -' .. m.d
      body = pack(list, count)
    end
    sizes[at + 1], data[at + 1] = text_of[#m.id], m.id
    sizes[at + 2], data[at + 2] = text_of[#m.g], m.g
    sizes[at + 3], data[at + 3] = text_of[#body], body
    at = at + 3
  end
  data[count_at], data[count_at + 1] = text_of[#leases], table.concat(heads, ' ')
  sizes[count_at], sizes[count_at + 1] = #data[count_at], #data[count_at + 1]
  return at
end

local function plain_step(text_of, pack, put_leases, queues_with, idle_as)
  local P, call, ARGV = KEYS[1], redis.call, ARGV
  local worker, token = ARGV[4], ARGV[5]
  local fresh, stands, place = nil, nil, 6
  if ARGV[6] ~= '0' then
    fresh, stands = string.match(ARGV[6], '^%*(%d+) (.*)$')
    place = 8
    if not fresh or ARGV[8] ~= '0' then return end  -- claims whose answer was lost
  end

  local now = ARGV[1]
  if now == '' then
    local time = call('TIME')
    now = string.format('%s.%06d', time[1], time[2])
  end

  -- What is settled.
  local keys, values, done, numbers, count = {}, {}, {}, {}, 0
  place = place + 1
  local expiring, heard = {}, {}
  for _ = 1, tonumber(ARGV[place]) do
    local kept, fence, keep = ARGV[place + 1] == 'S', ARGV[place + 2] .. ' ', ARGV[place + 3]
    local delete_at = keep ~= '' and string.format('%.6f', tonumber(now) + tonumber(keep))
    local last = place + 4 + 2 * tonumber(ARGV[place + 4])
    for at = place + 5, last, 2 do
      local id, key = ARGV[at], P .. 'm:' .. ARGV[at]
      local found = redis.pcall('HMGET', key, 's', 'k', 'n', 'f')
      if found[1] ~= 'r' or not tonumber(found[3]) or string.find(found[2] or '', fence, 1, true) ~= 1 or numbers[id] then return end
      if found[4] then
        local more = call('HMGET', key, 'O', 'V', 'N', 'r', 'v')
        if more[1] or more[2] or more[3] or (more[4] and not kept) then return end
        heard[id] = more[5] or nil
      end
      count = count + 1
      keys[count], values[count], done[count] = key, kept and ARGV[at + 1], id
      numbers[id] = found[3]
      if delete_at then
        expiring[#expiring + 1] = delete_at
        expiring[#expiring + 1] = id
      end
    end
    place = last
  end
  if ARGV[place + 1] ~= '0' or ARGV[place + 2] ~= '0' then return end  -- others, and notes

  -- What else there may be in its way.
  local limit, queues = tonumber(ARGV[place + 3]), {}
  local others = {P .. 'orders:' .. worker, P .. 'paused', P .. 'limits:names'}
  if limit > 500 or (fresh and limit == 0) then return end
  local last = tonumber(ARGV[place + 4])
  local parks = last < 3 or call('EXISTS', P .. 'parked') == 1  -- else no queue has a `p:`
  for i = 1, last do
    local queue = ARGV[place + 4 + i]
    queues[i] = queue
    local at = #others
    others[at + 1], others[at + 2] = P .. 'd:' .. queue, P .. 'limited:' .. queue
    if parks then others[at + 3] = P .. 'p:' .. queue end
  end
  if fresh then others[#others + 1] = P .. 'leases:' .. worker end
  place = place + 4 + last
  local digest = ARGV[place + 1]
  local which = ARGV[place + 3]
  if place + 3 < #ARGV then return end  -- some are under limits
  local me = call('HMGET', P .. 'worker:' .. worker, 'name', 'stopped', 'known', 'word', 'mail',
    'heard', 'idle')
  if not me[1] or me[2] or me[4] == ARGV[3] then return end
  if limit > 0 and digest ~= '*' and me[3] ~= digest then return end
  local there, due, delayed, ripe = 0, '', nil, false
  for i = 1, #others, 1000 do  -- `unpack` has a limit
    there = there + call('EXISTS', unpack(others, i, math.min(i + 999, #others)))
  end
  local source, leases, messages, asked, tasks = nil, {}, {}, {}, {}
  if there > 0 then  -- what is delayed is in nobody's way until it is due
    delayed = queues_with('d:', queues)
    for _, queue in ipairs(delayed) do
      local key = P .. 'd:' .. queue
      local first = call('ZRANGE', key, 0, 0, 'WITHSCORES')[2]
      if first then
        there = there - 1
        if tonumber(first) <= tonumber(now) then
          if source then return nil, delayed end
          ripe, source = true, key
          leases = call('ZRANGEBYSCORE', key, '-inf', now, 'LIMIT', 0, limit + 1)
          if #leases > limit then return nil, delayed end
          first = call('ZRANGE', key, #leases, #leases, 'WITHSCORES')[2]
        end
        if first and (due == '' or tonumber(first) < tonumber(due)) then due = first end
      end
    end
    if there > 0 then return nil, delayed end
    if due ~= '' then due = string.format('%.17g', tonumber(due) - tonumber(now)) end
  end

  -- What is claimed.
  if limit > 0 then
    for _, queue in ipairs(queues_with('q:', queues)) do
      local ids = call('ZRANGE', P .. 'q:' .. queue, 0, limit - 1)
      if ids[1] then
        if source then return nil, delayed end
        source, leases = P .. 'q:' .. queue, ids
      end
    end
  end
  for i, id in ipairs(leases) do
    local found = redis.pcall('HMGET', P .. 'm:' .. id, 'n', 'g', 'b', 'k', 'f')
    local m = {id = id, n = found[1], g = found[2], b = found[3], d = '1'}
    if not (m.n and m.g and m.b and tonumber(m.n)) then return nil, delayed end  -- damaged
    if found[4] then  -- the third of four words is how often it was delivered
      local deliveries = string.match(found[4], '^%d+ %S+ (%-?%d+) %S+$')
      if not deliveries or #deliveries > 10 then return nil, delayed end
      m.d = text_of[tonumber(deliveries) + 1]
    end
    if found[5] then
      local more = call('HMGET', P .. 'm:' .. id, 'x', 'L', 'P', 'r', 'u', 'U', 'e')
      if more[1] or more[2] or more[3] then return nil, delayed end
      m.more, m.r, m.u, m.U, m.e = true, more[4], more[5], more[6], more[7]
    end
    if not asked[m.g] then
      local p, y, size, at = string.match(m.g,
        '^(%-?%d+),(%-?%d+),[%deinfa.+-]*,[%deinfa.+-]*,[01],[01],%d*,[%deinfa.+-]*,(%d+),()')
      if not size or #p > 3 or #y > 10 or at + tonumber(size) > #m.g + 1 then return nil, delayed end
      if digest ~= '*' then tasks[#tasks + 1] = string.sub(m.g, at + tonumber(size)) end
      asked[m.g] = tonumber(p)
    end
    m.p = asked[m.g]
    messages[i] = m
  end
  if ripe then  -- it lies there by its time, and goes by its rank
    table.sort(messages, function(one, other)
      if one.p ~= other.p then return one.p > other.p end
      return tonumber(one.n) < tonumber(other.n)
    end)
  end
  if tasks[1] then
    for _, known in ipairs(call('SMISMEMBER', P .. 'known:' .. worker, unpack(tasks))) do
      if known == 0 then return nil, delayed end
    end
  end

  -- From here on it writes. The first write takes no memory (see `write_when_full`).
  if count > 0 then
    for i = 1, count, 1000 do
      call('SREM', P .. 'leases:' .. worker, unpack(done, i, math.min(i + 999, count)))
    end
    local over = {}
    for i, id in ipairs(done) do
      if values[i] then
        call('HSET', keys[i], 's', 'S', 'Z', now, 'r', values[i])
      else
        call('HSET', keys[i], 's', 'S', 'Z', now)
      end
      over[2 * i - 1], over[2 * i] = numbers[id], id
    end
    for i = 1, count, 1000 do
      call('ZADD', P .. 'over:S', unpack(over, 2 * i - 1, 2 * math.min(i + 999, count)))
    end
    for i = 1, #expiring, 1000 do
      call('ZADD', P .. 'expiring', unpack(expiring, i, math.min(i + 999, #expiring)))
    end
  end
  if source then
    call('ZREMRANGEBYRANK', source, 0, #leases - 1)
    local mine, since = token .. ' ' .. worker .. ' ', ' ' .. now
    for _, m in ipairs(messages) do
      call('HSET', P .. 'm:' .. m.id, 's', 'r', 'k', mine .. m.d .. since)
      if m.r then call('ZREM', P .. 'retrying', m.id) end
    end
    call('SADD', P .. 'leases:' .. worker, unpack(leases))
  end
  if count == 0 and not source then call('PERSIST', P .. 'seq') end
  local flags, standby = string.rep('1', count), ''
  if fresh then
    local before = call('HGET', P .. 'worker:' .. worker, 'standby')
    standby = ' ' .. (before and string.match(before, '^%d+') or fresh)
    stands = string.sub(standby, 2) .. ' ' .. stands
    if before ~= stands then call('HSET', P .. 'worker:' .. worker, 'standby', stands) end
  end
  if limit > 0 then
    local idle = idle_as(worker, me[7], which, queues, #leases < limit)
    call('HSET', P .. 'worker:' .. worker, 'word', ARGV[3], 'said', flags, 'idle', idle)
  else
    call('HSET', P .. 'worker:' .. worker, 'word', ARGV[3], 'said', flags)
  end

  -- Who waits for one of these is to hear that it ended: each once, of all of them.
  local told = {}
  for id, names in pairs(heard) do
    call('HDEL', P .. 'm:' .. id, 'v')
    for name in string.gmatch(names, '[^%s+]+') do
      told[name] = told[name] and told[name] .. '\n' .. id or id
    end
  end
  for name, ids in pairs(told) do call('PUBLISH', P .. 'mail:' .. name, ids) end

  local standing = '1' .. (me[5] and 'm' or '')
    .. (me[6] and tonumber(me[6]) > tonumber(now) and 'h' or '') .. standby
  local sizes = {text_of[#standing], text_of[count], text_of[#due], '1'}
  local data = {standing, flags, due, '0'}
  local at = put_leases(sizes, data, 4, text_of, pack, messages)
  sizes[at + 1], data[at + 1] = '1', '0'
  return table.concat(sizes, ' ') .. '\n' .. table.concat(data)
end

local said, delayed = plain_step(text_of, pack, put_leases, queues_with, idle_as)
if said then return said end
