-- A slice of a move: when rates will have saved up all their burst. Of two times the later
-- one counts.
-- Needs: form base | ends limiting
-- ARGV[4…]  for each: the bucket, that time, when it was used last

for i = 4, #ARGV, 3 do
  local free_at = tonumber(ARGV[i + 1])
  local known = tonumber(string.match(call('GET', P .. 'bucket:' .. ARGV[i]) or '0', '^%S+'))
  if free_at > NOW and free_at > known then
    put_free_at(ARGV[i], free_at, tonumber(ARGV[i + 2]))
  end
end
return answer()
