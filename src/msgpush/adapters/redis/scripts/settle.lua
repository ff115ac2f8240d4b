-- Changes in the outbox, each by itself: looked at first, made after. The same as `apply` in the domain's `outbox`, which has
-- the theory of states and phases; what follows from a change in the sets and the counts is here.
--
-- KEYS  the outbox, what is due there, all dead letters, then what the changes name
-- ARGV  MessagePack: {now or 0, ms for which a dead letter is kept, whether replicas are waited for, changes}, each change
--       {kind, record, pending, mailbox, its service's dead letters, what was accepted under its id, key, user, service,
--       attempt, age in ms, why or which receipt, factor}, of which the second to sixth are keys of Redis
--
-- Answers for each change {result, the record's fields s, at, en, d, rs, ow}; or nothing where another call was stopped halfway.

local KEPT, REMEMBERED, LONGEST = 86400000, 600000, 3600

local now, dead_ttl, waits, changes = unpack(cmsgpack.unpack(ARGV[1]))
if now == 0 then
  local time = call('TIME')
  now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
end
local outbox = open_outbox(KEYS[1], KEYS[2], now)
if outbox.unfinished then return {} end
local text, format = outbox.text, string.format

-- A full Redis refuses what takes room, unless the script has written something that takes none.
call('PERSIST', KEYS[1])

local FIELDS = {'u', 's', 'p', 'a', 'c', 'd', 'n', 'x', 'at', 'dl', 'mx', 'rc', 'cl', 'sz', 'wr', 'en', 'rs', 'ow', 'hi'}
local NUMBERS = {a = true, c = true, d = true, n = true, x = true, at = true, dl = true, sz = true, wr = true, en = true}
local records, order = {}, {}

local function load(name)
  local known = records[name]
  if known then return known end
  local found = call('HMGET', name, unpack(FIELDS))
  known = {there = found[2] and true}
  for i, field in ipairs(FIELDS) do
    local value = found[i] or nil
    if value and NUMBERS[field] then value = tonumber(value) end
    known[field] = value
  end
  known.was = known.s
  records[name] = known
  order[#order + 1] = name
  return known
end

local function finish(record, state, reason)
  record.s, record.en, record.rs = state, now, reason
  if record.rc == '1' then
    local receipt = format('%s|%s|%s|%s', state, reason or '', text(now), text(record.d))
    record.ow = record.ow and record.ow .. ',' .. receipt or receipt
  end
end

local function write(record, attempt, at, factor)
  if attempt > 0 and attempt < record.a then return end
  record.wr = record.wr or at
  local counts = attempt == record.a and attempt > record.c
  if counts then record.c, record.d = attempt, record.d + 1 end
  if counts or record.p ~= 'waiting' then
    local wait = math.max(record.dl, math.min(record.dl * 2 ^ math.max(0, record.d - 1), LONGEST))
    record.p, record.n = 'waiting', at + math.floor(wait * 1000 * factor)
  end
end

-- Changes a record; answers what became of that.
local function apply(change, record)
  local kind, user, attempt, age, reason, factor = change[1], change[8], change[10], change[11], change[12], change[13]
  local pending = record.s == 'pending'
  if not record.there then return 'unknown' end
  if kind == 'acknowledge' then
    if record.u ~= user or record.s == 'withdrawn' then return 'unknown' end
    if record.s == 'acknowledged' then return 'before' end
    finish(record, 'acknowledged')
  elseif kind == 'withdraw' then
    if record.s == 'acknowledged' then return 'acknowledged' end
    if record.s == 'withdrawn' then return 'before' end
    finish(record, 'withdrawn')
  elseif kind == 'written' and pending then
    write(record, attempt, now - age, factor)
  elseif kind == 'wake' and pending and record.c < record.a then
    if record.p == 'parked' then record.p, record.n = 'waiting', now elseif record.p == 'sent' then record.p = 'waiting' end
  elseif kind == 'park' and pending and record.p == 'sent' and record.a == attempt then
    record.p = 'parked'
  elseif kind == 'giveup' and pending and record.a == attempt then
    local due = record.p == 'parked' and record.x or math.min(record.n, record.x)
    if now < due then return 'unknown' end
    finish(record, 'dead', reason)
  elseif kind == 'told' and record.ow then
    local left = {}
    for receipt in string.gmatch(record.ow, '[^,]+') do
      if receipt ~= reason then left[#left + 1] = receipt end
    end
    local said = table.concat(left, ',')
    if said == record.ow then return 'unknown' end
    record.ow = said ~= '' and said or nil
  elseif kind == 'forget' and record.s == 'dead' then
    record.s = 'gone'
  else
    return 'unknown'
  end
  record.keys, record.changed = change, true
  return 'made'
end

local answer = {}
for i, change in ipairs(changes) do
  local record = load(change[2])
  local result = apply(change, record)
  answer[i] = {result, record.s or '', text(record.at or 0), text(record.en or 0), record.d or 0, record.rs or '', record.ow or ''}
  if record.s == 'gone' then record.there = nil end
end

-- What has changed, written once for each record.
for _, name in ipairs(order) do
  local record = records[name]
  if record.changed then
    local _, _, pending, mailbox, dead, id, key, _, service = unpack(record.keys, 1, 9)
    local was, is = record.was, record.s
    if was == 'pending' and is ~= 'pending' then
      outbox.leave(key, pending, mailbox, service, record.sz, record.cl or '')
    end
    if was == 'dead' and is ~= 'dead' then
      outbox.put('ZREM', KEYS[3], key)
      outbox.put('ZREM', dead, key)
      outbox.count_dead(-record.sz)
    elseif is == 'dead' and was ~= 'dead' then
      outbox.put('ZADD', KEYS[3], text(record.en), key)
      outbox.put('ZADD', dead, text(record.en), key)
      outbox.count_dead(record.sz)
      -- As long as its record is kept its id is remembered.
      if record.hi == '1' then outbox.put('PEXPIRE', id, text(dead_ttl + SPARE)) end
    end
    if is == 'gone' then
      outbox.put('DEL', name)
      if record.hi == '1' then outbox.put('PEXPIRE', id, text(REMEMBERED)) end
      outbox.look(key, nil)
    else
      local fields, gone = {'HSET', name, 's', is, 'p', record.p, 'c', text(record.c), 'd', text(record.d), 'n', text(record.n)}, {}
      for _, field in ipairs({'wr', 'en', 'rs', 'ow'}) do
        local value = record[field]
        if value == nil then
          gone[#gone + 1] = field
        else
          fields[#fields + 1] = field
          fields[#fields + 1] = type(value) == 'number' and text(value) or value
        end
      end
      outbox.put(unpack(fields))
      local over = is == 'acknowledged' or is == 'withdrawn'
      if over then gone[#gone + 1] = 'm' end
      if #gone > 0 then outbox.put('HDEL', name, unpack(gone)) end
      local at = nil
      if is == 'pending' then
        at = record.p == 'parked' and record.x or math.min(record.n, record.x)
      elseif is == 'dead' then
        at = record.en + dead_ttl
      end
      if record.ow then at = math.min(at or math.huge, now + LEASE) end
      outbox.look(key, at)
      if over then
        local left = text(math.max(1, record.en + KEPT - now))
        -- As long as its publisher hasn't been told it stays, and its id is remembered.
        for _, each in ipairs(record.hi == '1' and {name, id} or {name}) do
          if record.ow then outbox.put('PERSIST', each) else outbox.put('PEXPIRE', each, left) end
        end
      end
    end
  end
end
-- WAIT waits for what this connection has written: where all was done before, by another, for this.
if not outbox.commit() and waits then call('HSET', KEYS[1], 'waited', '1') end
return answer
