-- Broker.holder: who holds a unique key.
-- Needs: form base | ends
-- ARGV[4]   the key
-- Answers   the id, "-" for none

put((holder_of(ARGV[4])))
return answer()
