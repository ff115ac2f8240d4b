-- Keep sendings as they are now, or forget them: each where it is still left to the caller.
--
-- KEYS  the outbox, all that is to be pushed, then the sendings
-- ARGV  MessagePack: {now or 0, sendings}, each {key of Redis, key, service, when it was to be given to another, who is left or
--       "" where nothing is, when it is looked at next}
--
-- Answers 1 for each that was, else 0; or nothing where another call was stopped halfway.

local now, sendings = unpack(cmsgpack.unpack(ARGV[1]))
if now == 0 then
  local time = call('TIME')
  now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
end
local outbox = open_outbox(KEYS[1], '', now)
if outbox.unfinished then return {} end
-- A full Redis refuses what takes room, unless the script has written something that takes none.
call('PERSIST', KEYS[1])
local answer, pushes = {}, KEYS[2]
for i, each in ipairs(sendings) do
  local name, key, service, turn, left, at = unpack(each)
  local mine = call('ZSCORE', pushes, key)
  if mine and tonumber(mine) == turn then
    answer[i] = 1
    if left ~= '' then
      outbox.put('HSET', name, 'l', left)
      outbox.put('ZADD', pushes, outbox.text(at), key)
    else
      local size = call('HGET', name, 'sz')
      if size then outbox.count_push(service, -tonumber(size)) end
      outbox.put('DEL', name)
      outbox.put('ZREM', pushes, key)
    end
  else
    answer[i] = 0
  end
end
outbox.commit()
return answer
