-- Keep the newer of two ready-made rows, by event time, then created time; the same instant is overwritten.
-- A row of kind 1 has a created time of its own, of any other row it is the event time.
-- KEYS entities   ARGV: for each entity how many pairs follow, then field, row, field, row, …
local function times(row)
  local kind, event = struct.unpack('<Bi8', row)
  return event, kind == 1 and struct.unpack('<i8', row, 10) or event
end

local at = 1
for _, key in ipairs(KEYS) do
  local last = at + 2 * tonumber(ARGV[at])
  while at < last do
    local field, row = ARGV[at + 1], ARGV[at + 2]
    local held = redis.call('HGET', key, field)
    local newer = true
    if held then
      local event, created = times(held)
      local new_event, new_created = times(row)
      newer = new_event > event or (new_event == event and new_created >= created)
    end
    if newer then redis.call('HSET', key, field, row) end
    at = at + 2
  end
  at = at + 1
end
return #KEYS
