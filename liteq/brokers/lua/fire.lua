-- Broker.fire: move an entry to its next instant, and enqueue.
-- Needs: form calling base | ends limiting enter
-- ARGV[4]   name   [5]  the instant   [6]  the next ("" never)   [7]  revision
--      [8]  the id that is to be the entry's last ("" if nothing is enqueued)
--      [9…] a graph (see enter.lua)
-- Answers   1; or 0 if the entry is not due then any more, is paused or has another revision;
--           or what enqueue.lua answers to what cannot be

local said = once()
if said then return said end
local key = P .. 'schedule:' .. take()
local due, following, revision, last = take(), given(take()), take(), given(take())
local graph = read_graph()
local found = call('HMGET', key, 'due', 'paused', 'revision')
if not found[1] or tonumber(found[1]) ~= tonumber(due) or found[2] == '1'
    or found[3] ~= revision then
  put('0')
  return answer()
end
local whole = #graph.messages > 1
local refusal, id, other = check_graph(graph, whole)
local alive = refusal and string.find('DPT', refusal, 1, true) and not graph.new[other]
if alive or (next(graph.stands) and not next(graph.renewed)) then
  last = nil  -- its call of another instant is alive
elseif refusal then
  put(refusal)
  put(id)
  put(other)
  return answer()
end
if last then
  call('HINCRBY', key, 'total', 1)
  call('HSET', key, 'last_due', due, 'last_run', NOW_TEXT, 'last_id', last)
  enter(graph)
  follow()
end
if following then call('HSET', key, 'due', following) else call('HDEL', key, 'due') end
ring()
put('1')
return answer_once()
