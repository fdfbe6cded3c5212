-- What has expired before its start, and is not marked yet.

local function end_late(most)  -- a slice of it; returns how many there were
  local ids = call('ZRANGEBYSCORE', P .. 'expiry', '-inf', NOW_TEXT, 'LIMIT', 0, most)
  for _, id in ipairs(ids) do
    local m = load(id)
    call('ZREM', P .. 'expiry', id)
    if m then revoke(m, 'expired') end
  end
  follow()
  return #ids
end
