"""Measure a network in the forms and runtimes that it can be deployed in.

Each runtime has its own process for each number of threads, so that it starts from a clean
environment, its peak memory can be measured and its threads disturb no other runtime. The processes
take turns, so that changes in the machine's load affect all of them alike.
"""
