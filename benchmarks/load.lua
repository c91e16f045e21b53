-- The requests that wrk sends. Arguments, after "--":
--   COOKIES    pinned (each thread keeps one), alternate (on every request), none
--   CONNECTION keep-alive or close
--   then for each worker a cookie value and the process id that it leads to
-- A thread has Lua variables of its own and its connections share them. So a
-- strict alternation on each connection needs a thread for each connection.

local threads = 0

function setup(thread)
  thread:set("number", threads)
  threads = threads + 1
end

local requests = {}
local cookies
local turn

local function prepare(connection, cookie, expected)
  local headers = {["Host"] = "localhost", ["X-Expect"] = expected}
  if connection == "close" then headers["Connection"] = "close" end
  if cookie then headers["Cookie"] = "gunicorn_worker=" .. cookie end
  return wrk.format("GET", "/", headers)
end

function init(args)
  cookies = args[1]
  if cookies == "none" then
    requests[1] = prepare(args[2], nil, "anyone")
  else
    for i = 3, #args, 2 do
      requests[#requests + 1] = prepare(args[2], args[i], args[i + 1])
    end
  end
  turn = number % #requests
end

function request()
  if cookies ~= "pinned" then turn = (turn + 1) % #requests end
  return requests[turn + 1]
end

function done(summary, latency)
  local e = summary.errors
  io.write(string.format(
    '{"requests": %d, "microseconds": %d, "connect": %d, "read": %d, "write": %d,'
      .. ' "status": %d, "timeout": %d, "p50": %d, "p99": %d}\n',
    summary.requests, summary.duration, e.connect, e.read, e.write,
    e.status, e.timeout, latency:percentile(50), latency:percentile(99)))
end
