-- How a lease ends. A holder whose token is not the stored one changes nothing.

-- What the end of most successes looks at, and what all others do: each field costs.
local MORE = {'O', 'v', 'V', 'N', 'r', 'W', 'g', 'x'}

local function is_of(text, token)  -- whether a lease has this token
  return text and string.find(text, token .. ' ', 1, true) == 1
end

-- Return the message if this lease holds it; with `all`, with all that it needs to go on.
local function held(id, token, all)
  local found = redis.pcall('HMGET', P .. 'm:' .. id, 's', 'k', 'n', 'f')
  if found[1] ~= 'r' or not is_of(found[2], token) then return nil end
  local m = {id = id, s = 'r', n = tonumber(found[3]) and found[3] or '0'}
  if all or found[4] then
    local more = call('HMGET', P .. 'm:' .. id, unpack(MORE))
    for i, name in ipairs(MORE) do m[name] = more[i] end
    open_given(m)
    m.k, m.w, m.d, m.T = lease_of(found[2])
  end
  return m
end

local function wipe(m)  -- what its run reported ends with it
  if m.N then call('HDEL', P .. 'm:' .. m.id, 'N', 'M') end
end

local ATTEMPTS_KEPT = 50  -- see `values.py`

local function keep_attempt(m, name, outcome, error)
  local key = P .. 'a:' .. m.id
  local length = call('RPUSH', key, pack({outcome, error, name, m.T, NOW_TEXT}, 5))
  local surplus = length - ATTEMPTS_KEPT
  if surplus > 0 then
    call('LTRIM', key, surplus, -1)
    call('HINCRBY', P .. 'm:' .. m.id, 'A', surplus)
  end
end

local function fail_lease(m, error, children, dead, keep)
  local key = P .. 'm:' .. m.id
  give_lease_up(m)
  wipe(m)
  call('HSET', key, 's', 'F', 'Z', NOW_TEXT, 'r', error)
  if children then call('HSET', key, 'c', children) end
  if dead then
    call('HSET', key, 'X', dead)
    call('ZADD', P .. 'dead', m.n, m.id)
    keep = ''
  end
  close(m, 'F', keep)
  failed(m, error)
end

local function revoke_lease(m, reason, error)
  give_lease_up(m)
  wipe(m)
  if m.r then call('HDEL', P .. 'm:' .. m.id, 'r') end
  call('HSET', P .. 'm:' .. m.id, 's', 'R', 'Z', NOW_TEXT, 'V', reason)
  close(m, 'R', kept_for(m.o))
  revoked(m, error or revocation(reason))
end

local function requeue(m, uncounted)  -- to its old place
  give_lease_up(m)
  wipe(m)
  local lease = string.format('0 %s %d -', m.w, m.d - uncounted)
  call('ZADD', P .. 'q:' .. m.q, rank(m.p, tonumber(m.n)), m.id)
  call('SADD', P .. 'queues', m.q)
  call('HSET', P .. 'm:' .. m.id, 's', 'q', 'k', lease)
  if number_of(m.x) then call('ZADD', P .. 'expiry', m.x, m.id) end
  if m.r then call('ZADD', P .. 'retrying', m.n, m.id) end
  woken(m.q)
end
