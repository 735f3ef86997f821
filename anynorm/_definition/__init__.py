"""The one definition of the three norms, in calls of the Python array API standard alone.

norms.py        the three norms: reduce, finish, apply
derivative.py   their derivative
sums.py         sums whose error does not grow with the number of terms
scaling.py      powers of two that keep rows in the range of their dtype
merging.py      statistics of two pieces of a row -> those of the whole; pairs.py: in twice the precision
"""
