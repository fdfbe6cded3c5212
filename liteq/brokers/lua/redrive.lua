-- Broker.redrive: give failed messages a fresh start, and undo what followed their ends.
-- Needs: form calling base | ends
-- ARGV[4…]  ids
-- Answers   the ids of those that were failed, and not upstream

local said = once()
if said then return said end

-- What is not over any more, or is to wait again: it starts as if it never had.
local function renew(m, state)
  local key = P .. 'm:' .. m.id
  if m.U then
    local _, _, late = holder_of(m.U)
    for _, one in ipairs(late) do
      if one ~= m.id then revoke(load(one), 'expired') end
    end
  end
  if string.find('SFRI', m.s, 1, true) then
    call('ZREM', P .. 'over:' .. m.s, m.id)
    call('ZREM', P .. 'expiring', m.id)
    call('ZREM', P .. 'dead', m.id)
  else
    take_out(m)
  end
  call('HDEL', key, 'r', 'c', 'X', 'K', 'Z', 'V')
  local envelope = call('HGET', key, 'e')
  if envelope and string.find(envelope, '"requeued":', 1, true) then
    call('HSET', key, 'e', (string.gsub(envelope, '"requeued":%-?%d+,', '')))
  end
  call('HSET', key, 's', state, 'k', string.format('0 %s 0 -', m.w or '-'),
    'g', (string.gsub(m.g, '^(%-?%d+),%-?%d+,', '%1,0,')))
  if state == 'w' then wait(m) end
  -- Its own lock says until when the key is kept.
  if m.U and locked_by(m.U) ~= m.id then lock(m.U, m.id) end
end

local function can_wait(m)  -- nothing that it waits for has ended in the wrong way
  local edges = call('HGETALL', P .. 'b:' .. m.id)
  for i = 1, #edges, 2 do
    if edges[i + 1] ~= '+' then
      local source, on = edges[i], edges[i + 1]
      local state, g = unpack(call('HMGET', P .. 'm:' .. source, 's', 'g'))
      if not state or is_over(state) or is_early(state, g) then return false end
      if call('HEXISTS', P .. 'e:' .. source, on .. m.id) == 0 then
        return false  -- what it waited for was deleted, and another has its id
      end
    end
  end
  return true
end

local undone = {}

-- An error callback that has been called, or is about to be, waits to be called again. One
-- that runs goes on, and one that somebody revoked stays revoked.
local function recall(m, source)
  if tonumber(m.P or '0') > 0 or m.s == 'r' or m.s == 'R' or not can_lock(m) then return end
  if not edge_from(source, m) then return end
  local over = string.find('SFI', m.s, 1, true)
  renew(m, 'w')
  call('HSET', P .. 'm:' .. m.id, 'P', '1')
  call('DEL', P .. 'i:' .. m.id)
  call('HSET', P .. 'b:' .. m.id, source, 'f')
  call('SADD', P .. 'queues', m.q)
  if over then undone[#undone + 1] = {m, m.s == 'S'} end
end

-- What has counted an end that is undone now, and has not started.
local function uncount(m, on, position, source)
  if not (string.find('wqdpl', m.s, 1, true) or is_open(m)) then return end
  if call('HGET', P .. 'b:' .. m.id, source) ~= '+' then return end
  call('HSET', P .. 'b:' .. m.id, source, on)
  call('HINCRBY', P .. 'm:' .. m.id, 'P', 1)
  call('HDEL', P .. 'i:' .. m.id, position .. ':' .. source)
  if string.find('qdpl', m.s, 1, true) then
    take_out(m)
    call('HSET', P .. 'm:' .. m.id, 's', 'w')
    wait(m)
  end
end

-- When a message expires that a signature covers, but of one that counts from when it is due.
local function bound_to(m)
  local envelope = call('HGET', P .. 'm:' .. m.id, 'e') or ''
  if not string.find(envelope, '"signature":"', 1, true) then return nil end
  if string.find(envelope, '"expires_in":', 1, true) then return nil end
  return number_of(m.x)
end

local driven = {}
for i = 4, #ARGV do
  local m = load(ARGV[i])
  local ends = m and bound_to(m)
  if m and m.s == 'F' and m.V ~= 'upstream' and m.t ~= '' and m.q ~= '' and m.t ~= GATHER
      and can_lock(m) and (not ends or ends > NOW) then
    local waits = tonumber(m.P or '0') > 0
    renew(m, waits and 'w' or 'q')
    local key = P .. 'm:' .. m.id
    call('HDEL', key, 'u')
    if not ends then call('HDEL', key, 'x') end
    call('HSET', key, 'Q', NOW_TEXT)
    call('SADD', P .. 'queues', m.q)
    if not waits then line_up(m.id, m.q, m.p, tonumber(m.n), nil, ends and m.x) end
    driven[#driven + 1] = m.id
    undone[#undone + 1] = {m, false}
  end
end
while #undone > 0 do
  local round, targets, order = undone, {}, {}
  undone = {}
  for _, one in ipairs(round) do
    local source, succeeded = one[1], one[2]
    local edges = source.O and call('HGETALL', P .. 'e:' .. source.id) or {}
    for i = 1, #edges, 2 do
      local on, position = string.sub(edges[i], 1, 1), edges[i + 1]
      local m = load(string.sub(edges[i], 2))
      if m then
        if not targets[m.id] then
          targets[m.id] = true
          order[#order + 1] = m.id
        end
        if on == 'f' and not succeeded then
          recall(m, source.id)
        elseif on == 's' and succeeded then
          uncount(m, on, position, source.id)
        elseif on == 'p' and (succeeded or m.b ~= 'fail') then
          uncount(m, on, position, source.id)
        end
      end
    end
  end
  for _, id in ipairs(order) do
    local m = load(id)
    if (m.s == 'F' or m.s == 'R') and m.V == 'upstream' and can_wait(m) and can_lock(m) then
      renew(m, 'w')
      undone[#undone + 1] = {m, false}
    end
  end
end
follow()
ring()
for _, id in ipairs(driven) do put(id) end
return answer_once()
