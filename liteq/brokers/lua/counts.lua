-- Broker.counts: unfinished messages by queue and state.
-- Needs: form base | length counting
-- Answers   for each queue with any: its name; waiting, queued, delayed, running, parked,
--           limited

for queue, numbers in pairs(count_all()) do
  put(queue)
  for _, number in ipairs(numbers) do put(number) end
end
return answer()
