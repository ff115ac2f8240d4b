-- Append messages to the log, each by itself: checked first, written after, with nobody else in between.
--
-- Redis undoes nothing when a command in here is refused, as one may be for want of a right. So the head says that a call
-- is under way, from before the first write to after the last: whoever finds that word has `mend.lua` complete the call.
--
-- KEYS[1]  the log's head, a hash: epoch, ms, seq, tag; open: the first position of a call that is under way, its tag,
--          and ARGV[1], if a publisher chose ids
-- KEYS[2]  the log, a stream
-- then for each distinct channel its history (a stream) and its newest position (a string),
-- then for each distinct id that a publisher chose what was accepted under it (a string)
-- then, if acknowledgements are asked for, the outbox, what is due there, and the keys of those records, users and services
--
-- ARGV[1]  MessagePack: {epoch, tag, known ms, known seq, known tag, log length, history length, now or 0,
--          whether replicas are waited for, whether it has to be written even if Redis is full, pushes, 0 or what holds
--          for the outbox, messages}, each message
--          {ttl in ms, number of its id or 0, digest, timestamp, {numbers of its channels' histories}, service:id, ask}
--          The outbox: {how many keys it has, messages and bytes of a mailbox, bytes of all pending}; an ask:
--          see `outbox.lua`. A push is {which message, its service:id, plan}: likewise
-- then each message as it is stored
--
-- Answers {"ok", ms, seq of the first, the log's length before, index, what was accepted before or "", ...}, where minus the
-- number of a channel stands for one whose history is no stream, and so lacks the message, "F:..." for a message that wasn't
-- stored, and "C:<key>" for one that takes another's place; or, with nothing written,
-- {"epoch", the log's} where the log has another name, {"open"} where another call was stopped halfway, here or in the
-- outbox, and {"lost"} where the log lacks what the writer knows to be in it.

local DAY = 86400000
local ID_LIFETIME = 600000
local UNKNOWN = '--------'

local call, format, sub = redis.call, string.format, string.sub
local try = redis.pcall
local epoch, tag, known_ms, known_seq, known_tag, log_length, history_length, now, waits, urgent, pushes, limits, messages =
  unpack(cmsgpack.unpack(ARGV[1]))

-- As text, once: Redis writes each number that it is called with anew, and slowly.
log_length, history_length = format('%.0f', log_length), format('%.0f', history_length)

local head = call('HMGET', KEYS[1], 'epoch', 'ms', 'seq', 'tag', 'open')
if head[1] ~= epoch then return {'epoch', head[1] or ''} end
if head[5] and head[5] ~= '' then return {'open'} end
local ms, seq, last_tag = tonumber(head[2]), tonumber(head[3]), head[4]
local same = known_tag == UNKNOWN or last_tag == known_tag
if ms < known_ms or (ms == known_ms and (seq < known_seq or (seq == known_seq and not same))) then return {'lost'} end
local link = format('%.0f-%.0f-%s', ms, seq, last_tag)

if now == 0 then
  local time = call('TIME')
  now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
end
-- The clock may step back; positions may not.
if now > ms then ms, seq = now, -1 end
local first = seq + 1
local prefix = format('%.0f-', ms)

local channels = 0
for i = 1, #messages do
  for _, c in ipairs(messages[i][5]) do if c > channels then channels = c end end
end
local log, history, last, ids = KEYS[2], {}, {}, {}
for c = 1, channels do
  history[c] = KEYS[2 * c + 1]
  last[c] = KEYS[2 * c + 2]
end
local prev, longest, broken = {}, {}, {}
if channels > 0 then
  -- Where a channel's newest position has been forgotten, that was longer ago than it is kept.
  local forgotten = format('%.0f-0', math.max(0, now - DAY))
  local found = call('MGET', unpack(last))
  for c = 1, channels do prev[c] = found[c] or forgotten end
end
local offset = 2 + 2 * channels
local last_id, outbox, asks, again, pushing = #KEYS, nil, {}, {}, {}
for _, push in ipairs(pushes) do pushing[push[1]] = push[3] end
if limits ~= 0 then
  last_id = #KEYS - limits[1]
  outbox = open_outbox(KEYS[last_id + 1], KEYS[last_id + 2], now)
  if outbox.unfinished then return {'open'} end
end
if last_id > offset then
  ids = call('MGET', unpack(KEYS, offset + 1, last_id))
end

-- Why a message that asks for an acknowledgement isn't stored, or nothing; it counts from here on. Then its older namesake.
local function refused(ask)
  local kind, record, pending, mailbox, key, user, service, attempt, ttl, size, priority, collapse = unpack(ask, 1, 12)
  local state, newest, phase, next, expires, written, most, kept =
    unpack(call('HMGET', record, 's', 'a', 'p', 'n', 'x', 'd', 'mx', 'sz'))
  if kind == 'again' then
    if state ~= 'pending' or phase ~= 'waiting' or tonumber(newest) ~= attempt - 1 then return 'F:due' end
    if tonumber(next) > now or tonumber(expires) <= now then return 'F:due' end
    if tonumber(written) >= tonumber(most) then return 'F:due' end
    if outbox.superseded(mailbox, key) then return 'F:old' end
    if again[record] then return 'F:due' end
    again[record] = true
    return nil
  end
  local older, spared = nil, nil
  if kind == 'revive' then
    if state ~= 'dead' or tonumber(newest) ~= attempt - 1 then return 'F:due' end
    if again[record] then return 'F:due' end
    again[record] = true
    size = tonumber(kept)
  elseif state then
    return ''
  else
    older, spared = outbox.replaced(mailbox, service, collapse)
  end
  local full = outbox.full(mailbox, service, size, {limits[2], limits[3], limits[4]}, spared)
  if not full then outbox.enter(key, mailbox, service, size, collapse) end
  return full, older
end

-- A full Redis refuses what takes room, unless the script has written something that takes none.
if urgent then call('PERSIST', KEYS[1]) end

local answer, pushed = {'ok', ms, first, call('XLEN', log)}, {}
for i = 1, #messages do
  local message = messages[i]
  local ttl, key, digest = message[1], message[2], message[3]
  local before = key > 0 and ids[key]
  -- One that asks for an acknowledgement is remembered as long as its key is there.
  local marked = before and sub(before, -2) == ' a'
  if before and not marked and now - tonumber(string.match(before, '^(%d+)-', 33)) >= ID_LIFETIME then before = nil end
  local ask, push, refusal, older = message[7], pushing[i], nil, nil
  if before then
    refusal = sub(before, 1, 32) == digest and sub(before, 33, marked and -3 or -1) or ''
  elseif push and outbox.no_room(push[4], push[5], limits[4]) then
    refusal = 'F:pending'
  elseif ask then
    refusal, older = refused(ask)
  end
  if refusal then
    answer[#answer + 1] = i
    answer[#answer + 1] = refusal
  else
    if seq < first then
      call('HSET', KEYS[1], 'open', prefix .. first .. ' ' .. tag .. ' ' .. (#KEYS > offset and ARGV[1] or ''))
    end
    if older then
      answer[#answer + 1] = i
      answer[#answer + 1] = 'C:' .. older
    end
    seq = seq + 1
    local id = prefix .. seq
    local stored = ARGV[i + 1]
    call('XADD', log, 'MAXLEN', '~', log_length, id, 'p', link, 'm', stored)
    link = id .. '-' .. tag
    local mine = message[5]
    for n = 1, #mine do
      local c = mine[n]
      local done = try('XADD', history[c], 'MAXLEN', '~', history_length, id, 'p', prev[c], 'm', stored)
      if type(done) == 'table' then
        -- Somebody has put another thing there: that is no reason to stop the others, and readers are told of a gap.
        if not string.find(done.err, 'WRONGTYPE', 1, true) then return done end
        broken[c] = true
      end
      prev[c] = id
      if ttl > (longest[c] or 0) then longest[c] = ttl end
    end
    if key > 0 then
      ids[key] = digest .. id .. ' ' .. message[4]
      if ask then
        ids[key] = ids[key] .. ' a'
        call('SET', KEYS[offset + key], ids[key], 'PX', ttl + SPARE)
      else
        call('SET', KEYS[offset + key], ids[key], 'PX', ID_LIFETIME)
      end
    end
    if ask then asks[#asks + 1] = {ask, id, stored} end
    if push then
      outbox.count_push(push[4], push[5])
      pushed[#pushed + 1] = {push, id, stored}
    end
  end
end

-- A history lives until the longest ttl in it, and a channel's newest position at least as long, and a day.
for c, ttl in pairs(longest) do
  local left = broken[c] and ttl or call('PTTL', history[c])
  if broken[c] then
    answer[#answer + 1] = -c
    answer[#answer + 1] = ''
  end
  if left < ttl then
    -- A sixteenth more, so that a busy channel doesn't need this each time.
    left = ttl + math.floor(ttl / 16)
    call('PEXPIRE', history[c], left)
  end
  call('SET', last[c], prev[c], 'PX', math.max(DAY, left))
end
for _, each in ipairs(asks) do
  local ask, id, stored = unpack(each)
  outbox.store(ask, id, sub(stored, string.find(stored, '\n', 1, true) + 1))
end
for _, each in ipairs(pushed) do
  local push, id, stored = unpack(each)
  outbox.push(push, id, sub(stored, string.find(stored, '\n', 1, true) + 1))
end
if outbox then outbox.commit() end
if seq >= first then
  call('HSET', KEYS[1], 'ms', ms, 'seq', seq, 'tag', tag, 'open', '')
elseif waits then
  -- WAIT waits for what this connection has written: where all was there already, written by another, for this.
  call('HSET', KEYS[1], 'tag', last_tag)
end
return answer
