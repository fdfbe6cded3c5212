-- How a message changes its state, and what its end means to those that wait for it.
--
-- The fields of a message, m:<id>:
--   n  number: the order of arrival       s  state, one letter (below)
--   b  body                               e  envelope
--   g  what else it is from the start (see `given_of`): p priority, y retries, o options
--      (time_limit,soft_time_limit,acks_late,ignore_result,max_deliveries,result_expires),
--      q queue, t task; when it is read, they become fields of their own
--   u  run_at                             x  expires_at
--   L  limits                             U  unique_key
--   k  the lease, or the last (see `lease_of`): k token, w worker, d deliveries, T started
--   f  "1": it has some of the fields u x L U e, P C D B, O v V N, or r before it has ended.
--      Most have none, so that whoever reads a message looks for them only behind this one
--   Q  when it was enqueued               Z  when it settled
--   r  result, or error                   c  children
--   N  state that it reports (note)       M  what it reports with it
--   V  why it was revoked; while it runs: that it is to be, and with which signal
--   X  why it is a dead letter            K  when it was parked
--   v  names of the mailboxes that wait   j  "1": it is not what was enqueued any more
--   O  "1": edges leave here              P  how many edges to it are not met
--   C  countdown, D  expires_in: seconds from when it stops waiting
--   a  the id of the call that replaced it last, if it is unique
--   B  of a gather: the position of its next part
--   A  how many of its attempts were before the first that is kept
--   W  the workflow that it is a node of  h  name of its worker, if it was moved here
-- States: w waiting, q queued, d delayed, r running, p parked, l limited (see `limiting.lua`);
--   S succeeded, F failed, R revoked, I ignored.
--
-- Keys:
--   q:<queue>           zset  queued ids, by priority and number
--   d:<queue>           zset  delayed ids, by when they are due
--   w:<queue>           zset  waiting ids, by number; no gathers, which are no work
--   parked:<n>:<queue>:<task>  zset  parked ids, by priority and number (n: its length)
--   p:<queue>           set   tasks that messages of this queue are parked for
--   parked              zset  parked ids, by when they were parked
--   expiry              zset  ids that are not to be started after a time, by that time
--   retrying            zset  ids that wait for another attempt, by number
--   leases:<worker>     set   ids that the worker holds
--   orders:<worker>     hash  number: signal, of runs that the worker is to end
--   over:<state>        zset  ids that ended in S, F, R, I, by number; no gathers
--   dead                zset  dead letters, by number
--   expiring            zset  ids that ended, and of early notes, by when they are to be deleted
--   e:<id>              hash  edges from a message; letter and target: position. A capital
--                             letter led to what was replaced since: it sets nothing off
--   b:<id>              hash  edges to a message; source: letter, "+" once it is met
--   i:<id>              hash  inputs of a message; position:source: letter and value
--   unique:<key>        string  until when a unique key is kept after the end ("" not), and
--                             the id of the message that holds it, or did
--   a:<id>              list  its latest attempts that did not succeed
--   workflow:<id>       hash  name, created
--   nodes:<workflow>    zset  ids of its messages, by number
--   workflows           zset  ids of workflows, by the number of their first message

local GATHER = 'liteq.gather'
local IGNORED_KEPT = 3600

local function rank(priority, number)  -- highest priority first, then the oldest
  return string.format('%d', (9 - priority) * 17592186044416 + number)
end

local function parked_key(queue, task)
  return P .. 'parked:' .. #queue .. ':' .. queue .. ':' .. task
end

-- A unique message's lock, unique:<key>, names who has it, and until when it is kept after
-- an end. It holds as long as that message is alive, which the message itself says: so what
-- ends it has nothing to give free. It is deleted with the message. One that has expired
-- before its start is over as well: who wants its key ends it first.

local function is_over(state)
  return string.find('SFRI', state, 1, true) ~= nil
end

-- An early note is a state that was stored for an id before its call came. It stands where a
-- message that waits would, but in no queue, until it expires or the call takes its place.
local NO_QUEUE = '^' .. string.rep('[^,]*,', 8) .. '0,'
local function is_early(state, g)
  return state == 'w' and string.find(g or '', NO_QUEUE) ~= nil
end

local function clear_early(id)  -- who waits for it, waits for what takes its place
  call('HDEL', P .. 'm:' .. id, 'N', 'M', 'P')
  call('ZREM', P .. 'expiring', id)
end

local function alive_with(key, id)  -- and whether it has expired before its start
  local m = call('HMGET', P .. 'm:' .. id, 's', 'U', 'W', 'a', 'x')
  if not m[1] or is_over(m[1]) or m[2] ~= key then return nil end
  local late = m[1] ~= 'r' and m[5] and (tonumber(m[5]) or math.huge) <= NOW
  return {s = m[1], W = m[3], a = m[4]}, late
end

-- Return what handed its key on to this message, if it has not ended: should this one end
-- before, it has the key again. And whether it has expired before its start.
local function runs_before(key, id)
  local edges = call('HGETALL', P .. 'b:' .. id)
  for i = 1, #edges, 2 do
    local m, late
    if edges[i + 1] == 'e' then m, late = alive_with(key, edges[i]) end
    if m then return edges[i], m, late end
  end
end

-- Return the id of the message that holds a key, and its state, worker's fields aside; nil
-- if the key is free. One that failed or was revoked has done nothing. Then the ids of those
-- that are to be ended by who takes the key, since they have expired, and the state of the one
-- that had it.
local function holder_of(key)
  local expired = {}
  local lock = call('GET', P .. 'unique:' .. key)
  if not lock then return nil, nil, expired end
  local till, id = string.match(lock, '^(%S*) (.*)$')
  local m, late = alive_with(key, id)
  if m and not late then return id, m, expired end
  if m then expired[1] = id end
  local before, running, gone = runs_before(key, id)
  if before and not gone then return before, running, expired, m and m.s end
  if before then expired[#expired + 1] = before end
  if m then return nil, nil, expired, m.s end
  local state = call('HGET', P .. 'm:' .. id, 's')
  if till ~= '' and tonumber(till) > NOW and not (state == 'F' or state == 'R') then
    return id, nil, expired
  end
  return nil, nil, expired
end

local function lock(key, id, seconds)
  local till = seconds and string.format('%.17g', NOW + tonumber(seconds)) or ''
  call('SET', P .. 'unique:' .. key, till .. ' ' .. id)
end

local function locked_by(key)  -- the id of the last that took it, alive or not
  return string.match(call('GET', P .. 'unique:' .. key) or '', '^%S* (.*)$')
end

local function can_lock(m)
  if not m.U then return true end
  local id, _, late, state = holder_of(m.U)
  return (not id or id == m.id) and (late[1] == m.id or state ~= 'w')
end

-- A message is deleted: so is its lock, but `lasting` for as long as it was asked for.
local function drop_lock(key, id, lasting)
  local name = P .. 'unique:' .. key
  local till, holder = string.match(call('GET', name) or ' ', '^(%S*) (.*)$')
  if holder ~= id then return end
  local before, _, late = runs_before(key, id)
  if before and not late then return lock(key, before) end
  if lasting and till ~= '' and tonumber(till) > NOW then
    call('EXPIRE', name, math.ceil(tonumber(till) - NOW))
  else
    call('DEL', name)
  end
end

local function open_given(m)  -- what stands in `g` becomes fields
  local found = given_of(m.g)
  m.p, m.y, m.o, m.q, m.t = found.p, found.y, found.o, found.q, found.t
end

local function line_key(queue, limits)
  return P .. 'line:' .. #queue .. ':' .. queue .. ':' .. limits
end

local LOADED = {'s', 'n', 'g', 'b', 'k', 'f', 'r', 'W', 'K', 'x', 'u', 'O', 'v', 'V', 'P', 'C',
  'D', 'U', 'L'}
local function load(id)
  local found = redis.pcall('HMGET', P .. 'm:' .. id, unpack(LOADED))
  if not found[1] then return nil end
  local m = {id = id}
  for i, name in ipairs(LOADED) do m[name] = found[i] end
  if not tonumber(m.n) then m.n = '0' end
  open_given(m)
  m.k, m.w, m.d, m.T = lease_of(m.k)
  return m
end

local function kept_for(options)  -- result_expires, "" for ever
  return string.match(options, '([^,]*)$')
end

local function ignores(options)
  return string.match(options, '^[^,]*,[^,]*,[^,]*,(.)') == '1'
end

local enter_line  -- see limiting.lua

local function wait(m)  -- put a message where those are that wait; a gather is no work
  if m.t ~= GATHER then call('ZADD', P .. 'w:' .. m.q, m.n, m.id) end
end

local function place_now(name, score, id)
  call('ZADD', P .. name, score, id)
end

-- Put a message where claims find it, now or when it is due; one that is limited, if there
-- are limits. Returns its state. `place` writes it there, if not at once.
local function line_up(id, queue, priority, number, run_at, expires_at, limits, place)
  local state
  place = place or place_now
  if (number_of(run_at) or 0) > NOW then
    state = 'd'
    place('d:' .. queue, run_at, id)
  elseif limits then
    state = 'l'
    enter_line(id, queue, limits, rank(priority, number), number)
  else
    state = 'q'
    place('q:' .. queue, rank(priority, number), id)
  end
  woken(queue)  -- for a delayed one too: a worker is to know when to look again
  if number_of(expires_at) then place('expiry', expires_at, id) end
  return state
end

-- Take a message out of where it waits.
local function take_out(m)
  local state, id = m.s, m.id
  if state == 'q' then
    call('ZREM', P .. 'q:' .. m.q, id)
  elseif state == 'd' then
    call('ZREM', P .. 'd:' .. m.q, id)
  elseif state == 'w' then
    if m.t ~= GATHER then call('ZREM', P .. 'w:' .. m.q, id) end
    return
  elseif state == 'p' then
    local key = parked_key(m.q, m.t)
    call('ZREM', key, id)
    call('ZREM', P .. 'parked', id)
    if call('EXISTS', key) == 0 then call('SREM', P .. 'p:' .. m.q, m.t) end
  elseif state == 'l' then
    call('ZREM', line_key(m.q, m.L), id)
    call('ZREM', P .. 'limited:' .. m.q, id)
  end
  if m.x then call('ZREM', P .. 'expiry', id) end
  if m.r then call('ZREM', P .. 'retrying', id) end
end

local function give_lease_up(m)
  call('SREM', P .. 'leases:' .. (m.w or ''), m.id)
  if m.V then call('HDEL', P .. 'orders:' .. m.w, m.n) end
end

-- Write down that a message is over; `keep`: seconds, "" for ever.
local function close(m, state, keep)
  if m.t ~= GATHER then call('ZADD', P .. 'over:' .. state, m.n, m.id) end
  local seconds = number_of(keep)
  if seconds then call('ZADD', P .. 'expiring', NOW + seconds, m.id) end
end

-- What has ended, as it is handed on. `value` is the result, or the error that stands for
-- it. `tells`: its error callbacks are set off. `silent`: nothing failed, there is just no
-- value. `gather`: it was one, or ended as one did. `wrapped`: the error is a gather's
-- ChordError. `cause`: what ended it, of one that is `upstream`. `joins`: it is a gather.
local ends = {}
local function note_end(m, finish)
  finish.id = m.id
  if m.O then ends[#ends + 1] = finish end
  if m.v then
    tell(m.v, m.id)
    call('HDEL', P .. 'm:' .. m.id, 'v')
  end
end

local function revocation(reason)
  return (string.gsub(REVOKED_ERROR, '%%s', reason))
end

local function succeeded(m, value)
  note_end(m, {state = 'S', kind = 'r', value = value, tells = true})
end

local function failed(m, error)
  note_end(m, {state = 'F', kind = 'e', value = error, tells = true})
end

local function revoked(m, error)
  note_end(m, {state = 'R', kind = 'e', value = error, tells = true, gather = m.t == GATHER})
end

local function ignored(m)
  note_end(m, {state = 'R', kind = 'e', value = IGNORED_ERROR, silent = true})
end

local function purged(m)
  note_end(m, {state = 'R', kind = 'e', value = revocation('purged'), silent = true})
end

-- End a message that waits for something. To be followed by `follow()`.
local function revoke(m, reason)
  take_out(m)
  call('HDEL', P .. 'm:' .. m.id, 'r')
  call('HSET', P .. 'm:' .. m.id, 's', 'R', 'Z', NOW_TEXT, 'V', reason)
  close(m, 'R', kept_for(m.o))
  revoked(m, revocation(reason))
end

local function is_open(m)  -- or it ended upstream: what it waited for may be redriven
  return m.s == 'w' or ((m.s == 'F' or m.s == 'R') and m.V == 'upstream')
end

-- End what waits as what it waited for has ended.
local function end_upstream(m, finish, tells, gather, cause)
  if m.s ~= 'w' then return end
  take_out(m)
  call('HSET', P .. 'm:' .. m.id, 's', finish.state, 'Z', NOW_TEXT, 'V', 'upstream')
  if finish.state == 'F' then call('HSET', P .. 'm:' .. m.id, 'r', finish.value) end
  close(m, finish.state, kept_for(m.o))
  note_end(m, {state = finish.state, kind = 'e', value = finish.value, upstream = true,
    gather = gather, tells = tells, silent = finish.silent, wrapped = finish.wrapped,
    joins = m.t == GATHER, cause = cause or finish})
end

-- The edge from a source, if it leads to this message: "+" once it is met. An id may be used
-- again when its message has been deleted; edges that led to that one do not lead here.
local function edge_from(source, m)
  return call('HGET', P .. 'b:' .. m.id, source)
end

local function met(m, source)  -- whether this edge is met now, and was not before
  local edge = edge_from(source, m)
  if not edge or edge == '+' then return false end
  call('HSET', P .. 'b:' .. m.id, source, '+')
  return true
end

local function start(m)  -- what a message waited for has come
  call('ZREM', P .. 'w:' .. m.q, m.id)
  local key = P .. 'm:' .. m.id
  local run_at, expires_at = m.u, m.x
  if number_of(m.C) then
    run_at = string.format('%.17g', NOW + tonumber(m.C))
    call('HSET', key, 'u', run_at)
  end
  if number_of(m.D) then
    expires_at = string.format('%.17g', NOW + tonumber(m.D))
    call('HSET', key, 'x', expires_at)
  end
  call('HSET', key, 's', line_up(m.id, m.q, m.p, tonumber(m.n), run_at, expires_at))
end

-- Count edges of a message as met, and return how many are left; none of a number that nobody
-- can have counted.
local function count_down(m, count)
  local left = (number_of(m.P) or count) - count
  if math.abs(left) > 2 ^ 31 then left = 0 end
  call('HSET', P .. 'm:' .. m.id, 'P', string.format('%d', left))
  return left
end

local function give(target, position, finish)
  local m = load(target)
  if not m or not is_open(m) or not met(m, finish.id) then return end
  call('HSET', P .. 'i:' .. target, position .. ':' .. finish.id, finish.kind .. finish.value)
  if count_down(m, 1) == 0 and m.s == 'w' then start(m) end
end

local function take_turn(target, finish)  -- it waited for the end alone
  local m = load(target)
  if not m or not is_open(m) or not met(m, finish.id) then return end
  if count_down(m, 1) == 0 and m.s == 'w' then start(m) end
end

local function inputs(id)  -- {position, source, kind, value} in their order
  local raw, list = call('HGETALL', P .. 'i:' .. id), {}
  for i = 1, #raw, 2 do
    local colon = string.find(raw[i], ':', 1, true)
    list[#list + 1] = {tonumber(string.sub(raw[i], 1, colon - 1)),
      string.sub(raw[i], colon + 1), string.sub(raw[i + 1], 1, 1), string.sub(raw[i + 1], 2)}
  end
  table.sort(list, function(a, b)
    if a[1] ~= b[1] then return a[1] < b[1] end
    return a[2] < b[2]
  end)
  return list
end

local function join(m)  -- a gather has all its parts: its result is their list
  local list = {}
  for _, part in ipairs(inputs(m.id)) do
    list[#list + 1] = part[3] .. #part[4] .. ':'
    list[#list + 1] = part[4]
  end
  local value = table.concat(list)
  local keep = kept_for(m.o)
  call('DEL', P .. 'i:' .. m.id)
  call('HSET', P .. 'm:' .. m.id, 's', 'S', 'Z', NOW_TEXT)
  if ignores(m.o) then
    keep = tostring(math.min(number_of(keep) or IGNORED_KEPT, IGNORED_KEPT))
  elseif m.b ~= 'count' then
    call('HSET', P .. 'm:' .. m.id, 'r', value)
  end
  close(m, 'S', keep)
  note_end(m, {state = 'S', kind = 'l', value = value, gather = true, tells = true})
end

local function parent_of(id)
  local envelope = call('HGET', P .. 'm:' .. id, 'e')
  local good, found = pcall(cjson.decode, envelope or '')
  return good and type(found) == 'table' and found.parent_id or nil
end

-- Tell whether the first call of a member has not run either: its parent is that of the
-- gather. (A gather among the members may have that one too, however it ended.)
local function is_from_before(m, part)
  local parent = part.upstream and parent_of(m.id)
  while parent and part and part.upstream do
    if not part.joins and parent_of(part.id) == parent then return true end
    part = part.cause
  end
  return false
end

-- End a gather as a part of it has failed; or as all of it ends if what its members stand
-- behind has: that is no error of theirs, and has called its own callbacks.
local function fail_gather(m, part)
  local inside, finish = not is_from_before(m, part), part
  if inside and not part.wrapped and not part.silent then
    local error = '{"type":"ChordError","module":"liteq.exceptions","source":' ..
      cjson.encode(part.id) .. ',"cause":' .. part.value .. '}'
    finish = {state = 'F', value = error, wrapped = true}
  end
  end_upstream(m, finish, inside and not part.silent, inside, part)
end

-- Count the parts of a gather that have ended; end it if it is to end.
local function gather(target, arrivals)
  local m = load(target)
  if not m or not is_open(m) then return end
  local policy, bad, count = m.b, nil, 0
  for _, arrival in ipairs(arrivals) do
    local position, finish = arrival[1], arrival[2]
    local good = finish.state == 'S'
    if not good and policy == 'fail' then
      if edge_from(finish.id, m) then bad = bad or finish end
    elseif met(m, finish.id) then
      count = count + 1
      if policy == 'collect' or (good and policy ~= 'count') then
        local part = finish.kind .. finish.value
        call('HSET', P .. 'i:' .. target, position .. ':' .. finish.id, part)
      end
    end
  end
  local pending = tonumber(m.P)
  if count > 0 then pending = count_down(m, count) end
  if m.s ~= 'w' then return end
  if bad then
    fail_gather(m, bad)
  elseif pending == 0 then
    join(m)
  end
end

-- Hand on all ends, and those that come of it. Round by round and not by recursion: a chain
-- may have ten thousand links.
local function follow()
  while #ends > 0 do
    local round = ends
    ends = {}
    local gathers, order = {}, {}
    for _, finish in ipairs(round) do
      local edges = call('HGETALL', P .. 'e:' .. finish.id)
      for i = 1, #edges, 2 do
        local on, target = string.sub(edges[i], 1, 1), string.sub(edges[i], 2)
        local position = edges[i + 1]
        if on == 'p' then
          if not gathers[target] then
            gathers[target] = {}
            order[#order + 1] = target
          end
          table.insert(gathers[target], {position, finish})
        elseif on == 's' then
          if finish.state == 'S' then
            give(target, position, finish)
          else
            local m = load(target)
            if m and edge_from(finish.id, m) then
              end_upstream(m, finish, finish.gather and not finish.silent)
            end
          end
        elseif on == 'e' then
          take_turn(target, finish)
        elseif on == 'f' and finish.state ~= 'S' and finish.tells then
          give(target, position, finish)
        elseif on == 'f' then
          local m = load(target)
          if m and edge_from(finish.id, m) then
            end_upstream(m, {state = 'R', value = revocation('upstream'), silent = true}, false)
          end
        end
      end
    end
    for _, target in ipairs(order) do gather(target, gathers[target]) end
  end
end

-- Delete a message that is over or taken out, and all that hangs on it.
-- `key` is its unique key, and whether that lasts as long as was asked for.
local function delete(id, state, workflow, key, lasting)
  if key then drop_lock(key, id, lasting) end
  -- What hangs on a node of a large workflow is freed by another thread: 16 ms for 50,000.
  call('UNLINK', P .. 'm:' .. id, P .. 'a:' .. id, P .. 'i:' .. id, P .. 'e:' .. id, P .. 'b:' .. id)
  if state then
    call('ZREM', P .. 'over:' .. state, id)
    call('ZREM', P .. 'expiring', id)
    call('ZREM', P .. 'dead', id)
  end
  if workflow then
    call('ZREM', P .. 'nodes:' .. workflow, id)
    if call('EXISTS', P .. 'nodes:' .. workflow) == 0 then
      call('DEL', P .. 'workflow:' .. workflow)
      call('ZREM', P .. 'workflows', workflow)
    end
  end
end
