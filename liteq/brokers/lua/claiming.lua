-- How a step claims: what comes first in the queues of its worker, a slice at a time.

local SLICE = 500
local known = {}  -- tasks that were asked for: whether the worker knows them

local function read(id)  -- what a claim needs of a message; `what`: of those that are alike
  local key = P .. 'm:' .. id
  local found = redis.pcall('HMGET', key, 's', 'n', 'g', 'b', 'k', 'f')
  local m = {id = id, s = found[1], n = found[2], g = found[3], b = found[4], k = found[5],
    what = given_of(found[3]), damage = damage_of(found[2], found[3], found[4], found[5])}
  if m.damage then return m end
  if found[6] then
    local more = call('HMGET', key, 'u', 'x', 'L', 'U', 'e', 'P', 'r')
    m.more, m.u, m.x, m.L, m.U, m.e = true, more[1], more[2], more[3], more[4], more[5]
    m.P, m.r = more[6], more[7]
  end
  return m
end

local function by_rank(a, b)
  if a.what.p ~= b.what.p then return a.what.p > b.what.p end
  return tonumber(a.n) < tonumber(b.n)
end

-- Make claimable what has come due in a queue. Returns whether anything has, and whether there
-- is more than one step does.
local function promote(queue)
  local key = P .. 'd:' .. queue
  local due = call('ZRANGEBYSCORE', key, '-inf', NOW_TEXT, 'LIMIT', 0, SLICE)
  if #due == 0 then return false, false end
  local ready = {}
  for _, id in ipairs(due) do
    local found = redis.pcall('HMGET', P .. 'm:' .. id, 'g', 'n')
    local what, number = given_of(found[1]), tonumber(found[2] or nil)
    if number and not what.damaged then call('HSET', P .. 'm:' .. id, 's', 'q') end
    ready[#ready + 1] = rank(what.p, number or 0)  -- of one that is damaged: its claim says so
    ready[#ready + 1] = id
  end
  each_thousand('ZREM', key, due)
  each_thousand('ZADD', P .. 'q:' .. queue, ready)
  fresh[queue] = (fresh[queue] or 0) + #due
  return true, #due == SLICE and call('ZCOUNT', key, '-inf', NOW_TEXT) > 0
end

local function learn(batch)  -- which of these tasks the worker knows
  local asked = {}
  for _, m in ipairs(batch) do
    local task = m.what.t
    if known[task] == nil and not m.damage then
      known[task] = false
      asked[#asked + 1] = task
    end
  end
  for i = 1, #asked, 1000 do
    local last = math.min(i + 999, #asked)
    local answers = call('SMISMEMBER', P .. 'known:' .. claimer.worker, unpack(asked, i, last))
    for j = i, last do known[asked[j]] = answers[j - i + 1] == 1 end
  end
end

-- Return the keys that this worker claims from, given the queues in which something came due.
local function sources_with(promoted)
  local sources, is_source = {}, {}
  local function look_in(queue)
    if not is_source[queue] then sources[#sources + 1] = P .. 'q:' .. queue end
    is_source[queue] = true
  end
  for _, queue in ipairs(queues_with('q:', claimer.queues, promoted)) do look_in(queue) end
  for _, queue in ipairs(queues_with('p:', claimer.queues)) do
    local parked = P .. 'p:' .. queue
    local tasks = claimer.knows_all and call('SMEMBERS', parked)
      or call('SINTER', parked, P .. 'known:' .. claimer.worker)
    for _, task in ipairs(tasks) do sources[#sources + 1] = parked_key(queue, task) end
    if #tasks > 0 then look_in(queue) end  -- what there is no room for goes there
  end
  return sources
end

-- Take the first `wanted` of these sources, in the order of their scores.
local function first_of(sources, wanted)
  if #sources == 1 then  -- twice as fast as ZPOPMIN, which writes out the scores
    local ids = call('ZRANGE', sources[1], 0, wanted - 1)
    if #ids > 0 then call('ZREMRANGEBYRANK', sources[1], 0, #ids - 1) end
    return ids
  end
  local found = {}
  for _, key in ipairs(sources) do
    local some = call('ZRANGE', key, 0, wanted - 1, 'WITHSCORES')
    for i = 1, #some, 2 do found[#found + 1] = {some[i], tonumber(some[i + 1]), key} end
  end
  table.sort(found, function(a, b) return a[2] < b[2] end)
  local chosen = {}
  for i = 1, math.min(wanted, #found) do
    call('ZREM', found[i][3], found[i][1])
    chosen[i] = found[i][1]
  end
  return chosen
end

local function is_useless(m)  -- too late, or unknown
  if not claimer.knows_all then learn({m}) end
  return m.x and (tonumber(m.x) or math.huge) <= NOW
    or not (claimer.knows_all or known[m.what.t])
end

local function park(m)
  local queue, task = m.what.q, m.what.t
  call('HSET', P .. 'm:' .. m.id, 's', 'p', 'K', NOW_TEXT)
  call('ZADD', parked_key(queue, task), rank(m.what.p, tonumber(m.n)), m.id)
  call('ZADD', P .. 'parked', NOW_TEXT, m.id)
  call('SADD', P .. 'p:' .. queue, task)
  fresh[queue] = math.huge  -- who of the others knows it is not known here
end

local function unpark(m)
  local queue, task = m.what.q, m.what.t
  call('ZREM', P .. 'parked', m.id)
  call('HDEL', P .. 'm:' .. m.id, 'K')
  if call('EXISTS', parked_key(queue, task)) == 0 then
    call('SREM', P .. 'p:' .. queue, task)
  end
end

-- Claim so many messages at most. `delayed`: queues in which something may have come due.
-- Returns the leases, what was put aside, and whether there is more to make claimable, or to
-- look through, than one step does.
local function claim(limit, delayed)
  local leases, aside, more = {}, {}, false
  local promoted = {}
  for _, queue in ipairs(delayed) do
    local any, others = promote(queue)
    if any then promoted[#promoted + 1] = queue end
    more = more or others
  end
  local sources, taken = sources_with(promoted), {}
  local mine, since = claimer.token .. ' ' .. claimer.worker .. ' ', ' ' .. NOW_TEXT
  local lined, moved = has_lines(), 0
  if lined then open_due() end
  -- Nothing while some of what is due has no place yet: it may be the first in line.
  while not more and #leases < limit and (lined or #sources > 0) do
    local wanted = math.min(limit - #leases + #aside, SLICE)
    local line, batch, before = lined and tried < SLICE and first_line(), {}, moved
    if line then
      local ahead = 0
      for _, key in ipairs(sources) do
        ahead = ahead + call('ZCOUNT', key, '-inf', '(' .. string.format('%.17g', line.at))
      end
      wanted = math.min(wanted, ahead)
    end
    if wanted > 0 then
      local found = first_of(sources, wanted)
      for i = 1, #found do batch[i] = read(found[i]) end
    else
      batch[1] = try(line, read, is_useless)
    end
    if not claimer.knows_all then learn(batch) end
    for _, m in ipairs(batch) do
      local key, what = P .. 'm:' .. m.id, m.what
      local queue, task = what.q, what.t
      if m.damage then
        bury(m.id, m.damage)
      elseif m.s == 'p' then
        unpark(m)
      end
      local deliveries = 0
      if m.k then _, _, deliveries = lease_of(m.k) end
      m.d = deliveries
      if m.damage then
        aside[#aside + 1] = {'d', read(m.id)}
        aside[#aside][2].d = '0'
      elseif m.x and (tonumber(m.x) or math.huge) <= NOW then
        aside[#aside + 1] = {'x', m}
        local late = load(m.id)
        late.s = ''  -- it is taken out already
        revoke(late, 'expired')
      elseif not (claimer.knows_all or known[task]) then
        park(m)
        aside[#aside + 1] = {'p', m}
      elseif m.s ~= 'l' and limits_of(task, m.L) then
        local limits = limits_of(task, m.L)
        call('HSET', key, 's', 'l', 'L', limits, 'f', '1')
        enter_line(m.id, queue, limits, rank(what.p, tonumber(m.n)), m.n)
        lined, moved = true, moved + 1
      elseif #leases + moved - before >= limit then  -- those moved go before it, if they may
        call('ZADD', P .. 'q:' .. queue, rank(what.p, tonumber(m.n)), m.id)
        if m.s == 'p' then call('HSET', key, 's', 'q') end
      else
        m.d = text_of[m.d + 1]
        call('HSET', key, 's', 'r', 'k', mine .. m.d .. since)
        if m.x then call('ZREM', P .. 'expiry', m.id) end
        if m.r then call('ZREM', P .. 'retrying', m.id) end
        if fresh[queue] then fresh[queue] = fresh[queue] - 1 end
        leases[#leases + 1] = m
        taken[#taken + 1] = m.id
      end
    end
    if not line and #batch < wanted and moved == before then break end
    if #aside + moved + tried > SLICE then
      more = true
      break
    end
  end
  if tried > 0 then table.sort(leases, by_rank) end
  if #taken > 0 then each_thousand('SADD', P .. 'leases:' .. claimer.worker, taken) end
  follow()
  return leases, aside, more
end
