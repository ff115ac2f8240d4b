-- Add what became of messages at one instance to the statistics of all: see `domain/counts.py` for how they are packed.
--
-- KEYS  the statistics (a hash): `m<minute>` and `h<hour>` (since 1970) have counts, `services` their names' numbers and
--       the hours in which they were counted last, `seen` what each instance has added last, `oldest` the first minute
--       and hour that are kept
-- ARGV  the instance, the number of this call, the time in seconds (empty: as the server has it), how many services are
--       told apart, how many buckets the latency has, the hours and minutes that are kept, the services' names, then
--       minutes and what became of messages in each; a service's number in it is its place among the names
--
-- Answers 1, or 0 where it was added before. All of it is written by one command, so it is there whole or not at all.

local key = KEYS[1]
local source, number, time, most, buckets, hours, minutes, names = unpack(ARGV, 1, 8)
number, most, buckets, hours, minutes = tonumber(number), tonumber(most), tonumber(buckets), tonumber(hours), tonumber(minutes)
local call = redis.call
local WIDTH, OTHER, FIRST = 7, 17, 18

local now = tonumber(time) or tonumber(call('TIME')[1])
local minute, hour = math.floor(now / 60), math.floor(now / 3600)
local head = call('HMGET', key, 'services', 'seen', 'oldest')
local services = head[1] and cmsgpack.unpack(head[1]) or {}
local seen = head[2] and cmsgpack.unpack(head[2]) or {}
local oldest = head[3] and cmsgpack.unpack(head[3]) or {minute - minutes, hour - hours}

-- What has had its time goes first: once a script has removed something, a full Redis lets it write.
local function forget(letter, from, to, kept)
  local gone = {}
  for place = from, math.min(to - 1, from + kept) do
    gone[#gone + 1] = letter .. string.format('%d', place)
    if #gone == 500 then
      call('HDEL', key, unpack(gone))
      gone = {}
    end
  end
  if #gone > 0 then call('HDEL', key, unpack(gone)) end
end
forget('m', oldest[1], minute - minutes, minutes)
forget('h', oldest[2], hour - hours, hours)
if seen[source] and number <= seen[source][1] then return 0 end

-- An instance that has said nothing for a day asks for nothing again.
local count, first = 0, hour
for name, last in pairs(seen) do
  if last[2] < hour - 24 then seen[name] = nil
  else
    count = count + 1
    first = math.min(first, last[2])
  end
end
while count >= 1000 and first < hour do
  for name, last in pairs(seen) do
    if last[2] <= first then
      seen[name] = nil
      count = count - 1
    end
  end
  first = first + 1
end
seen[source] = {number, hour}

local used, known = {}, 0
local function look()
  used, known = {}, 0
  for _, service in pairs(services) do
    used[service[1]] = true
    known = known + 1
  end
end
look()
local function number_of(name)
  local service = services[name]
  if not service then
    if known >= most then
      -- Of whom nothing is kept any more gives its number to another.
      for old, last in pairs(services) do
        if last[2] < hour - hours - 1 then services[old] = nil end
      end
      look()
    end
    if known >= most then return OTHER end
    local free = 0
    while used[free] do free = free + 1 end
    used[free] = true
    known = known + 1
    service = {free, hour}
    services[name] = service
  end
  service[2] = hour
  return FIRST + service[1]
end
local numbers = {}
for place, name in ipairs(cmsgpack.unpack(names)) do numbers[place] = number_of(name) end

-- The sums that change, each with the places of its rows.
local sums, places = {}, {}
local function add(field, counts)
  local sum, at = sums[field], places[field]
  if not sum then
    local kept = call('HGET', key, field)
    sum, at = kept and cmsgpack.unpack(kept) or {}, {}
    for i = #sum + 1, buckets do sum[i] = 0 end
    for i = buckets + 1, #sum, WIDTH do at[sum[i]] = i end
    sums[field], places[field] = sum, at
  end
  for i = 1, buckets do sum[i] = sum[i] + counts[i] end
  for i = buckets + 1, #counts, WIDTH do
    local id = counts[i]
    if id >= FIRST then id = numbers[id - FIRST + 1] end
    local place = at[id]
    if not place then
      place = #sum + 1
      at[id] = place
      sum[place] = id
      for k = 1, WIDTH - 1 do sum[place + k] = 0 end
    end
    for k = 1, WIDTH - 1 do sum[place + k] = sum[place + k] + counts[i + k] end
  end
end
for i = 9, #ARGV, 2 do
  local at = math.min(tonumber(ARGV[i]), minute)
  local counts = cmsgpack.unpack(ARGV[i + 1])
  local its_hour = math.floor(at / 60)
  if at >= minute - minutes then add('m' .. string.format('%d', at), counts) end
  if its_hour >= hour - hours then add('h' .. string.format('%d', its_hour), counts) end
end

local written = {
  'services', cmsgpack.pack(services),
  'seen', cmsgpack.pack(seen),
  'oldest', cmsgpack.pack({minute - minutes, hour - hours}),
}
for field, sum in pairs(sums) do
  written[#written + 1] = field
  written[#written + 1] = cmsgpack.pack(sum)
end
call('HSET', key, unpack(written))
call('PEXPIRE', key, (hours + 1) * 3600000)
return 1
