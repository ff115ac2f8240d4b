"""Scripts that Redis stops halfway."""

from msgpush.adapters.redis.link import Script

STOPPED = "stopped by the test"
WRITES = ("HSET", "HDEL", "XADD", "SET", "DEL", "PEXPIRE", "PERSIST", "ZADD", "ZREM")


def stopped_at(text: str, number: int) -> Script:
    """A script that is refused its write of this number, counted from one."""
    writes = ", ".join(f"{name} = true" for name in WRITES)
    counting = f"""
local writes, counted = {{{writes}}}, 0
local function call(name, ...)
  if writes[name] then counted = counted + 1 end
  if counted == {number} and writes[name] then error({{err = 'NOPERM {STOPPED}'}}) end
  return redis.call(name, ...)
end
local function try(name, ...)
  counted = counted + 1
  if counted == {number} then return {{err = 'NOPERM {STOPPED}'}} end
  return redis.pcall(name, ...)
end
"""
    assert "redis.call" in text
    body = text.replace("call, format, sub = redis.call, string", "format, sub = string")
    for line in ("local call = redis.call", "local try = redis.pcall"):
        body = body.replace(line, "")
    return Script(counting + body.replace("redis.call(", "call("))
