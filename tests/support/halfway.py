"""Scripts that Redis stops halfway, or that are watched as they run."""

from msgpush.adapters.redis.link import Script

STOPPED = "stopped by the test"
UNNAMED = "a key that is not in KEYS"
WRITES = ("HSET", "HDEL", "XADD", "SET", "DEL", "PEXPIRE", "PERSIST", "ZADD", "ZREM")


def stopped_at(text: str, number: int) -> Script:
    """A script that is refused its write of this number, counted from one."""
    writes = ", ".join(f"{name} = true" for name in WRITES)
    return _calling(
        f"""
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
""",
        text,
    )


def keyed(text: str) -> Script:
    """A script that fails where it touches a key which it wasn't told of, as a Cluster wants it."""
    return _calling(
        f"""
local given = {{}}
for _, name in ipairs(KEYS) do given[name] = true end
local function check(name, ...)
  if name == 'TIME' then return end
  for i = 1, (name == 'MGET' or name == 'DEL') and select('#', ...) or 1 do
    local key = select(i, ...)
    if not given[key] then error({{err = 'ERR {UNNAMED}: ' .. name .. ' ' .. key}}) end
  end
end
local function call(...) check(...) return redis.call(...) end
local function try(...) check(...) return redis.pcall(...) end
""",
        text,
    )


def _calling(functions: str, text: str) -> Script:
    """A script that asks Redis by these functions, `call` and `try`."""
    assert "redis.call" in text
    body = text.replace("call, format, sub = redis.call, string", "format, sub = string")
    for line in ("local call = redis.call", "local try = redis.pcall"):
        body = body.replace(line, "")
    return Script(functions + body.replace("redis.call(", "call("))
