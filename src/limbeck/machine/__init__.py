"""What a process and its machine are busy with, for metrics.

meter.py     of the run's own process and its machine, looked at once a second
usage.py     of one process of a fleet, counted call by call
gpus.py      memory and utilisation of the devices that torch uses here
"""
