"""The check, checked: faults are put into a small migration on purpose, and the comparison must notice each of them.

How many of how many it noticed is what a run reports as its sensitivity. Beside the run, in a process of its own.
"""
