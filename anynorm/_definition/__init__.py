"""The one definition of the three norms, in calls of the Python array API standard alone.

norms.py        the three norms: reduce, finish, apply
derivative.py   their derivative
merging.py      statistics of two pieces of a row -> those of the whole
missing.py      reduce, without the NaN that a row holds
counting.py     how many elements rows have
sums.py         sums whose error hardly grows with the number of terms
scaling.py      powers of two that keep squares in the range of the dtype
pairs.py        arithmetic in twice the precision, for merging
"""
