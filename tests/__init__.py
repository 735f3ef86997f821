import os

# Read by SciPy as it is imported; scikit-learn takes arrays of other libraries where it is set.
os.environ.setdefault("SCIPY_ARRAY_API", "1")
