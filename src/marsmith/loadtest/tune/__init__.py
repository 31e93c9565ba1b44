"""Finding workers, threads and batching that hold a latency limit.

How long a batch of each size takes is measured first, with as many workers at once as the set-up has. A simulation of
TorchServe's batching then predicts every set-up, and only the most promising ones are tried on a live server, those
that do well for longer (successive halving; Jamieson and Talwalkar, "Non-stochastic Best Arm Identification", 2016).
"""
