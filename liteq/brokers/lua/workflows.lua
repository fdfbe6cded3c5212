-- Broker.workflow and Broker.workflows: how many nodes are in which state.
-- Needs: form base
-- ARGV[4]   how many of the latest     [5]  or "=…" the id of one
-- Answers   for each: id, name, created, then the number of states, and for each: letter,
--           how many nodes ("y" for one that waits for another attempt, "u" for one that was
--           revoked upstream)

local ids
if ARGV[5] ~= '' then
  ids = {string.sub(ARGV[5], 2)}
else
  ids = call('ZREVRANGE', P .. 'workflows', 0, tonumber(ARGV[4]) - 1)
end
for _, id in ipairs(ids) do
  local found = call('HMGET', P .. 'workflow:' .. id, 'name', 'created')
  if found[1] then
    local counts, kinds = {}, {}
    for _, node in ipairs(call('ZRANGE', P .. 'nodes:' .. id, 0, -1)) do
      local m = call('HMGET', P .. 'm:' .. node, 's', 'r', 'g', 'V')
      if given_of(m[3]).t ~= 'liteq.gather' then
        local state = m[1]
        if m[2] and (state == 'q' or state == 'd') then state = 'y' end
        if state == 'R' and m[4] == 'upstream' then state = 'u' end
        if not counts[state] then
          counts[state] = 0
          kinds[#kinds + 1] = state
        end
        counts[state] = counts[state] + 1
      end
    end
    put(id)
    put(found[1])
    put(found[2])
    put(#kinds)
    for _, state in ipairs(kinds) do
      put(state)
      put(counts[state])
    end
  end
end
return answer()
