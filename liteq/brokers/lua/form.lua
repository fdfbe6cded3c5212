-- How values are written into one text: the lengths of all, "-" for none, a line feed, the values.

-- Numbers as text: Lua makes it by way of a float's digits, which takes as long as a lookup in
-- the store, and most are the same.
local text_of = setmetatable({}, {__index = function(known, number)
  local text = string.format('%d', number)
  known[number] = text
  return text
end})

local function pack(list, count)
  local lengths, texts = {}, {}
  for i = 1, count do
    local value = list[i]
    lengths[i] = value and text_of[#value] or '-'
    texts[i] = value or ''
  end
  return table.concat(lengths, ' ') .. '\n' .. table.concat(texts)
end
