-- Broker.declare_limits and Broker.override_limit: change what limits allow.
-- Needs: form calling base | ends limiting
-- ARGV[4…]  for each change: t, a task, what it declares (JSON; "" for nothing); or o, a name,
--           an override (JSON; "" for none)
-- A limit is written as {name, pair (JSON), rule}; an override as {pair, rule, task or null}.
--
-- Keys:
--   limits:declared     hash  task: list of limits, as JSON
--   limits:overrides    hash  name: override, as JSON

write_when_full()
local changed = false
while place < #ARGV do
  local kind, name, text = take(), take(), given(take())
  local key = P .. (kind == 't' and 'limits:declared' or 'limits:overrides')
  if call('HGET', key, name) ~= (text or false) then
    changed = true
    if text then call('HSET', key, name, text) else call('HDEL', key, name) end
  end
end
if not changed then return answer() end

local function is_rule(text)
  return string.find(text, '^[%d.e+-]*,%d+,%d*,[01]$') ~= nil
end

local in_force, under = {}, {}
local declared = call('HGETALL', P .. 'limits:declared')
for i = 1, #declared, 2 do
  local list = {}
  for _, limit in ipairs(list_in(declared[i + 1])) do
    if are_texts(limit, 3) and is_rule(limit[3]) then
      in_force[limit[1]] = limit[3]
      list[#list + 1] = {limit[1], limit[2]}
    end
  end
  under[declared[i]] = list
end
local overrides = call('HGETALL', P .. 'limits:overrides')
for i = 1, #overrides, 2 do
  local name, override = overrides[i], list_in(overrides[i + 1])
  local good = are_texts(override, 2) and is_rule(override[2])
  if good then in_force[name] = override[2] end
  if good and type(override[3]) == 'string' then
    local list, there = under[override[3]] or {}, false
    for _, one in ipairs(list) do there = there or one[1] == name end
    if not there then list[#list + 1] = {name, override[1]} end
    under[override[3]] = list
  end
end
call('DEL', P .. 'limits:rules', P .. 'limits:names')
for name, rule in pairs(in_force) do call('HSET', P .. 'limits:rules', name, rule) end
for task, list in pairs(under) do
  if #list > 0 then call('HSET', P .. 'limits:names', task, cjson.encode(list)) end
end

-- All lines are to be looked at anew.
for _, queue in ipairs(call('SMEMBERS', P .. 'queues')) do
  local blocked = call('HGETALL', P .. 'blocked:' .. queue)
  for i = 2, #blocked, 2 do
    unblock(blocked[i], queue, #blocked)
  end
  if call('EXISTS', P .. 'limited:' .. queue) == 1 then woken(queue) end
end
for _, worker in ipairs(call('ZRANGE', P .. 'workers', 0, -1)) do
  call('DEL', P .. 'closed:' .. worker)
end
ring()
return answer()
