import os

# Read by SciPy as it is imported; scikit-learn takes arrays of other libraries where it is set.
os.environ.setdefault("SCIPY_ARRAY_API", "1")
# Read by JAX as it makes its first array: so many devices, among which rows can be cut.
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=4".strip()
