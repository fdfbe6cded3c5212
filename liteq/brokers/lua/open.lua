-- The first call of a connection's owner: which store is this?
-- Needs: form base
-- ARGV[4]   an id for the store, if it is new; "": it is not to become one
--      [5]  the version of these keys
-- Answers   the store's id; its version; nothing of either if there is no store

if ARGV[4] ~= '' and call('EXISTS', P .. 'meta') == 0 then
  call('HSET', P .. 'meta', 'id', ARGV[4], 'version', ARGV[5], 'created', NOW_TEXT)
end
local meta = call('HMGET', P .. 'meta', 'id', 'version')
put(meta[1])
put(meta[2])
return answer()
