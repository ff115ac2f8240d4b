-- Give out what is to be pushed, for some time: until then it is left to the caller.
--
-- KEYS  all that is to be pushed
-- ARGV  now or 0, how many at most, ms for which they are left to the caller, ms for which they have been due
--
-- Answers now, and their keys.

local call = redis.call
local now, most, lease, late = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
if now == 0 then
  local time = call('TIME')
  now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
end
local due = call('ZRANGEBYSCORE', KEYS[1], '-inf', string.format('%.0f', now - late), 'LIMIT', 0, most)
if #due > 0 then
  -- A full Redis refuses what takes room, unless the script has written something that takes none.
  call('PERSIST', KEYS[1])
  local left = {}
  for _, key in ipairs(due) do
    left[#left + 1] = string.format('%.0f', now + lease)
    left[#left + 1] = key
  end
  call('ZADD', KEYS[1], 'XX', unpack(left))
end
return {string.format('%.0f', now), unpack(due)}
