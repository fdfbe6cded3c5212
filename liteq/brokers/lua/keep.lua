-- A slice of a move: write messages as they were in another store. What is there already is
-- left as it is, so a move may be made again.
-- Needs: form calling base | ends
-- ARGV[4…]  for each: id; state (w, q, d, S, F, R, I); queue; task; priority; run_at or "";
--           expires_at or ""; the node's workflow or ""; when it is to be deleted or "";
--           1 if it is a dead letter; the number of its fields, names and values; the number
--           of edges from it, for each: letter, target, position, 1 if it is met; the number
--           of its inputs, for each: position:source, letter and value; the number of its
--           attempts, packed
-- Answers   how many were new

local count = 0
while place < #ARGV do
  local id, state, queue, task = take(), take(), take(), take()
  local priority, run_at, expires_at = tonumber(take()), given(take()), given(take())
  local workflow, delete_at, dead = given(take()), given(take()), take()
  local key = P .. 'm:' .. id
  local there = call('HMGET', key, 's', 'g')
  if queue ~= '' and is_early(there[1], there[2]) then
    delete(id, there[1])
    there = {}
  end
  local new = not there[1]
  local fields = {}
  for i = 1, 2 * tonumber(take()) do fields[i] = take() end
  local number = new and call('INCR', P .. 'seq')
  if new then
    count = count + 1
    local n = string.format('%d', number)
    call('HSET', key, 'n', n, 's', state, 'f', '1', unpack(fields))
    if queue ~= '' then call('SADD', P .. 'queues', queue) end
    local unique = not is_over(state) and call('HGET', key, 'U')
    if unique then lock(unique, id) end
    local m = {id = id, t = task, q = queue, n = n}
    if state == 'w' and queue == '' then  -- an early note
      if delete_at then call('ZADD', P .. 'expiring', delete_at, id) end
    elseif state == 'w' then
      wait(m)
    elseif state == 'q' or state == 'd' then
      state = line_up(id, queue, priority, number, state == 'd' and run_at or nil, expires_at)
      call('HSET', key, 's', state)
      if call('HEXISTS', key, 'r') == 1 then call('ZADD', P .. 'retrying', n, id) end
    else
      if task ~= GATHER then call('ZADD', P .. 'over:' .. state, n, id) end
      if delete_at then call('ZADD', P .. 'expiring', delete_at, id) end
      if dead == '1' then call('ZADD', P .. 'dead', n, id) end
    end
    if workflow then
      call('HSET', key, 'W', workflow)
      call('ZADD', P .. 'nodes:' .. workflow, number, id)
    end
  end
  for _ = 1, tonumber(take()) do
    local on, target, position, met = take(), take(), take(), take()
    if new then
      call('HSET', P .. 'e:' .. id, on .. target, position)
      call('HSET', key, 'O', '1')
      if on == string.lower(on) then
        call('HSET', P .. 'b:' .. target, id, met == '1' and '+' or on)
      end
    end
  end
  for _ = 1, tonumber(take()) do
    local field, value = take(), take()
    if new then call('HSET', P .. 'i:' .. id, field, value) end
  end
  for _ = 1, tonumber(take()) do
    local attempt = take()
    if new then call('RPUSH', P .. 'a:' .. id, attempt) end
  end
end
ring()
put(count)
return answer()
