-- Complete a call of `append.lua` that was stopped halfway: what of it is in the log gets into its histories, and the head
-- where the log is. Each step looks first whether it was done: this may be stopped, too, and begun again.
--
-- KEYS[1]  the log's head, a hash: ms, seq, tag, open
-- KEYS[2]  the log, a stream
-- then for each distinct channel its history (a stream) and its newest position (a string),
-- then for each distinct id that a publisher chose what was accepted under it (a string)
-- then, if acknowledgements are asked for, the outbox, what is due there, and the keys of those records, users and services
--
-- ARGV[1]  MessagePack: {ms and seq of the head, and what `open` begins with, as the caller has seen them, now or 0,
--          how many keys the outbox has, what is to be pushed of them: {position, plan: see `outbox.lua`}, entries}, each entry
--          {its position, ms, seq, tag, ttl in ms, number of its id or 0, what was accepted, {numbers of its channels},
--          what it asks for, if it does: see `outbox.lua`}
--
-- Answers how many entries there were, then the numbers of channels whose history is no stream; or nothing where the head
-- isn't as it was seen.

local DAY = 86400000
local ID_LIFETIME = 600000

local call = redis.call
local ms, seq, open, now, outbox_keys, pushes, entries = unpack(cmsgpack.unpack(ARGV[1]))

local head = call('HMGET', KEYS[1], 'ms', 'seq', 'open')
local found_open = head[3] or ''
if tonumber(head[1] or 0) ~= ms or tonumber(head[2] or 0) ~= seq then return {} end
if string.sub(found_open, 1, #open) ~= open or (open == '' and found_open ~= '') then return {} end

if now == 0 then
  local time = call('TIME')
  now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
end

local function later(one, other)
  local one_ms, one_seq = string.match(one, '(%d+)-(%d+)')
  local other_ms, other_seq = string.match(other, '(%d+)-(%d+)')
  one_ms, other_ms = tonumber(one_ms), tonumber(other_ms)
  return one_ms > other_ms or (one_ms == other_ms and tonumber(one_seq) > tonumber(other_seq))
end

-- A full Redis refuses what takes room, unless the script has written something that takes none.
call('PERSIST', KEYS[1])

local channels = 0
for _, entry in ipairs(entries) do
  for _, c in ipairs(entry[8]) do if c > channels then channels = c end end
end
local answer, broken, asks, messages = {0}, {}, {}, {}
for c = 1, channels do
  local kind = call('TYPE', KEYS[2 * c + 1]).ok
  if kind ~= 'stream' and kind ~= 'none' then
    broken[c] = true
    answer[#answer + 1] = c
  end
end

for _, entry in ipairs(entries) do
  local id, ttl, key = entry[1], entry[5], entry[6]
  local found, message = call('XRANGE', KEYS[2], id, id)[1], nil
  for i = 1, found and #found[2] or 0, 2 do
    if found[2][i] == 'm' then message = found[2][i + 1] end
  end
  if message then
    answer[1] = answer[1] + 1
    messages[id] = message
    for _, c in ipairs(entry[8]) do
      local history, last = KEYS[2 * c + 1], KEYS[2 * c + 2]
      -- Not by GET, which a key of another type would stop.
      local known = call('MGET', last)[1] or string.format('%.0f-0', math.max(0, now - DAY))
      local left = ttl
      if not broken[c] then
        local newest = call('XREVRANGE', history, '+', '-', 'COUNT', 1)[1]
        if not newest or later(id, newest[1]) then
          local prev = newest and later(newest[1], known) and newest[1] or known
          call('XADD', history, id, 'p', prev, 'm', message)
        end
        left = call('PTTL', history)
        if left < ttl then
          left = ttl
          call('PEXPIRE', history, left)
        end
      end
      if later(id, known) then call('SET', last, id, 'PX', math.max(DAY, left)) end
    end
    if key > 0 and call('EXISTS', KEYS[2 + 2 * channels + key]) == 0 then
      local lifetime = entry[9] and ttl + SPARE or ID_LIFETIME
      call('SET', KEYS[2 + 2 * channels + key], entry[7], 'PX', lifetime)
    end
    if entry[9] then asks[#asks + 1] = {entry[9], id, message} end
    if entry[2] > ms or (entry[2] == ms and entry[3] > seq) then
      ms, seq = entry[2], entry[3]
      call('HSET', KEYS[1], 'ms', ms, 'seq', seq, 'tag', entry[4])
    end
  end
end

if #asks > 0 or #pushes > 0 then
  local first = #KEYS - outbox_keys + 1
  local outbox = open_outbox(KEYS[first], KEYS[first + 1], now)
  if outbox.unfinished then return {} end
  for _, each in ipairs(asks) do
    local ask, id, stored = unpack(each)
    local kind, record, _, mailbox, key, _, service, attempt, _, size, _, collapse = unpack(ask, 1, 12)
    local state, newest, kept = unpack(call('HMGET', record, 's', 'a', 'sz'))
    local missing = not state
    if kind == 'again' then
      missing = state == 'pending' and tonumber(newest) < attempt
    elseif kind == 'revive' then
      missing = state == 'dead' and tonumber(newest) < attempt
      size = tonumber(kept or 0)
    end
    if missing then
      if kind ~= 'again' then outbox.enter(key, mailbox, service, size, collapse) end
      outbox.store(ask, id, string.sub(stored, string.find(stored, '\n', 1, true) + 1), true)
    end
  end
  for _, each in ipairs(pushes) do
    local id, plan = unpack(each)
    local stored = messages[id]
    if stored and call('HGET', plan[1], 's') ~= id then
      outbox.count_push(plan[4], plan[5])
      outbox.push(plan, id, string.sub(stored, string.find(stored, '\n', 1, true) + 1))
    end
  end
  outbox.commit()
end
call('HSET', KEYS[1], 'open', '')
return answer
