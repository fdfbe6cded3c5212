-- How a step settles: what becomes of the messages that its worker held.
--
-- Settlements in the arguments: the number of groups of plain successes, which add nothing to
--   their workflow; for each, S or s (the values are handed on, not kept), the token,
--   result_expires, how many they are, and for each of them: id, value
--   then the number of all others; for each, a letter, the id, the token, and
--     S, s or I   value ("=…" or "" for none), children, result_expires, and the number
--                 of graphs (0 or 1) that it adds; s: the value is handed on, not kept;
--                 I: it is ignored
--     F   error, children, "=" and why it is dead, result_expires, outcome of the attempt
--     V   why it was revoked, the error that stands for it
--     Y   run_at, error, body, g, expires_at, L, U, envelope ("*": as it is)
--     G   run_at, and those from body on as in Y, countdown, expires_in, and a graph, of the
--         workflow that this makes if there was none
--     Q   how many deliveries are not counted, "" or the error of an attempt that was lost

local settler = {}  -- worker, name, is_limited: set by the step
local accepted, done, over, expiring = {}, {}, {}, {}

local function read_groups()
  local groups = {}
  for i = 1, tonumber(take()) do
    local group = {kind = take(), token = take(), keep = take(), count = tonumber(take())}
    group.at = place
    place = place + 2 * group.count
    groups[i] = group
  end
  return groups
end

local function read_settlements()
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
  return settlements
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

-- The successes of which most steps are full: what holds for all of them is worked out once.
local function settle_alike(group)
  local kept, fence = group.kind == 'S', group.token .. ' '
  local delete_at = group.keep ~= '' and string.format('%.6f', NOW + tonumber(group.keep))
  for at = group.at + 1, group.at + 2 * group.count, 2 do
    local id, value = ARGV[at], ARGV[at + 1]
    local key = P .. 'm:' .. id
    local found = redis.pcall('HMGET', key, 's', 'k', 'n', 'f')
    if found[1] == 'r' and found[2] and string.find(found[2], fence, 1, true) == 1 then
      accepted[#accepted + 1] = '1'
      if settler.is_limited[id] then free_slots(id) end
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
          call('HDEL', P .. 'orders:' .. settler.worker, found[3])
          call('HDEL', key, 'V')
        end
        if m.O or m.v then succeeded(m, value ~= '' and value or 'null') end
      end
    else
      accepted[#accepted + 1] = '0'
    end
  end
end

local function succeed(s, m)  -- or end without a result, if it is ignored
  local state = s.kind == 'I' and 'I' or 'S'
  local key = P .. 'm:' .. s.id
  if s.kind == 'S' and s.value ~= '' then
    call('HSET', key, 's', state, 'Z', NOW_TEXT, 'r', string.sub(s.value, 2))
  else
    call('HSET', key, 's', state, 'Z', NOW_TEXT)
    if m.r then call('HDEL', key, 'r') end
  end
  if s.children then call('HSET', key, 'c', s.children) end
  wipe(m)
  if m.V then
    call('HDEL', P .. 'orders:' .. settler.worker, m.n)
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
end

-- Make it what the next attempt is to be, or what takes its place.
local function renew(s, m)
  local key = P .. 'm:' .. s.id
  keep_attempt(m, settler.name, s.kind == 'Y' and 'retried' or 'replaced', s.error or false)
  give_lease_up(m)
  wipe(m)
  if s.kind == 'G' then call('HDEL', key, 'C', 'D') end
  call('HDEL', key, 'u', 'x', 'L', 'r')  -- U stays: it is the same call
  call('HSET', key, 'b', s.b, 'g', s.g, 'k', '0 ' .. settler.worker .. ' 0 -', 'j', '1',
    'f', '1')
  if s.x then call('HSET', key, 'x', s.x) end
  if s.L then call('HSET', key, 'L', s.L) end
  if not s.e then
    call('HDEL', key, 'e')
  elseif s.e ~= '*' then  -- the same, with a checkpoint, if it has one by now
    call('HSET', key, 'e', s.e)
  end
  call('SADD', P .. 'queues', s.q)
end

local function retry(s, m)
  renew(s, m)
  call('HSET', P .. 'm:' .. s.id, 'u', s.run_at, 'r', s.error,
    's', line_up(s.id, s.q, s.p, tonumber(m.n), s.run_at, s.x))
  call('ZADD', P .. 'retrying', m.n, s.id)
end

-- It waits for the graph that took its place, or starts anew where it stood.
local function replace(s, m)
  renew(s, m)
  local key = P .. 'm:' .. s.id
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

local function settle(s)
  local kind = s.kind
  local plain = not s.graph and (kind == 'S' or kind == 's' or kind == 'I')
  local m = held(s.id, s.token, not plain)
  accepted[#accepted + 1] = m and '1' or '0'
  if not m then return end  -- it had lost the lease
  if settler.is_limited[s.id] then free_slots(s.id) end
  if kind == 'S' or kind == 's' or kind == 'I' then return succeed(s, m) end
  m.w = settler.worker
  if m.V and kind ~= 'V' and (kind ~= 'F' or s.outcome == 'lost') then
    revoke_lease(m, 'revoked')  -- it was to be, while it ran: no further attempt
  elseif kind == 'F' then
    keep_attempt(m, settler.name, s.outcome, s.error)
    if m.V then call('HDEL', P .. 'm:' .. s.id, 'V') end
    fail_lease(m, s.error, s.children, s.dead ~= '' and string.sub(s.dead, 2), s.keep)
  elseif kind == 'V' then
    revoke_lease(m, s.reason, s.error)
  elseif kind == 'Q' then
    if s.error then keep_attempt(m, settler.name, 'lost', s.error) end
    requeue(m, s.uncounted)
  elseif kind == 'Y' then
    retry(s, m)
  else
    replace(s, m)
  end
end

local function write_settled()  -- of all of them at once, when the last is settled
  if #done == 0 then return end
  each_thousand('SREM', P .. 'leases:' .. settler.worker, done)
  if #over > 0 then each_thousand('ZADD', P .. 'over:S', over) end
  if #expiring > 0 then each_thousand('ZADD', P .. 'expiring', expiring) end
end
