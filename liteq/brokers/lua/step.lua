-- Broker.step: settle, note and claim for one worker.
-- Needs: form with calling plain base | ends limiting lines enter lease settling bury claiming
-- ARGV[4]   the worker
--      [5]  the token of the leases that this step takes
--      [6]  of an idle worker: a star, a new token, a space, and the rest of what it stands by
--           with (see `enqueue_one.lua`); and the word of its last step that was answered, or
--           "": if the store knows of that, whatever the worker holds is given back. Else it
--           forgot, and some may have been run: see `Broker.disown`. Or a minus and such a word,
--           or only a minus, and nothing is given back: it stands by no longer
--      then the number of tokens of claims whose answer was lost, and those: what they hold
--           is given back
--      then the settlements (see `settling.lua`)
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

local groups, settlements = read_groups(), read_settlements()
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
claimer.worker, claimer.token, claimer.ignore_rates = worker, token, take() == '1'
claimer.knows_all = digest == '*'
local which = take()
settler.worker, settler.is_limited = worker, {}
while place < #ARGV do settler.is_limited[take()] = true end

local me = call('HMGET', P .. 'worker:' .. worker, 'name', 'stopped', 'known', 'word', 'said',
  'mail', 'heard', 'standby')
local alive = me[1] and not me[2]
settler.name = me[1]
local standing = (alive and '1' or '0') .. (me[6] and 'm' or '')
  .. (me[7] and tonumber(me[7]) > NOW and 'h' or '')
if limit > 0 and alive and digest ~= '*' and me[3] ~= digest then
  put('tasks')
  return answer()
end

for i, s in ipairs(settlements) do
  local m = s.graph and me[4] ~= ARGV[3] and held(s.id, s.token)
  if m and not (s.kind == 'G' and m.V) then  -- one that is to be revoked is not replaced
    local refusal, id, other = refuse_graph(s)
    if refusal then
      put('graph') put(i) put(refusal) put(id) put(other)
      return answer()
    end
  end
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

local function put_due()
  local due
  for _, queue in ipairs(queues_with('d:', open_queues)) do
    due = earlier(due, call('ZRANGE', P .. 'd:' .. queue, 0, 0, 'WITHSCORES'))
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

local function put_step(flags, more, leases, aside)  -- all that the answer says
  put(standing)
  put(flags)
  if more then put('now') else put_due() end
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
  put_step(flags, look ~= '', leases, {})
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

for _, group in ipairs(groups) do settle_alike(group) end
for _, s in ipairs(settlements) do settle(s) end
follow()
write_settled()
local flags = table.concat(accepted)

local leases, aside, more = {}, {}, false
if limit > 0 and alive then
  if not delayed or open_queues ~= queues then delayed = queues_with('d:', open_queues) end
  leases, aside, more = claim(limit, delayed)
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

put_step(flags, more, leases, aside)
return answer()
