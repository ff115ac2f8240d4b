-- Give out what is due in the outbox, for some time: until then it is left to the caller.
--
-- KEYS  the outbox, what is due there, all dead letters
-- ARGV  now or 0, how many at most, ms for which they are left to the caller, bytes that dead letters may have
--
-- Answers now, how many are pending in all, by how many bytes dead letters are too many, how many messages are due, and
-- their keys; then, where there are too many, the keys of the oldest dead letters.

local call = redis.call
local now, most, lease, room = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
if now == 0 then
  local time = call('TIME')
  now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
end
local totals = call('HMGET', KEYS[1], 'n', 'dead')
local due = call('ZRANGEBYSCORE', KEYS[2], '-inf', string.format('%.0f', now), 'LIMIT', 0, most)
local surplus = tonumber(totals[2] or 0) - room
local answer = {string.format('%.0f', now), totals[1] or '0', string.format('%.0f', surplus), #due}
if #due > 0 then
  -- A full Redis refuses what takes room, unless the script has written something that takes none.
  call('PERSIST', KEYS[1])
  local left = {}
  for _, key in ipairs(due) do
    answer[#answer + 1] = key
    left[#left + 1] = string.format('%.0f', now + lease)
    left[#left + 1] = key
  end
  call('ZADD', KEYS[2], 'XX', unpack(left))
end
if surplus > 0 and #due < most then
  for _, key in ipairs(call('ZRANGE', KEYS[3], 0, 15)) do answer[#answer + 1] = key end
end
return answer
