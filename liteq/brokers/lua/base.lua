-- What every script of liteq begins with: its place, its clock, its answer, its wake-ups.
--
-- A script is one verb of the store's contract, or a slice of one. Redis runs it alone, and
-- does not roll it back: so each one looks at all that it needs before its first write, and
-- never calls anything that may fail after it. Bodies, results and errors are bytes that no
-- script looks into (`cjson` would change large numbers and empty lists).
--
-- KEYS[1]   the prefix of all keys, "{liteq:<namespace>}:": one hash slot in a cluster
-- ARGV[1]   the time, Unix seconds ("": this server's, which is what production uses)
-- ARGV[2]   the steady time that heartbeats are counted in ("": this server's)
-- ARGV[3]   the call's own word: a call that is made again under it changes nothing more
-- ARGV[4…]  what the script's head says
--
-- The answer is one string: the lengths of its fields, "-" for none, a line feed, the fields.
--
-- Keys (below the prefix):
--   meta                hash     version, id (of this store), shift (see `beat.lua`)
--   seq                 integer  the number of the message that came last
--   m:<id>              hash     a message; its fields are listed in `ends.lua`
--   queues              set      names of the queues that hold messages, or did (see `maintain.lua`)
--   paused              set      names of queues that nothing is claimed from
--   idle:<queue>        set      ids of workers to ring for this queue (see `calling.lua`)
--   once:<word>         string   the answer of a call, for its repetition; expires
-- Channels (below the prefix):
--   work:<worker>       "" for new work, "orders" for a run that is to be ended, "mail" for
--                       letters or a listener; or a lease (see `enqueue_one.lua`)
--   workers             "hello" when a worker has come
--   mail:<name>         ids of messages that settled, one a line
--   beats               something changed for who fires schedules

local P = KEYS[1]
local call = redis.call

local NOW, NOW_TEXT, STEADY
do
  local at
  if ARGV[1] == '' or ARGV[2] == '' then
    local time = call('TIME')
    at = string.format('%s.%06d', time[1], time[2])
  end
  NOW_TEXT = ARGV[1] ~= '' and ARGV[1] or at
  NOW = tonumber(NOW_TEXT)
  STEADY = tonumber(ARGV[2] ~= '' and ARGV[2] or at)
end

local place = 3
local function take()
  place = place + 1
  return ARGV[place]
end

local function given(text)  -- nil for an argument that was left empty
  if text ~= '' then return text end
end

local function number_of(text)  -- nil for what another program wrote, and is no number
  local found = tonumber(text or nil)
  if found == found then return found end
end

local sizes, data, filled = {}, {}, 0
local function put(value)
  filled = filled + 1
  if value == nil or value == false then
    sizes[filled], data[filled] = '-', ''
  else
    if type(value) == 'number' then value = string.format('%.17g', value) end
    sizes[filled], data[filled] = text_of[#value], value
  end
end

local function each_thousand(command, key, list)  -- `unpack` has a limit
  for i = 1, #list, 1000 do
    call(command, key, unpack(list, i, math.min(i + 999, #list)))
  end
end

local function answer()
  return table.concat(sizes, ' ') .. '\n' .. table.concat(data)
end

-- What a message is from the start has one field, g: priority, retries, and the options, the
-- queue's length and the queue, the task. Most messages of a call have the same. What is not
-- of this form, another program wrote: it stands for nothing, and is no end of a script.
local givens = {}
local DAMAGED = {p = 0, y = '0', o = ',,1,0,,', q = '', t = '', damaged = true}
local function given_of(text)
  local found = givens[text or '']
  if not found then
    local p, y, o, size, at = string.match(text or '',
      '^(%-?%d+),(%-?%d+),([%deinfa.+-]*,[%deinfa.+-]*,[01],[01],%d*,[%deinfa.+-]*),(%d+),()')
    local behind = at and at + tonumber(size)
    if not behind or behind > #text + 1 or #p > 3 or #y > 10 then return DAMAGED end
    found = {p = tonumber(p), y = y, o = o, q = string.sub(text, at, behind - 1),
      t = string.sub(text, behind)}
    givens[text] = found
  end
  return found
end

-- A lease has one field, k: token, worker, deliveries, when it started; "0" for the token of
-- one that was given up, "-" for what is not known. Returns nothing if there never was one.
local function lease_of(text)
  if not text then return nil, nil, 0, nil end
  local token, worker, deliveries, started = string.match(text, '^(%S+) (%S+) (%-?%d+) (%S+)$')
  if not token then return nil, nil, 0, nil end
  if worker == '-' then worker = nil end
  if started == '-' then started = nil end
  return token, worker, tonumber(deliveries), started
end

local function put_message(m)  -- eight fields, of which most messages have but three
  put(m.id) put(m.g) put(m.b) put(m.u) put(m.x) put(m.L) put(m.U) put(m.e)
end

-- The repetition of a call whose answer was lost gets that answer.
local function once()
  return call('GET', P .. 'once:' .. ARGV[3])
end

local function answer_once()
  local said = answer()
  call('SET', P .. 'once:' .. ARGV[3], said, 'EX', 120)
  return said
end

-- A script whose first write takes no memory may go on writing when there is none left: what
-- is held is to be settled and kept alive even when nothing new can be stored.
local function write_when_full()
  call('PERSIST', P .. 'seq')
end

local fresh, told = {}, {}
local function woken(queue)  -- a message of this queue became claimable
  fresh[queue] = (fresh[queue] or 0) + 1
end

local function tell(names, id)  -- whoever waits for the message is to hear that it ended
  for name in string.gmatch(names, '[^%s+]+') do
    local ids = told[name]
    if ids then ids[#ids + 1] = id else told[name] = {id} end
  end
end

-- Ring for as many idle workers as there is work. One that does not listen is not counted.
local function ring()
  for queue, wanted in pairs(fresh) do
    local calls = math.min(wanted, 100)
    while calls > 0 do
      local worker, idle = next_idle(queue)
      if not worker then break end
      if idle then call('HSET', P .. 'worker:' .. worker, 'idle', idle) end
      if call('PUBLISH', P .. 'work:' .. worker, '') > 0 then calls = calls - 1 end
    end
  end
  for name, ids in pairs(told) do
    call('PUBLISH', P .. 'mail:' .. name, table.concat(ids, '\n'))
  end
end
