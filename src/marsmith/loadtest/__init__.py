"""Load on a server, and what came of it: arrivals, lanes that carry requests, a driver, and the measurement.

Latency counts from the moment at which a request was *due*, not from when the driver came round to sending it, so that
a server that stalls is charged for every request that would have come meanwhile (no coordinated omission; Gil Tene,
"How NOT to Measure Latency").
"""
