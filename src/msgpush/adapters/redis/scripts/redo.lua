-- Do once more what was written down in the outbox, after a call that was stopped halfway: see `outbox.lua`.
--
-- KEYS  the outbox, then all that the commands name
-- ARGV  what was written down there, as the caller has seen it
--
-- Answers 1 where that was done, 0 where it was done before.

local call = redis.call
local redo = call('HGET', KEYS[1], 'redo')
if redo ~= ARGV[1] then return 0 end
-- A full Redis refuses what takes room, unless the script has written something that takes none.
call('PERSIST', KEYS[1])
for _, command in ipairs(cmsgpack.unpack(redo)) do call(unpack(command)) end
call('HDEL', KEYS[1], 'redo')
return 1
