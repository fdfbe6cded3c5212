-- Broker.enqueue: store messages and edges in one step.
-- Needs: form calling base | ends limiting length enter
-- ARGV[4]   the number of queues that have a limit; for each: its name, how many may wait
--      then a graph (see enter.lua)
-- Answers   "" or: U, and for each that is not stored because of its unique key: its id, the
--           id of what stands for it; or why nothing is stored: A, id, the task that is there;
--           E or O, source, target; Q, queue, its limit; D, P or T, task, the id of what holds
--           its key.

local limits = {}
for i = 1, tonumber(take()) do limits[i] = {take(), tonumber(take())} end
local graph = read_graph()
local whole = graph.workflow or #graph.edges > 0
local refusal, id, other = check_graph(graph, whole)

local function check_lengths()  -- whether what is new, and waits for nothing, has room
  local targets, coming = {}, {}
  for _, edge in ipairs(graph.edges) do targets[edge[2]] = true end
  for new, m in pairs(graph.new) do
    if not targets[new] and m.t ~= GATHER then coming[m.q] = (coming[m.q] or 0) + 1 end
  end
  for _, limit in ipairs(limits) do
    local queue, most = limit[1], limit[2]
    if coming[queue] and length_of(queue) + coming[queue] > most then
      return 'Q', queue, string.format('%d', most)
    end
  end
end
if not refusal and #limits > 0 then refusal, id, other = check_lengths() end

if refusal then
  put(refusal)
  put(id)
  put(other)
else
  enter(graph)
  follow()
  ring()
  if next(graph.stands) then
    put('U')
    for one, holder in pairs(graph.stands) do put(one) put(holder) end
  end
end
return answer()
