-- The outbox, for the scripts that follow this text: what waits for an acknowledgement, and what is counted of it.
--
-- The outbox (a hash) has totals: how many are pending, their bytes, also by service, and the bytes of dead letters.
-- `due` (a sorted set) has the moment at which each record is looked at next. A user's `pending` messages are a sorted
-- set, the most urgent first, then the oldest; the user's mailbox (a hash) counts them by service, and says which message
-- is the newest of those that collapse, and which were replaced and are still to be withdrawn. A record (a hash):
--
--   u user, s state, p phase, a attempt, c counted, d deliveries, n next, x expires, at accepted at, l ttl in seconds
--   wr written at, en ended at, rs reason, ow receipts owed, pr priority, ty type, sz bytes, ac accepted, po newest (positions)
--   dl deadline, mx deliveries allowed, rc receipt, cl collapse, hi whether its publisher chose the id, m the body
--
-- What is to be pushed to devices shares the totals of bytes: a sending (a hash) has at accepted, x expires, sz bytes,
-- d what it is, l who is left, m the body, and s, its message's position, once it counts; a sorted set has the moment at which
-- each is looked at next.
--
-- Redis undoes nothing when a command in a script is refused. So all that belongs together is written down first, as
-- `redo` in the outbox, and then done: each command says what is from then on, not what is added. Whoever finds
-- `redo` has it done once more, by `redo.lua`, before anything else.

local call = redis.call
-- Milliseconds: for which a record is left to whoever sees to it; and, beyond what a record lives in its state, for which
-- its id is remembered.
local LEASE, SPARE = 15000, 864000000

local function open_outbox(outbox, due, now)
  local format = string.format
  local RANK, WITHIN = 2 ^ 51, 512
  local redo, totals, boxes, when = {}, {}, {}, {}
  local self = {now = now}

  local function text(number) return format('%.0f', number) end
  self.text = text

  local function put(...) redo[#redo + 1] = {...} end
  self.put = put

  local function load(names)
    local found = call('HMGET', outbox, unpack(names))
    for i, name in ipairs(names) do totals[name] = {tonumber(found[i] or 0) or 0, false} end
  end
  local redone = call('HGET', outbox, 'redo')
  self.unfinished = redone and redone ~= ''

  local function total(name)
    if not totals[name] then load({name}) end
    return totals[name]
  end

  local function add(name, number)
    local known = total(name)
    known[1], known[2] = known[1] + number, true
  end

  local function box_of(mailbox, service)
    local own = boxes[mailbox]
    if not own then
      own = {}
      boxes[mailbox] = own
    end
    if not own[service] then
      local found = call('HMGET', mailbox, 'n:' .. service, 'b:' .. service)
      own[service] = {tonumber(found[1] or 0), tonumber(found[2] or 0)}
    end
    return own[service]
  end

  -- The message that a new one takes the place of: its key and its bytes, or nothing.
  function self.replaced(mailbox, service, collapse)
    if collapse == '' then return nil end
    local own = boxes[mailbox] or {}
    local field = 'c:' .. service .. ':' .. collapse
    boxes[mailbox] = own
    if own[field] == nil then own[field] = call('HGET', mailbox, field) end
    if not own[field] then return nil end
    local size, key = string.match(own[field], '^(%d+) (.*)$')
    return key, tonumber(size)
  end

  -- Whether another has taken a message's place, though it hasn't been withdrawn yet.
  function self.superseded(mailbox, key)
    local own, field = boxes[mailbox] or {}, 'r:' .. key
    boxes[mailbox] = own
    if own[field] == nil then own[field] = call('HEXISTS', mailbox, field) == 1 end
    return own[field]
  end

  -- Why one more has no room; nothing where it has. `limits`: a mailbox's messages and bytes, and bytes of all; `spared`:
  -- the bytes of one that gives its place to it.
  function self.full(mailbox, service, size, limits, spared)
    local box = box_of(mailbox, service)
    local most, bytes, all = unpack(limits)
    if box[1] - (spared and 1 or 0) >= most or box[2] - (spared or 0) + size > bytes then return 'F:mailbox' end
    if total('bytes')[1] + size > all or total('s:' .. service)[1] + size > all / 4 then return 'F:pending' end
    return nil
  end

  local function count_in(mailbox, service, number, size)
    local box = box_of(mailbox, service)
    box[1], box[2], box[3] = box[1] + number, box[2] + size, true
  end

  local function count(service, number, size)
    add('n', number)
    add('bytes', size)
    add('s:' .. service, size)
  end

  function self.place(priority, position)
    local ms, seq = string.match(position, '^(%d+)-(%d+)$')
    return text((3 - tonumber(priority)) * RANK + tonumber(ms) * WITHIN + math.min(tonumber(seq), WITHIN - 1))
  end

  -- A message is going to be pending: it counts, and takes the place of its namesake, which is soon withdrawn.
  function self.enter(key, mailbox, service, size, collapse)
    count_in(mailbox, service, 1, size)
    count(service, 1, size)
    if collapse ~= '' then
      local older, spared = self.replaced(mailbox, service, collapse)
      if older and older ~= key then
        count_in(mailbox, service, -1, -spared)
        boxes[mailbox]['r:' .. older] = true
        put('HSET', mailbox, 'r:' .. older, '1')
        put('ZADD', due, 'LT', text(now + LEASE), older)
      end
      local field, said = 'c:' .. service .. ':' .. collapse, text(size) .. ' ' .. key
      boxes[mailbox][field] = said
      put('HSET', mailbox, field, said)
    end
  end

  function self.leave(key, pending, mailbox, service, size, collapse)
    count(service, -1, -size)
    put('ZREM', pending, key)
    if collapse ~= '' and self.superseded(mailbox, key) then
      put('HDEL', mailbox, 'r:' .. key)
    else
      count_in(mailbox, service, -1, -size)
    end
    if collapse ~= '' and self.replaced(mailbox, service, collapse) == key then
      boxes[mailbox]['c:' .. service .. ':' .. collapse] = false
      put('HDEL', mailbox, 'c:' .. service .. ':' .. collapse)
    end
  end

  function self.count_dead(size) add('dead', size) end

  -- Whether a message that is to be pushed has no room; then, it counts.
  function self.no_room(service, size, all)
    return total('bytes')[1] + size > all or total('s:' .. service)[1] + size > all / 4
  end

  function self.count_push(service, size)
    add('bytes', size)
    add('s:' .. service, size)
  end

  -- Store what is to be pushed. A plan is {its sending, all that are due, key, service, bytes, ms until it is looked at,
  -- ttl in ms, what else is known of it}, of which the first two are keys of Redis; `id` is its message's position. What was
  -- there under its key goes, in one step with the rest; where there was nothing, the body needn't be written down twice.
  function self.push(plan, id, body)
    local sending, pushes, key, service, size, wait, ttl, said = unpack(plan)
    local old = call('HMGET', sending, 'sz', 's')
    local fields = {'at', text(now), 'x', text(now + ttl), 'sz', text(size), 'd', said, 'l', '', 'm', body}
    if old[2] then
      self.count_push(service, -tonumber(old[1]))
      put('HSET', sending, unpack(fields))
    else
      call('HSET', sending, unpack(fields))
    end
    put('HSET', sending, 's', id)
    put('ZADD', pushes, text(now + wait), key)
  end

  -- Look at a record at a moment; nil: never again.
  function self.look(key, at) when[key] = at or false end

  -- Do all that; answers whether there was anything.
  function self.commit()
    for name, known in pairs(totals) do
      if known[2] then
        if known[1] > 0 then put('HSET', outbox, name, text(known[1])) else put('HDEL', outbox, name) end
      end
    end
    for mailbox, services in pairs(boxes) do
      for service, box in pairs(services) do
        if type(box) == 'table' and box[3] then
          if box[1] > 0 then
            put('HSET', mailbox, 'n:' .. service, text(box[1]), 'b:' .. service, text(box[2]))
          else
            put('HDEL', mailbox, 'n:' .. service, 'b:' .. service)
          end
        end
      end
    end
    local added, removed = {'ZADD', due}, {'ZREM', due}
    for key, at in pairs(when) do
      if at then
        added[#added + 1] = text(at)
        added[#added + 1] = key
      else
        removed[#removed + 1] = key
      end
    end
    if #added > 2 then redo[#redo + 1] = added end
    if #removed > 2 then redo[#redo + 1] = removed end
    if #redo == 0 then return false end
    call('HSET', outbox, 'redo', cmsgpack.pack(redo))
    for _, command in ipairs(redo) do call(unpack(command)) end
    call('HDEL', outbox, 'redo')
    return true
  end

  -- Store what has got into the log under an id, and has entered before. An ask is
  --   {kind, record, pending, mailbox, key, user, service, attempt, ttl in s, bytes, priority, collapse, ...}
  -- where the second to fourth are keys of Redis, and goes on, of a `new` message, with
  --   its type, deadline, deliveries, whether a receipt is wanted, whether its publisher chose the id
  -- and of a dead letter to `revive` with the keys of all dead letters, of its service's, and of what was accepted under
  -- its id.
  -- A new message's record is written apart, before the rest: its body needn't be written down twice. Its state is among the
  -- rest: until that is done there is no such record for anybody, and nothing that was counted can be taken off.
  -- What is stored late, when a call is completed, is tried again soon: its reports may have come before it.
  function self.store(ask, id, body, late)
    local kind, record, pending, mailbox, key, user, service = unpack(ask, 1, 7)
    local attempt, ttl, size, priority, collapse = unpack(ask, 8, 12)
    local expires, next = now + ttl * 1000, now + 10000
    if kind == 'new' then
      local type, deadline, deliveries, receipt, chosen = unpack(ask, 13, 17)
      call('HSET', record, 'u', user, 'p', late and 'waiting' or 'parked', 'a', 1, 'c', 0, 'd', 0,
        'n', late and text(next) or 0, 'x', text(expires), 'at', text(now), 'l', ttl, 'pr', priority, 'ty', type,
        'sz', size, 'ac', id, 'po', id, 'dl', deadline, 'mx', deliveries, 'rc', receipt, 'cl', collapse, 'hi', chosen,
        'm', body)
      put('HSET', record, 's', 'pending')
      put('ZADD', pending, self.place(priority, id), key)
      if (boxes[mailbox] or {})['r:' .. key] then next = now + LEASE elseif not late then next = expires end
      self.look(key, math.min(next, expires))
      return
    end
    if kind == 'revive' then
      local dead, own_dead, accepted = unpack(ask, 13, 15)
      local kept = call('HMGET', record, 'sz', 'ac')
      put('ZREM', dead, key)
      put('ZREM', own_dead, key)
      self.count_dead(-tonumber(kept[1]))
      put('HDEL', record, 'en', 'rs', 'wr')
      -- An operator wants this one, whatever has come in its place.
      put('HSET', record, 's', 'pending', 'd', '0', 'at', text(now), 'x', text(expires), 'cl', '')
      put('ZADD', pending, self.place(priority, kept[2]), key)
      -- Its id is remembered as long as its record, however long ago it was published.
      if accepted then put('PEXPIRE', accepted, text(ttl * 1000 + SPARE)) end
    else
      expires = tonumber(call('HGET', record, 'x')) or next
    end
    put('HSET', record, 'p', late and 'waiting' or 'sent', 'a', text(attempt), 'po', id, 'n', text(next))
    self.look(key, math.min(next, expires))
  end

  return self
end
