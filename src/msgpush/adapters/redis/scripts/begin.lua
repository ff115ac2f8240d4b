-- Give the log a new name, if it still has the one that the caller has seen: of several callers, one does.
--
-- KEYS[1]  the log's head, a hash: epoch, number, ms, seq, tag, previous, cut
-- KEYS[2]  the log, a stream
-- ARGV     the name seen ("" for none), the new name, the number of the caller's epoch, its name, the last position
--          that both have, a tag, now in milliseconds or 0, the log's length
--
-- Answers 1 where the name was given, else 0.

local epoch, name, number, previous, cut, tag, now, log_length = unpack(ARGV)
if (redis.call('HGET', KEYS[1], 'epoch') or '') ~= epoch then return 0 end

local head = redis.call('HMGET', KEYS[1], 'ms', 'seq', 'tag', 'number')
number = math.max(tonumber(number), tonumber(head[4] or 0)) + 1
local ms, seq, last_tag = tonumber(head[1] or 0), tonumber(head[2] or 0), head[3] or '--------'
local newest = redis.call('XREVRANGE', KEYS[2], '+', '-', 'COUNT', 1)[1]
if newest then
  -- The head may have gone while the log is still there.
  local last_ms, last_seq = string.match(newest[1], '(%d+)-(%d+)')
  last_ms, last_seq = tonumber(last_ms), tonumber(last_seq)
  if last_ms > ms or (last_ms == ms and last_seq > seq) then
    ms, seq = last_ms, last_seq
    for i = 1, #newest[2], 2 do
      if newest[2][i] == 'm' then last_tag = string.sub(newest[2][i + 1], 1, 8) end
    end
  end
end
local link = string.format('%.0f-%.0f-%s', ms, seq, last_tag)

now = tonumber(now)
if now == 0 then
  local time = redis.call('TIME')
  now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
end
if now > ms then ms, seq = now, 0 else seq = seq + 1 end
local stored = tag .. ' 60 epoch ' .. name .. ' \n{}'
redis.call('XADD', KEYS[2], 'MAXLEN', '~', log_length, string.format('%.0f-%.0f', ms, seq), 'p', link, 'm', stored)
local new = {'epoch', name, 'number', number, 'previous', previous, 'cut', cut, 'ms', ms, 'seq', seq, 'tag', tag}
redis.call('HSET', KEYS[1], unpack(new))
return 1
