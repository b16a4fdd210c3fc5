"""Timing a network in the forms and runtimes that it can be deployed in.

Each runtime has a process of its own for each number of threads, so that it starts from a clean
environment, its peak memory is its own and its threads disturb no other. These processes take
turns, in rounds, so that they share the machine's moods.
"""
