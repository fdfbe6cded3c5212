-- A slice of a move: until when unique keys are kept after the end of their calls.
-- Needs: form base | ends
-- ARGV[4…]  for each: the key, the id of the call, until
--
-- One that is alive holds its key whatever was before it; of two times the later one counts.

for i = 4, #ARGV, 3 do
  local key, id, till = ARGV[i], ARGV[i + 1], tonumber(ARGV[i + 2])
  local name = P .. 'unique:' .. key
  local known, holder = string.match(call('GET', name) or ' ', '^(%S*) (.*)$')
  local state = holder ~= id and call('HGET', P .. 'm:' .. holder, 's')
  local taken = state and not is_over(state)
  if till > NOW and till > (tonumber(known) or 0) and not taken then
    call('SET', name, string.format('%.17g %s', till, id))
    if call('EXISTS', P .. 'm:' .. id) == 0 then
      call('EXPIRE', name, math.ceil(till - NOW))  -- no message is there to be deleted with it
    end
  end
end
return answer()
