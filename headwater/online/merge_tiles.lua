-- Merge the tiles of entities' tables into what they hold. A record replaces the one of the same tile and slot unless
-- it has folded fewer events (its mark is older), so replays and retries in any order end in the same bytes.
-- KEYS entities   ARGV: record size (0: variable), tiles to keep behind the newest, a slot (or -1) whose records are
-- replaced whatever they have folded, then for each entity how many pairs follow, and field, blob, field, blob, …
-- Records lie newest first, so what is held is copied in runs around the few that are new.
local size, keep, replaced = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])

-- The record at a place in a blob: its tile and slot as one number, events folded, where the next begins.
local function record(blob, at)
  if at > #blob then return end
  local tile, slot, count = struct.unpack('<i4BI4', blob, at)
  local length = size
  if size == 0 then length = 37 + struct.unpack('<I4', blob, at + 33) end
  return tile * 2 + slot, count, at + length
end

-- Where the records end that are not older than the oldest to keep.
local function kept(blob, oldest)
  local at = 10
  if size > 0 then
    at = #blob + 1
    while at > 10 and record(blob, at - size) < oldest do at = at - size end
    return at
  end
  local place, _, next = record(blob, at)
  while place and place >= oldest do
    at = next
    place, _, next = record(blob, at)
  end
  return at
end

-- Most writes are of an entity's newest tile, which takes the place of the first record while nothing else moves.
local function renewed(held, new)
  local newest, tile, slot, count = struct.unpack('<i8i4BI4', held, 2)
  local new_newest, new_tile, new_slot, new_count = struct.unpack('<i8i4BI4', new, 2)
  if tile ~= new_tile or slot ~= new_slot or new_newest < newest or (new_count < count and slot ~= replaced) then
    return
  end
  local next, new_next = 10 + size, 10 + size
  if size == 0 then
    next, new_next = 47 + struct.unpack('<I4', held, 43), 47 + struct.unpack('<I4', new, 43)
  end
  if new_next <= #new then return end
  return next > #held and new or new .. string.sub(held, next)
end

local function merged(held, new)
  local newest = math.max(struct.unpack('<i8', held, 2), (struct.unpack('<i8', new, 2)))
  local oldest = 2 * (math.floor(math.max(record(held, 10), (record(new, 10))) / 2) - keep)
  held, new = string.sub(held, 1, kept(held, oldest) - 1), string.sub(new, 1, kept(new, oldest) - 1)
  local parts = {struct.pack('<Bi8', 1, newest)}
  local from, at = 10, 10
  local place, count, next = record(held, at)
  local new_at = 10
  local new_place, new_count, new_next = record(new, new_at)
  while new_place do
    while place and place > new_place do
      at = next
      place, count, next = record(held, at)
    end
    if place ~= new_place or new_count >= count or new_place % 2 == replaced then
      parts[#parts + 1] = string.sub(held, from, at - 1)
      parts[#parts + 1] = string.sub(new, new_at, new_next - 1)
      from = place == new_place and next or at
    end
    new_at = new_next
    new_place, new_count, new_next = record(new, new_at)
  end
  parts[#parts + 1] = string.sub(held, from)
  return table.concat(parts)
end

-- What an entity is to hold in place of what it holds.
local function whole(held, new)
  return held and (renewed(held, new) or merged(held, new)) or new
end

local function merge(key, field, new)
  local held = redis.call('HGET', key, field)
  local put = whole(held, new)
  if put ~= held then redis.call('HSET', key, field, put) end
end

-- Of several pairs, each of another field, all are read and all that changes is written at once: a call costs more.
local function merge_all(key, first, n_pairs)
  local fields, changed, n = {}, {}, 0
  for pair = 1, n_pairs do fields[pair] = ARGV[first + 2 * pair - 2] end
  local all = redis.call('HMGET', key, unpack(fields))
  for pair = 1, n_pairs do
    local held = all[pair]
    local put = whole(held, ARGV[first + 2 * pair - 1])
    if put ~= held then
      changed[n + 1], changed[n + 2] = fields[pair], put
      n = n + 2
    end
  end
  if n > 0 then redis.call('HSET', key, unpack(changed)) end
end

local at = 4
for _, key in ipairs(KEYS) do
  local n_pairs = tonumber(ARGV[at])
  if n_pairs == 1 then
    merge(key, ARGV[at + 1], ARGV[at + 2])
  else
    merge_all(key, at + 1, n_pairs)
  end
  at = at + 2 * n_pairs + 1
end
return #KEYS
