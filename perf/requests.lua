-- For wrk: GETs over the paths of the command line in turn, and one line of figures at the end.
-- Requests are made beforehand: making one costs wrk more than sending it.
local requests, turn = {}, 0

init = function(paths)
  for place, path in ipairs(paths) do requests[place] = wrk.format("GET", path) end
end

request = function()
  turn = turn % #requests + 1
  return requests[turn]
end

done = function(summary, latency)
  local errors = summary.errors
  local failed = errors.status + errors.connect + errors.timeout
  io.write(string.format('{"requests": %d, "microseconds": %d, "bytes": %d, "failed": %d, "times": [%f, %f, %f]}\n',
    summary.requests, summary.duration, summary.bytes, failed,
    latency:percentile(50), latency:percentile(95), latency:percentile(99)))
end
