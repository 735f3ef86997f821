"""A driver of CUDA's that records what it is asked for and starts nothing: `cuda.bindings.driver` in small."""

import types

SUCCESS, INVALID_CONTEXT, OUT_OF_MEMORY = (
    types.SimpleNamespace(name=f"CUDA_{name}") for name in ("SUCCESS", "ERROR_INVALID_CONTEXT", "ERROR_OUT_OF_MEMORY")
)
GLOBAL, RELAXED = "global", "relaxed"


class Driver:
    """The current context is `context`, the capture mode `mode`; `calls` holds every call with its arguments."""

    CUresult = types.SimpleNamespace(CUDA_SUCCESS=SUCCESS)
    CUstreamCaptureMode = types.SimpleNamespace(CU_STREAM_CAPTURE_MODE_RELAXED=RELAXED)
    CUfunction = CUdevice = int
    PRIMARY, LIBRARY, KERNEL = 100, 200, 300

    def __init__(self, context=PRIMARY, attributes=(9, 0, 2, 227 << 10)):
        self.context, self.mode, self.calls = context, GLOBAL, []
        self.version, self.failing = 13000, None  # `failing` is the name of a function
        names = (
            "COMPUTE_CAPABILITY_MAJOR",
            "COMPUTE_CAPABILITY_MINOR",
            "SINGLE_TO_DOUBLE_PRECISION_PERF_RATIO",
            "MAX_SHARED_MEMORY_PER_BLOCK_OPTIN",
        )
        read = dict(zip([f"CU_DEVICE_ATTRIBUTE_{name}" for name in names], attributes, strict=True))
        self.CUdevice_attribute = types.SimpleNamespace(**{name: name for name in read})
        self._read = read

    def __getattr__(self, name):
        if not name.startswith("cu"):
            raise AttributeError(name)

        def call(*given):
            self.calls.append((name, given))
            return self._answer(name, given)

        return call

    def named(self, name):
        """The arguments of each call of a function."""
        return [given for called, given in self.calls if called == name]

    def _failed(self, status, name):
        return (status,) if name in ("cuInit", "cuLaunchKernel") else (status, None)

    def _answer(self, name, given):
        if name == self.failing:
            return self._failed(OUT_OF_MEMORY, name)
        if name in ("cuKernelGetFunction", "cuLaunchKernel") and not self.context:
            return self._failed(INVALID_CONTEXT, name)
        if name == "cuCtxSetCurrent":
            (self.context,) = given
        if name == "cuThreadExchangeStreamCaptureMode":
            before, self.mode = self.mode, given[0]
            return SUCCESS, before
        found = {
            "cuDriverGetVersion": lambda: self.version,
            "cuDeviceGet": lambda: given[0],
            "cuDeviceGetAttribute": lambda: self._read[given[0]],
            "cuDevicePrimaryCtxRetain": lambda: self.PRIMARY + given[0],
            "cuCtxGetCurrent": lambda: self.context,
            "cuLibraryLoadData": lambda: self.LIBRARY,
            "cuLibraryGetKernel": lambda: self.KERNEL,
            "cuKernelGetFunction": lambda: self.KERNEL + 1,
        }.get(name)
        return (SUCCESS,) if found is None else (SUCCESS, found())
