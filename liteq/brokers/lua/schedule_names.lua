-- Broker.schedule_names
-- Needs: form base
-- Answers   each name

for _, name in ipairs(call('SMEMBERS', P .. 'schedules')) do put(name) end
return answer()
