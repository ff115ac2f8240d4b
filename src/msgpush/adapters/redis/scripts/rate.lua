-- Take tokens from buckets, each of which is kept as the moment at which it is full again.
--
-- KEYS  the buckets (strings), one for each that asks
-- ARGV  tokens that come in a second, and that stay at most; then for each bucket how many are wanted
--
-- Answers for each bucket how many were granted, and what is left, as text.

local call = redis.call
local rate, burst = tonumber(ARGV[1]), tonumber(ARGV[2])
local time = call('TIME')
local now = tonumber(time[1]) * 1000 + tonumber(time[2]) / 1000
local answer = {}
for i, key in ipairs(KEYS) do
  local wanted = tonumber(ARGV[i + 2])
  local kept = tonumber(call('GET', key) or 0)
  -- The clock may step back: a bucket is never emptier than empty.
  local full_at = math.min(math.max(now, kept), now + burst / rate * 1000)
  local there = burst - (full_at - now) * rate / 1000
  -- A hair more than there is, or rounding would refuse the token that has just come in.
  local granted = math.min(wanted, math.max(0, math.floor(there + 1e-6)))
  if granted > 0 or full_at < kept then
    full_at = full_at + granted / rate * 1000
    call('SET', key, string.format('%.3f', full_at), 'PX', math.max(1, math.ceil(full_at - now)))
  end
  answer[#answer + 1] = granted
  answer[#answer + 1] = tostring(there - granted)
end
return answer
