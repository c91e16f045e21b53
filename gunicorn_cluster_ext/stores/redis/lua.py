"""Operations that take several commands, in Lua. Each has one key, so that it works in a
Cluster."""

from __future__ import annotations

from hashlib import sha1
from typing import NamedTuple


class LuaScript(NamedTuple):
    """A script, and the digest by which a server that has seen it knows it."""

    text: str
    digest: str


def _script(text: str) -> LuaScript:
    return LuaScript(text, sha1(text.encode(), usedforsecurity=False).hexdigest())


#: Arguments: key; number, milliseconds.
INCR = _script("""
local is_new = redis.call('EXISTS', KEYS[1]) == 0
local sum = redis.call('INCRBY', KEYS[1], ARGV[1])
if is_new then redis.call('PEXPIRE', KEYS[1], ARGV[2]) end
return sum
""")

#: Arguments: key; value.
COMPARE_AND_DELETE = _script("""
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('DEL', KEYS[1])
""")

#: Arguments: key.
PERSIST = _script("""
redis.call('PERSIST', KEYS[1])
return redis.call('EXISTS', KEYS[1])
""")

#: Arguments: key; milliseconds or 0 for ever, whether it must exist, the number of fields to
#: remove, their names, pairs of name and data to put.
CHANGE = _script("""
local kind = redis.call('TYPE', KEYS[1]).ok
if kind == 'none' and ARGV[2] == '1' then return 0 end
if kind ~= 'none' and kind ~= 'hash' then
    return redis.error_reply('WRONGTYPE the key holds a value, not a field map')
end
local removed = tonumber(ARGV[3])
for i = 4, 3 + removed do redis.call('HDEL', KEYS[1], ARGV[i]) end
for i = 4 + removed, #ARGV, 1000 do
    redis.call('HSET', KEYS[1], unpack(ARGV, i, math.min(i + 999, #ARGV)))
end
if ARGV[1] == '0' then
    redis.call('PERSIST', KEYS[1])
else
    redis.call('PEXPIRE', KEYS[1], ARGV[1])
end
return 1
""")
