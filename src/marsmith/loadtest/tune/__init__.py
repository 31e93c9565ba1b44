"""Tuning: find the workers, threads and batching that meet a latency limit.

First, the time of a batch of each size is measured, with as many workers in parallel as the set-up has. Then a
simulation of TorchServe's batching predicts the rate of every set-up. Only the most promising set-ups are tried on a
live server, and the better ones for longer (successive halving; Jamieson and Talwalkar, "Non-stochastic Best Arm
Identification", 2016).
"""
