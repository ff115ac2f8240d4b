-- Write down what has changed among one instance's connections, and that the instance lives.
--
-- KEYS  the instances' leases (a sorted set), their totals, their statistics (hashes), the peak (a string),
--       this instance's connections (a hash) and their ids (a sorted set)
-- ARGV  the instance, its lease in ms, its total, its statistics, whether to begin anew, how many ids to remove, those,
--       then ids and states
--
-- Answers how many connections of the instance are written down.

local nodes, totals, stats, peak, states, ids = unpack(KEYS)
local node, lease, total, statistics, anew, removed = unpack(ARGV, 1, 6)
lease, removed = tonumber(lease), tonumber(removed)
local call = redis.call

local time = call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
for _, dead in ipairs(call('ZRANGEBYSCORE', nodes, '-inf', now)) do
  call('ZREM', nodes, dead)
  call('HDEL', totals, dead)
  call('HDEL', stats, dead)
end
call('ZADD', nodes, now + lease, node)
call('HSET', totals, node, total)
call('HSET', stats, node, statistics)
if anew == '1' then call('DEL', states, ids) end
for i = 7, 6 + removed do
  call('HDEL', states, ARGV[i])
  call('ZREM', ids, ARGV[i])
end
for i = 7 + removed, #ARGV, 2 do
  call('HSET', states, ARGV[i], ARGV[i + 1])
  call('ZADD', ids, 0, ARGV[i])
end
call('PEXPIRE', states, lease)
call('PEXPIRE', ids, lease)

local sum = 0
for _, each in ipairs(call('HVALS', totals)) do sum = sum + tonumber(each) end
if sum > tonumber(call('GET', peak) or 0) then call('SET', peak, sum) end
return call('HLEN', states)
