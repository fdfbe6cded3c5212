-- Broker.limits: what is declared and overridden.
-- Needs: form base
-- Answers   the number of tasks; for each: its name, what it declares; then for each override:
--           the name, the override (see set_limits.lua)

local declared = call('HGETALL', P .. 'limits:declared')
put(#declared / 2)
for _, text in ipairs(declared) do put(text) end
for _, text in ipairs(call('HGETALL', P .. 'limits:overrides')) do put(text) end
return answer()
