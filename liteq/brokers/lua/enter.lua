-- How messages and the edges between them get into the store: read, checked, written.
--
-- A graph in the arguments: the workflow's id and name ("" for none); the number of its
-- messages; for each: id, g, body, run_at, expires_at, L, U, envelope, countdown, expires_in
-- (U: "", or the policy, unique_for, max_wait, unique_key); the number of edges; for each:
-- source, target, letter (s success, f failure, p part), position (-1: the next).
-- Where an instant is taken (run_at, expires_at), it may be seconds from now, behind a plus:
-- then they are counted by this server's clock, for the caller's may be off.

local function instant(text)
  if string.byte(text) ~= 43 then return given(text) end
  return string.format('%.17g', NOW + tonumber(string.sub(text, 2)))
end

local function read_graph()
  local graph = {workflow = given(take()), name = take(), messages = {}, edges = {}}
  for i = 1, tonumber(take()) do
    local m = {id = ARGV[place + 1], g = ARGV[place + 2], b = ARGV[place + 3],
      u = instant(ARGV[place + 4]), x = instant(ARGV[place + 5]), L = given(ARGV[place + 6]),
      U = given(ARGV[place + 7]), e = given(ARGV[place + 8]), C = given(ARGV[place + 9]),
      D = given(ARGV[place + 10])}
    place = place + 10
    open_given(m)
    if m.U then
      m.policy, m.lasts, m.max_wait, m.U = string.match(m.U, '^(%a+) (%S*) (%S*) (.*)$')
    end
    graph.messages[i] = m
  end
  for i = 1, tonumber(take()) do
    graph.edges[i] = {take(), take(), take(), take()}
  end
  return graph
end

-- Decide what becomes of a unique message. Returns nil, or why it cannot be (see below) and
-- the id of the one that holds its key.
local function admit(graph, m, whole)
  local mine = graph.keys[m.U]  -- taken by another of these messages
  if mine then
    if whole then return 'P', mine.id end
    if m.policy == 'raise' then return 'D', mine.id end
    if m.policy == 'replace' then
      for _, name in ipairs({'g', 'b', 'u', 'x', 'L', 'e', 'C', 'D'}) do mine[name] = m[name] end
      open_given(mine)
      mine.a, mine.j = m.id, '1'
    end
    graph.stands[m.id] = mine.id
    return
  end
  local id, alive, late = holder_of(m.U)
  for _, one in ipairs(late) do graph.late[one] = true end
  if id then
    if whole then return 'P', id end
    if m.policy == 'raise' then return 'D', id end
    local again = alive and alive.a == m.id and not graph.renewed[id]  -- this call, once more
    if m.policy ~= 'replace' or not alive or again then
      graph.stands[m.id] = id
      return
    end
    if alive.s ~= 'r' then
      if alive.W then return 'T', id end
      graph.stands[m.id] = id
      graph.renewed[id] = m
      return
    end
    table.insert(graph.edges, {id, m.id, 'e', '0'})
  end
  graph.keys[m.U] = m
  graph.new[m.id] = m
end

-- Have a message that waits take what another would have been; it keeps its place.
local function renew_unique(id, m)
  local old, key = load(id), P .. 'm:' .. id
  take_out(old)
  local run_at = m.u
  if run_at and m.max_wait ~= '' then
    local latest = tonumber(call('HGET', key, 'Q')) + tonumber(m.max_wait)
    if tonumber(run_at) > latest then run_at = string.format('%.17g', latest) end
  end
  call('HDEL', key, 'u', 'x', 'L', 'e', 'C', 'D', 'r', 'N', 'M', 'K')
  call('HSET', key, 'g', m.g, 'b', m.b, 'j', '1', 'a', m.id)
  if run_at then call('HSET', key, 'u', run_at) end
  if m.x then call('HSET', key, 'x', m.x) end
  if m.L then call('HSET', key, 'L', m.L) end
  if m.e then call('HSET', key, 'e', m.e) end
  call('SADD', P .. 'queues', m.q)
  if old.s == 'w' then  -- for the end of what runs
    if m.C then call('HSET', key, 'C', m.C) end
    if m.D then call('HSET', key, 'D', m.D) end
    wait({id = id, t = m.t, q = m.q, n = old.n})
  else
    call('HSET', key, 's', line_up(id, m.q, m.p, tonumber(old.n), run_at, m.x))
  end
end

local function are_unknown(messages)  -- whether none of them is in the store
  for first = 1, #messages, 1000 do
    local keys = {}
    for i = first, math.min(first + 999, #messages) do
      keys[#keys + 1] = P .. 'm:' .. messages[i].id
    end
    if #keys > 0 and call('EXISTS', unpack(keys)) > 0 then return false end
  end
  return true
end

-- Find what is new, and what cannot be. `whole`: no message can be left out. Returns nil, or a letter and an id that say why
-- nothing may be stored: A for another message of this id, E for an edge from what is not
-- there, O from what is over; D, P (in a workflow) or T (as a step of one), the task and the id of
-- the one that holds its unique key. `stands` is what is not stored because of that, and
-- what stands for it.
local function check_graph(graph, whole)
  local new = {}
  graph.new, graph.stands, graph.renewed, graph.keys, graph.late = new, {}, {}, {}, {}
  graph.early = {}
  local unknown = are_unknown(graph.messages)
  for _, m in ipairs(graph.messages) do
    local there = new[m.id]
    if there then
      if there.t ~= m.t or there.b ~= m.b then return 'A', m.id, there.t end
    elseif unknown and not m.U then
      new[m.id] = m
    else
      local found = call('HMGET', P .. 'm:' .. m.id, 'g', 'b', 'j', 's')
      graph.early[m.id] = is_early(found[4], found[1])
      local free = not found[1] or graph.early[m.id]
      if free and m.U then
        local refusal, holder = admit(graph, m, whole)
        if refusal then return refusal, m.t, holder end
      elseif free then
        new[m.id] = m
      elseif not found[3] then
        local task = given_of(found[1]).t
        if task ~= m.t or found[2] ~= m.b then return 'A', m.id, task end
      end
    end
  end
  for _, edge in ipairs(graph.edges) do
    if new[edge[2]] and not new[edge[1]] then
      local state, g = unpack(call('HMGET', P .. 'm:' .. edge[1], 's', 'g'))
      if not state or is_early(state, g) then return 'E', edge[1], edge[2] end
      if is_over(state) or graph.late[edge[1]] then return 'O', edge[1], edge[2] end
    end
  end
end

-- Write what is new of a graph; to be followed by `follow()`. `there`: ids of messages of the
-- store that edges of it lead to: a gather that gets more parts, a message that was replaced.
local function enter(graph, there)
  for id, m in pairs(graph.renewed) do renew_unique(id, m) end
  for id in pairs(graph.late) do revoke(load(id), 'expired') end
  local new, pending, next_part, met_by_target = graph.new, {}, {}, {}
  local count = 0
  for _ in pairs(new) do count = count + 1 end
  if count == 0 and not there then return end
  local number = call('INCRBY', P .. 'seq', count) - count
  for _, edge in ipairs(graph.edges) do
    local source, target, on, position = unpack(edge)
    if new[target] or (there and there[target] and (new[source] or there[source])) then
      if position == '-1' and not new[target] then
        position = string.format('%d', call('HINCRBY', P .. 'm:' .. target, 'B', 1) - 1)
      elseif on == 'p' then
        next_part[target] = math.max(next_part[target] or 0, tonumber(position) + 1)
      end
      call('HSET', P .. 'e:' .. source, on .. target, position)
      local met_by = met_by_target[target]
      if not met_by then
        met_by = {}
        met_by_target[target] = met_by
      end
      met_by[#met_by + 1] = source
      met_by[#met_by + 1] = on
      if not new[source] then call('HSET', P .. 'm:' .. source, 'O', '1', 'f', '1') end
      if new[source] then new[source].O = '1' end
      pending[target] = (pending[target] or 0) + 1
    end
  end
  for target, met_by in pairs(met_by_target) do
    each_thousand('HSET', P .. 'b:' .. target, met_by)
  end
  if there then
    for target in pairs(there) do
      if pending[target] then
        call('HINCRBY', P .. 'm:' .. target, 'P', pending[target])
      end
    end
  end
  for target, following in pairs(next_part) do
    if not new[target] then
      local known = tonumber(call('HGET', P .. 'm:' .. target, 'B') or '0')
      if following > known then call('HSET', P .. 'm:' .. target, 'B', following) end
    end
  end
  local lone, placed = {}, {}
  local function place_in(name, score, id)  -- many messages have few places, written at once
    local list = placed[name]
    if not list then
      list = {}
      placed[name] = list
    end
    list[#list + 1] = score
    list[#list + 1] = id
  end
  local workflow = graph.workflow
  local fields, at
  local function also(name, value)
    if value then
      fields[at + 1], fields[at + 2] = name, value
      at = at + 2
    end
  end
  for _, m in ipairs(graph.messages) do
    if new[m.id] == m then
      number = number + 1
      local n = string.format('%d', number)
      if graph.early[m.id] then clear_early(m.id) end
      local waits, id = pending[m.id], m.id
      local state
      if waits or m.t == GATHER then
        state = 'w'
        if m.t ~= GATHER then place_in('w:' .. m.q, n, id) end
        if not waits then lone[#lone + 1] = id end
      else
        state = line_up(id, m.q, m.p, number, m.u, m.x, m.L, place_in)
      end
      at, fields = 10, {'n', n, 's', state, 'g', m.g, 'b', m.b, 'Q', NOW_TEXT}
      also('u', m.u)
      also('x', m.x)
      also('L', m.L)
      also('U', m.U)
      also('e', m.e)
      also('O', m.O)
      also('a', m.a)
      also('j', m.j)
      if waits then
        also('P', string.format('%d', waits))
        also('C', m.C)
        also('D', m.D)
      elseif m.t == GATHER then
        also('P', '0')
      end
      if next_part[id] then also('B', string.format('%d', next_part[id])) end
      if at > 10 then also('f', '1') end
      also('W', workflow)
      call('HSET', P .. 'm:' .. id, unpack(fields))
      if m.U then lock(m.U, id, m.lasts ~= '' and m.lasts or nil) end
      if workflow then place_in('nodes:' .. workflow, n, id) end
      if not graph.queues then graph.queues = {} end
      graph.queues[m.q] = true
    end
  end
  for name, list in pairs(placed) do each_thousand('ZADD', P .. name, list) end
  for queue in pairs(graph.queues or {}) do call('SADD', P .. 'queues', queue) end
  if workflow and graph.name then
    if call('HSETNX', P .. 'workflow:' .. workflow, 'name', graph.name) == 1 then
      call('HSET', P .. 'workflow:' .. workflow, 'created', NOW_TEXT)
      call('ZADD', P .. 'workflows', number, workflow)
    end
  end
  for _, id in ipairs(lone) do join(load(id)) end
end
