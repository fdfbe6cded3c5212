-- Broker.step: settle, note and claim for one worker.
-- Needs: form with calling plain base | ends limiting lines enter lease bury
-- ARGV[4]   the worker
--      [5]  the token of the leases that this step takes
--      [6]  of an idle worker: a star, a new token, a space, and the rest of what it stands by
--           with (see `enqueue_one.lua`); and the word of its last step that was answered, or
--           "": if the store knows of that, whatever the worker holds is given back. Else it
--           forgot, and some may have been run: see `Broker.disown`. Or a minus and such a word,
--           or only a minus, and nothing is given back: it stands by no longer
--      then the number of tokens of claims whose answer was lost, and those: what they hold
--           is given back
--      then the number of groups of plain successes, which add nothing to their workflow;
--        for each, S or s (the values are handed on, not kept), the token, result_expires,
--        how many they are, and for each of them: id, value
--      then the number of all other settlements; for each, a letter, the id, the token, and
--        S, s or I   value ("=…" or "" for none), children, result_expires, and the number
--                    of graphs (0 or 1) that it adds; s: the value is handed on, not kept;
--                    I: it is ignored
--        F   error, children, "=" and why it is dead, result_expires, outcome of the attempt
--        V   why it was revoked, the error that stands for it
--        Y   run_at, error, body, g, expires_at, L, U, envelope ("*": as it is)
--        G   run_at, and those from body on as in Y, countdown, expires_in, and a graph, of the
--            workflow that this makes if there was none
--        Q   how many deliveries are not counted, "" or the error of an attempt that was lost
--      then the number of notes; for each: id, token, "=…" a state, meta; or "" and the envelope
--      that the message has from now on
--      then the limit, the number of queues, their names, and the digest of the names of the
--        tasks that the worker knows ("*": takes any; see `known.lua`), 1 if it ignores
--        rates, a digest of the queues' names, and the ids of settled messages that are under
--        limits
-- Answers   1 if it is alive, else 0, with an m if it has letters, an h if somebody listens to
--           events, and behind a space the token that an idle worker stands by with; a 1 or 0
--           for each settlement; in how many seconds the next is due, "now" or ""; the
--           number of orders; for each: number, signal; the leases (see `put_leases`); the
--           number of those put aside; for each: a letter (p parked, x expired), number,
--           delivery, the fields of a message (see `put_message`); or d: it was damaged; and
--           if one of the leases expires, what time it is.
--           Or only "tasks", when the worker's tasks are not known under this digest; or
--           "graph", the number of a settlement, and what enqueue.lua answers to a graph that
--           cannot be. Nothing is done then.

local SLICE = 500
local worker, token = take(), take()
local doubtful, again = {}, false
local first = take()
local stands_down, last = string.match(first, '^(%-)(%d*)$')
if stands_down then first = take() end
local fresh_token, stands = string.match(first, '^%*(%d+) (.*)$')
if fresh_token then last = take() end
for _ = 1, tonumber(fresh_token and take() or first) do
  doubtful[take()] = true
  again = true
end

local groups = {}
for i = 1, tonumber(take()) do
  local group = {kind = take(), token = take(), keep = take(), count = tonumber(take())}
  group.at = place
  place = place + 2 * group.count
  groups[i] = group
end
local settlements = {}
for i = 1, tonumber(take()) do
  local s = {kind = take(), id = take(), token = take()}
  settlements[i] = s
  local kind = s.kind
  if kind == 'S' or kind == 's' or kind == 'I' then
    s.value, s.children, s.keep = take(), given(take()), take()
    if take() == '1' then s.graph = read_graph() end
  elseif kind == 'F' then
    s.error, s.children, s.dead, s.keep, s.outcome = take(), given(take()), take(), take(), take()
  elseif kind == 'V' then
    s.reason, s.error = take(), take()
  elseif kind == 'Q' then
    s.uncounted, s.error = tonumber(take()), given(take())
  else
    s.run_at = instant(take())
    if kind == 'Y' then s.error = take() end
    s.b, s.g, s.x = take(), take(), instant(take())
    s.L, s.U, s.e = given(take()), given(take()), given(take())
    open_given(s)
    if kind == 'G' then s.C, s.D, s.graph = given(take()), given(take()), read_graph() end
  end
end
local notes = {}
for i = 1, tonumber(take()) do notes[i] = {take(), take(), take(), take()} end
local limit = tonumber(take())
local queues, seen = {}, {}
for _ = 1, tonumber(take()) do
  local queue = take()
  if not seen[queue] then queues[#queues + 1] = queue end
  seen[queue] = true
end
local digest = take()
claimer.worker, claimer.ignore_rates = worker, take() == '1'
local which = take()
local is_limited = {}
while place < #ARGV do is_limited[take()] = true end

local me = call('HMGET', P .. 'worker:' .. worker, 'name', 'stopped', 'known', 'word', 'said',
  'mail', 'heard', 'standby')
local name, alive = me[1], me[1] and not me[2]
local standing = (alive and '1' or '0') .. (me[6] and 'm' or '')
  .. (me[7] and tonumber(me[7]) > NOW and 'h' or '')
if limit > 0 and alive and digest ~= '*' and me[3] ~= digest then
  put('tasks')
  return answer()
end

local function refuse_graph(s)  -- what it is to add or be replaced by cannot be
  local refusal, id, other = check_graph(s.graph, true)
  if refusal then return refusal, id, other end
  for _, edge in ipairs(s.graph.edges) do
    local replaced = s.kind == 'G' and (edge[2] == s.id or edge[3] ~= 'p')
    if not s.graph.new[edge[2]] and not replaced then
      local given = call('HGET', P .. 'm:' .. edge[2], 'g')
      local task = given and given_of(given).t
      if task and task ~= GATHER then return 'N', edge[2], task end
    end
  end
end
for i, s in ipairs(settlements) do
  if s.graph and held(s.id, s.token) and me[4] ~= ARGV[3] then
    local refusal, id, other = refuse_graph(s)
    if refusal then
      put('graph') put(i) put(refusal) put(id) put(other)
      return answer()
    end
  end
end

local function open_gathers(graph)  -- those of the store that a graph adds parts to
  local gathers = {}
  for _, edge in ipairs(graph.edges) do
    if not graph.new[edge[2]] then
      local target = load(edge[2])
      if target and is_open(target) then gathers[edge[2]] = true end
    end
  end
  return gathers
end

local open_queues = queues  -- those that are not paused
if #queues > 0 then
  local paused = call('SMEMBERS', P .. 'paused')
  if #paused > 0 then
    local is_paused = {}
    for _, queue in ipairs(paused) do is_paused[queue] = true end
    open_queues = {}
    for _, queue in ipairs(queues) do
      if not is_paused[queue] then open_queues[#open_queues + 1] = queue end
    end
  end
end

claimer.queues = open_queues

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

local more = false  -- to make claimable, or to look through, than one step does
local function put_due()
  if more then return put('now') end
  local due
  for _, queue in ipairs(queues_with('d:', open_queues)) do
    local first = call('ZRANGE', P .. 'd:' .. queue, 0, 0, 'WITHSCORES')
    if first[2] and (not due or tonumber(first[2]) < tonumber(due)) then due = first[2] end
  end
  due = has_lines() and next_opening(due) or due
  put(due and tonumber(due) - NOW or '')
end

local function put_orders()
  local orders = call('HGETALL', P .. 'orders:' .. worker)
  put(#orders / 2)
  for _, word in ipairs(orders) do put(word) end
end

local function put_now(leases)  -- when these expire, the caller's clock cannot tell
  for _, m in ipairs(leases) do
    if m.x then return put(NOW_TEXT) end
  end
end

local function by_rank(a, b)
  if a.what.p ~= b.what.p then return a.what.p > b.what.p end
  return tonumber(a.n) < tonumber(b.n)
end

-- This very step was made, and its answer was lost: say what it did.
if me[4] == ARGV[3] then
  local leases = {}
  for _, id in ipairs(call('SMEMBERS', P .. 'leases:' .. worker)) do
    local m = read(id)
    local stored, _, deliveries = lease_of(m.k)
    m.d = deliveries
    if stored == token then leases[#leases + 1] = m end
  end
  table.sort(leases, by_rank)
  if fresh_token then
    standing = standing .. ' ' .. (string.match(me[8] or '', '^%d+') or '')
  end
  local flags, look = string.match(me[5], '^(%d*)(%+?)$')
  more = look ~= ''
  put(standing)
  put(flags)
  put_due()
  put_orders()
  filled = put_leases(sizes, data, filled, text_of, pack, leases, inputs)
  put(0)
  put_now(leases)
  return answer()
end

write_when_full()

local strays = false
local idle = last == me[4] or (fresh_token and last == '')
if again or idle then
  for _, id in ipairs(call('SMEMBERS', P .. 'leases:' .. worker)) do
    local found = redis.pcall('HMGET', P .. 'm:' .. id, 'n', 'g', 'b', 'k')
    local why = idle and damage_of(found[1], found[2], found[3], found[4] or '')
    local stored = lease_of(found[4])
    local m = not why and stored and (idle or doubtful[stored]) and held(id, stored, true)
    strays = strays or why or m
    if why then
      call('SREM', P .. 'leases:' .. worker, id)
      bury(id, why)
    elseif m then
      m.w = worker
      if m.V then revoke_lease(m, 'revoked') else requeue(m, 1) end
      free_slots(id)
    end
  end
end

for _, note in ipairs(notes) do
  local found = call('HMGET', P .. 'm:' .. note[1], 's', 'k', 'v')
  if found[1] == 'r' and is_of(found[2], note[2]) then
    if note[3] == '' then
      call('HSET', P .. 'm:' .. note[1], 'e', note[4], 'f', '1')
    else
      call('HSET', P .. 'm:' .. note[1], 'N', string.sub(note[3], 2), 'M', note[4],
        'f', '1')
    end
    for name in string.gmatch(found[3] or '', '(%S+)%+') do tell(name, note[1]) end
  end
end

local accepted, done, over, expiring = {}, {}, {}, {}

-- The successes of which most steps are full: what holds for all of them is worked out once.
for _, group in ipairs(groups) do
  local kept, fence = group.kind == 'S', group.token .. ' '
  local delete_at = group.keep ~= '' and string.format('%.6f', NOW + tonumber(group.keep))
  for at = group.at + 1, group.at + 2 * group.count, 2 do
    local id, value = ARGV[at], ARGV[at + 1]
    local key = P .. 'm:' .. id
    local found = redis.pcall('HMGET', key, 's', 'k', 'n', 'f')
    if found[1] == 'r' and found[2] and string.find(found[2], fence, 1, true) == 1 then
      accepted[#accepted + 1] = '1'
      if is_limited[id] then free_slots(id) end
      if kept then
        call('HSET', key, 's', 'S', 'Z', NOW_TEXT, 'r', value)
      else
        call('HSET', key, 's', 'S', 'Z', NOW_TEXT)
      end
      done[#done + 1] = id
      over[#over + 1] = tonumber(found[3]) and found[3] or '0'
      over[#over + 1] = id
      if delete_at then
        expiring[#expiring + 1] = delete_at
        expiring[#expiring + 1] = id
      end
      if found[4] then
        local more = call('HMGET', key, 'O', 'v', 'V', 'N', 'r')
        local m = {id = id, O = more[1], v = more[2]}
        if more[5] and not kept then call('HDEL', key, 'r') end
        if more[4] then call('HDEL', key, 'N', 'M') end
        if more[3] then
          call('HDEL', P .. 'orders:' .. worker, found[3])
          call('HDEL', key, 'V')
        end
        if m.O or m.v then succeeded(m, value ~= '' and value or 'null') end
      end
    else
      accepted[#accepted + 1] = '0'
    end
  end
end

for _, s in ipairs(settlements) do
  local kind = s.kind
  local plain = not s.graph and (kind == 'S' or kind == 's' or kind == 'I')
  local m = held(s.id, s.token, not plain)
  accepted[#accepted + 1] = m and '1' or '0'
  if m and is_limited[s.id] then free_slots(s.id) end
  if not m then
    -- it had lost the lease
  elseif kind == 'S' or kind == 's' or kind == 'I' then
    local state = kind == 'I' and 'I' or 'S'
    local key = P .. 'm:' .. s.id
    if kind == 'S' and s.value ~= '' then
      call('HSET', key, 's', state, 'Z', NOW_TEXT, 'r', string.sub(s.value, 2))
    else
      call('HSET', key, 's', state, 'Z', NOW_TEXT)
      if m.r then call('HDEL', key, 'r') end
    end
    if s.children then call('HSET', key, 'c', s.children) end
    wipe(m)
    if m.V then
      call('HDEL', P .. 'orders:' .. worker, m.n)
      call('HDEL', key, 'V')
    end
    done[#done + 1] = s.id
    if state == 'S' then
      over[#over + 1] = m.n
      over[#over + 1] = s.id
    else
      call('ZADD', P .. 'over:I', m.n, s.id)
    end
    if s.keep ~= '' then
      expiring[#expiring + 1] = NOW + tonumber(s.keep)
      expiring[#expiring + 1] = s.id
    end
    if s.graph then
      s.graph.workflow, s.graph.name = m.W or nil, nil
      enter(s.graph, open_gathers(s.graph))
    end
    if m.O or m.v then
      if state == 'I' then
        ignored(m)
      else
        succeeded(m, s.value == '' and 'null' or string.sub(s.value, 2))
      end
    end
  else
    m.w = worker
    if m.V and kind ~= 'V' and (kind ~= 'F' or s.outcome == 'lost') then
      revoke_lease(m, 'revoked')  -- it was to be, while it ran: no further attempt
    elseif kind == 'F' then
      keep_attempt(m, name, s.outcome, s.error)
      if m.V then call('HDEL', P .. 'm:' .. s.id, 'V') end
      fail_lease(m, s.error, s.children, s.dead ~= '' and string.sub(s.dead, 2), s.keep)
    elseif kind == 'V' then
      revoke_lease(m, s.reason, s.error)
    elseif kind == 'Q' then
      if s.error then keep_attempt(m, name, 'lost', s.error) end
      requeue(m, s.uncounted)
    else
      local key = P .. 'm:' .. s.id
      keep_attempt(m, name, kind == 'Y' and 'retried' or 'replaced', s.error or false)
      give_lease_up(m)
      wipe(m)
      if kind == 'G' then call('HDEL', key, 'C', 'D') end
      call('HDEL', key, 'u', 'x', 'L', 'r')  -- U stays: it is the same call
      call('HSET', key, 'b', s.b, 'g', s.g, 'k', '0 ' .. worker .. ' 0 -', 'j', '1', 'f', '1')
      if s.x then call('HSET', key, 'x', s.x) end
      if s.L then call('HSET', key, 'L', s.L) end
      if not s.e then
        call('HDEL', key, 'e')
      elseif s.e ~= '*' then  -- the same, with a checkpoint, if it has one by now
        call('HSET', key, 'e', s.e)
      end
      call('SADD', P .. 'queues', s.q)
      if kind == 'Y' then
        call('HSET', key, 'u', s.run_at, 'r', s.error,
          's', line_up(s.id, s.q, s.p, tonumber(m.n), s.run_at, s.x))
        call('ZADD', P .. 'retrying', m.n, s.id)
      else
        -- It waits for the graph that took its place, or starts anew where it stood.
        for _, source in ipairs(call('HKEYS', P .. 'b:' .. s.id)) do
          local edges = P .. 'e:' .. source
          for _, on in ipairs({'s', 'f', 'p'}) do
            local position = call('HGET', edges, on .. s.id)
            if position then
              call('HDEL', edges, on .. s.id)
              call('HSET', edges, string.upper(on) .. s.id, position)
            end
          end
        end
        call('HSET', key, 's', 'w', 'P', '0')
        if s.run_at then call('HSET', key, 'u', s.run_at) end
        if s.C then call('HSET', key, 'C', s.C) end
        if s.D then call('HSET', key, 'D', s.D) end
        call('DEL', P .. 'i:' .. s.id, P .. 'b:' .. s.id)
        wait({id = s.id, t = s.t, q = s.q, n = m.n})
        if m.W then
          s.graph.workflow, s.graph.name = m.W, nil
        elseif #s.graph.messages > 0 then
          call('HSET', key, 'W', s.graph.workflow)
          call('ZADD', P .. 'nodes:' .. s.graph.workflow, m.n, s.id)
        end
        local there = open_gathers(s.graph)
        there[s.id] = true
        enter(s.graph, there)
        local now = load(s.id)
        if now.s == 'w' and now.P == '0' then
          now.C, now.D = nil, nil  -- it waits for nothing: its times are worked out
          if s.t == GATHER then join(now) else start(now) end
        end
      end
    end
  end
end
follow()
if #done > 0 then
  each_thousand('SREM', P .. 'leases:' .. worker, done)
  if #over > 0 then each_thousand('ZADD', P .. 'over:S', over) end
  if #expiring > 0 then each_thousand('ZADD', P .. 'expiring', expiring) end
end
local flags = table.concat(accepted)

local function promote(queue)
  local key = P .. 'd:' .. queue
  local due = call('ZRANGEBYSCORE', key, '-inf', NOW_TEXT, 'LIMIT', 0, SLICE)
  if #due == 0 then return false end
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
  more = more or (#due == SLICE and call('ZCOUNT', key, '-inf', NOW_TEXT) > 0)
  return true
end

local anything = digest == '*'
local known = {}
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
    local answers = call('SMISMEMBER', P .. 'known:' .. worker, unpack(asked, i, last))
    for j = i, last do known[asked[j]] = answers[j - i + 1] == 1 end
  end
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

local leases, aside = {}, {}
if limit > 0 and alive then
  if not delayed or open_queues ~= queues then delayed = queues_with('d:', open_queues) end
  local promoted = {}
  for _, queue in ipairs(delayed) do
    if promote(queue) then promoted[#promoted + 1] = queue end
  end
  local sources, is_source = {}, {}
  local function look_in(queue)
    if not is_source[queue] then sources[#sources + 1] = P .. 'q:' .. queue end
    is_source[queue] = true
  end
  for _, queue in ipairs(queues_with('q:', open_queues, promoted)) do look_in(queue) end
  for _, queue in ipairs(queues_with('p:', open_queues)) do
    local parked = P .. 'p:' .. queue
    local tasks = anything and call('SMEMBERS', parked)
      or call('SINTER', parked, P .. 'known:' .. worker)
    for _, task in ipairs(tasks) do sources[#sources + 1] = parked_key(queue, task) end
    if #tasks > 0 then look_in(queue) end  -- what there is no room for goes there
  end
  local taken = {}
  local mine, since = token .. ' ' .. worker .. ' ', ' ' .. NOW_TEXT
  local lined, moved = has_lines(), 0
  if lined then open_due() end
  local function is_useless(m)  -- too late, or unknown
    if not anything then learn({m}) end
    return m.x and (tonumber(m.x) or math.huge) <= NOW or not (anything or known[m.what.t])
  end
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
    if not anything then learn(batch) end
    for _, m in ipairs(batch) do
      local key, what = P .. 'm:' .. m.id, m.what
      local queue, task = what.q, what.t
      if m.damage then
        bury(m.id, m.damage)
      elseif m.s == 'p' then
        call('ZREM', P .. 'parked', m.id)
        call('HDEL', key, 'K')
        if call('EXISTS', parked_key(queue, task)) == 0 then
          call('SREM', P .. 'p:' .. queue, task)
        end
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
      elseif not (anything or known[task]) then
        call('HSET', key, 's', 'p', 'K', NOW_TEXT)
        call('ZADD', parked_key(queue, task), rank(what.p, tonumber(m.n)), m.id)
        call('ZADD', P .. 'parked', NOW_TEXT, m.id)
        call('SADD', P .. 'p:' .. queue, task)
        fresh[queue] = math.huge  -- who of the others knows it is not known here
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
  if #taken > 0 then each_thousand('SADD', P .. 'leases:' .. worker, taken) end
  follow()
end
if alive then
  call('HSET', P .. 'worker:' .. worker, 'word', ARGV[3], 'said', flags .. (more and '+' or ''))
end
ring()
if limit > 0 and alive then
  local before = call('HGET', P .. 'worker:' .. worker, 'idle')  -- it may have rung for itself
  local idle = idle_as(worker, before, which, queues, #leases < limit)
  if idle ~= before then call('HSET', P .. 'worker:' .. worker, 'idle', idle) end
end

-- It stands by with a token that is no step's, and another one when something was given back.
if fresh_token and alive then
  if limit > 0 and call('EXISTS', P .. 'paused', P .. 'limits:names') == 0 then
    local token = not strays and string.match(me[8] or '', '^%d+') or fresh_token
    standing = standing .. ' ' .. token
    stands = token .. ' ' .. stands
    if me[8] ~= stands then call('HSET', P .. 'worker:' .. worker, 'standby', stands) end
  elseif me[8] then
    call('HDEL', P .. 'worker:' .. worker, 'standby')
  end
elseif stands_down and me[8] then
  -- For what is on its way, unless that was given back.
  if not strays then standing = standing .. ' ' .. (string.match(me[8], '^%d+') or '') end
  call('HDEL', P .. 'worker:' .. worker, 'standby')
end

put(standing)
put(flags)
put_due()
put_orders()
filled = put_leases(sizes, data, filled, text_of, pack, leases, inputs)
put(#aside)
for _, one in ipairs(aside) do
  put(one[1])
  put(one[2].n)
  put(one[2].d)
  put_message(one[2])
end
put_now(leases)
return answer()
