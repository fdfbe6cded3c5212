-- Broker.enqueue: store messages and edges in one step.
-- Needs: base ends enter
-- ARGV[4…]  a graph (see enter.lua)
-- Answers   "" or: A, id, the task that is there; E, source, target. Nothing is stored then.

local graph = read_graph()
local refusal, id, other = check_graph(graph)
if refusal then
  put(refusal)
  put(id)
  put(other)
else
  enter(graph)
  follow()
  ring()
end
return answer()
