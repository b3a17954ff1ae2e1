-- Keep the newer of two ready-made rows, by event time, then created time; the same instant is overwritten.
-- KEYS entities   ARGV: for each entity how many pairs follow, then field, row, field, row, …
local at = 1
for _, key in ipairs(KEYS) do
  local last = at + 2 * tonumber(ARGV[at])
  while at < last do
    local field, row = ARGV[at + 1], ARGV[at + 2]
    local held = redis.call('HGET', key, field)
    local newer = true
    if held then
      local event, created = struct.unpack('<i8i8', held, 2)
      local new_event, new_created = struct.unpack('<i8i8', row, 2)
      newer = new_event > event or (new_event == event and new_created >= created)
    end
    if newer then redis.call('HSET', key, field, row) end
    at = at + 2
  end
  at = at + 1
end
return #KEYS
