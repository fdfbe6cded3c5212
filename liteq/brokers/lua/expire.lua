-- For Broker.enqueue, where a queue has no room: end a slice of what has expired.
-- Needs: form calling base | ends limiting late
-- ARGV[4]   how many at most
-- Answers   1 if there was any

put(end_late(tonumber(ARGV[4])) > 0 and '1' or '0')
ring()
return answer()
