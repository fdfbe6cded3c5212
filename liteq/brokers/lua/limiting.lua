-- Limits: which messages may start now. The rules are those of `brokers/limiting.py`, which
-- says what a line, a bucket and a gate are; here a line is named by the limits of its messages.
--
-- Keys:
--   line:<n>:<queue>:<limits>  zset  ids of a line, by priority and number (n: its length)
--   limited:<queue>     zset  ids of all lines of a queue, by number
--   ready:<queue>       zset  lines that are not blocked, by the rank of their first, or a better
--   blocked:<queue>     hash  line: the bucket that blocks it
--   turns:<queue>       hash  line: since when (a number) it has waited to be served
--   turn                integer
--   gate:<n>:<queue>:<bucket>  zset  lines that the bucket blocks, by priority and turn
--   gates:<bucket>      set   queues that have such a gate
--   due:<queue>         zset  buckets of rates that block lines, by when they open
--   bucket:<bucket>     string  when all the burst of a rate is saved up, and when it was used
--                       last; expires some time after it is
--   slots:<bucket>      set   ids of running messages that count in it
--   closed:<worker>     zset  queue and line that this worker passes over, by until when
--   limits:rules        hash  name: interval,burst,most,per_worker ("" for none) in force
--   limits:names        hash  task: names that its messages are under, each with its pair as JSON
-- A message's H is the list (JSON) of the buckets whose slots it holds. What is damaged there,
-- `maintain.lua` makes good.

local BAND = tonumber(rank(8, 0))

local function list_in(text)  -- nothing, of what another program wrote and nobody can read
  local good, list = pcall(cjson.decode, text)
  return good and type(list) == 'table' and list or {}
end

local function are_texts(list, count)
  if type(list) ~= 'table' then return false end
  for i = 1, count do
    if type(list[i]) ~= 'string' then return false end
  end
  return true
end

local parsed = {}
local function pairs_of(limits)  -- {name, key or nil}
  if not parsed[limits] then
    local found = {}
    for _, pair in ipairs(list_in(limits)) do
      if type(pair) == 'table' and type(pair[1]) == 'string' then found[#found + 1] = pair end
    end
    parsed[limits] = found
  end
  return parsed[limits]
end

local rules = {}
local function rule_of(name)
  if rules[name] == nil then
    local text = call('HGET', P .. 'limits:rules', name)
    if text then
      local interval, burst, most, own = string.match(text, '^([^,]*),([^,]*),([^,]*),(.*)$')
      interval, burst, most = number_of(interval), number_of(burst), number_of(most)
      local is_rate = interval and interval > 0 and interval < math.huge and burst and burst >= 1
      rules[name] = {interval = is_rate and interval or nil, burst = burst,
        most = most and most >= 1 and most or nil, own = own == '1'}
    else
      rules[name] = false
    end
  end
  return rules[name]
end

local names
local function names_of(task)
  if names == nil then names = call('EXISTS', P .. 'limits:names') == 1 and {} end
  if not names then return nil end
  if names[task] == nil then
    local text = call('HGET', P .. 'limits:names', task)
    names[task] = text and {} or false
    for _, one in ipairs(text and list_in(text) or {}) do
      if are_texts(one, 2) then table.insert(names[task], one) end
    end
  end
  return names[task]
end

local function limits_of(task, limits)  -- with those that all messages of the task are under
  local own = names_of(task)
  if not own then return limits end
  local known, missing = {}, {}
  for _, pair in ipairs(limits and pairs_of(limits) or {}) do known[pair[1]] = true end
  for _, one in ipairs(own) do
    if not known[one[1]] then missing[#missing + 1] = one[2] end
  end
  if #missing == 0 then return limits end
  local more = table.concat(missing, ',')
  if not limits then return '[' .. more .. ']' end
  return string.sub(limits, 1, -2) .. ',' .. more .. ']'
end

local function gate_key(queue, bucket)
  return P .. 'gate:' .. #queue .. ':' .. queue .. ':' .. bucket
end

local function closure(queue, limits)
  return #queue .. ':' .. queue .. ':' .. limits
end

local function first_in(queue, limits)
  return call('ZRANGE', line_key(queue, limits), 0, 0, 'WITHSCORES')
end

function enter_line(id, queue, limits, at, number)
  local bucket = call('HGET', P .. 'blocked:' .. queue, limits)
  local head = bucket and first_in(queue, limits)
  call('ZADD', line_key(queue, limits), at, id)
  call('ZADD', P .. 'limited:' .. queue, number, id)
  if bucket and head[1] and tonumber(head[2]) <= tonumber(at) then return end
  -- A new first one is looked at: it may go before a line that was let go on meanwhile.
  if bucket then
    call('HDEL', P .. 'blocked:' .. queue, limits)
    call('ZREM', gate_key(queue, bucket), limits)
  end
  call('ZADD', P .. 'ready:' .. queue, 'LT', at, limits)
end

-- Let the first lines that a bucket blocks go on.
local function unblock(bucket, queue, count)
  local key = gate_key(queue, bucket)
  while count > 0 do
    local limits = call('ZPOPMIN', key)[1]
    if not limits then break end
    call('HDEL', P .. 'blocked:' .. queue, limits)
    local head = first_in(queue, limits)
    if head[1] then
      call('ZADD', P .. 'ready:' .. queue, head[2], limits)
      woken(queue)
      count = count - 1
    else
      call('HDEL', P .. 'turns:' .. queue, limits)
    end
  end
  if call('EXISTS', key) == 0 then
    call('SREM', P .. 'gates:' .. bucket, queue)
    call('ZREM', P .. 'due:' .. queue, bucket)
  end
end

local function give_slot_back(bucket, id)
  call('SREM', P .. 'slots:' .. bucket, id)
  for _, queue in ipairs(call('SMEMBERS', P .. 'gates:' .. bucket)) do
    unblock(bucket, queue, 1)
  end
end

local function free_slots(id)  -- of a message that runs no more
  local held = call('HGET', P .. 'm:' .. id, 'H')
  if not held then return end
  call('HDEL', P .. 'm:' .. id, 'H')
  for _, bucket in ipairs(list_in(held)) do give_slot_back(tostring(bucket), id) end
end

local function put_free_at(bucket, free_at, used_at)
  local key = P .. 'bucket:' .. bucket
  call('SET', key, string.format('%.17g %.17g', free_at, used_at))
  -- A clock that a test moves is not the server's, by which keys expire.
  if ARGV[1] == '' then call('EXPIRE', key, math.ceil(math.max(free_at - NOW, 0)) + 60) end
end

-- When all the burst is saved up: never later than if all of it had been used up at the last
-- start, so that a rate that was raised holds at once.
local function free_at_of(bucket, rule)
  local text = call('GET', P .. 'bucket:' .. bucket)
  if not text then return 0 end
  local free_at, used_at = string.match(text, '^(%S+) (%S+)$')
  free_at, used_at = number_of(free_at), number_of(used_at)
  if not (free_at and used_at) then return 0 end
  if used_at > NOW then  -- the clock was set back
    used_at = NOW
    put_free_at(bucket, free_at, used_at)
  end
  return math.min(free_at, used_at + rule.burst * rule.interval)
end

local function opens_at_of(bucket, rule)
  return free_at_of(bucket, rule) - (rule.burst - 1) * rule.interval
end
