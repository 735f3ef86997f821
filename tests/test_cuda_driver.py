"""What the CUDA driver is asked for, by one that records: contexts, streams, capture, and what must be installed."""

import sys
import threading
import types
from unittest import mock

import pytest

from anynorm._kernels.cuda import compile as compiling
from anynorm._kernels.cuda import device
from anynorm._kernels.cuda.task import NOTHING, Choice, Task
from tests.recorded import GLOBAL, RELAXED, Driver

CHOICE = Choice("float32", 2, NOTHING, NOTHING, False, True, False)


@pytest.fixture
def driver(monkeypatch):
    """The driver of a process in which nothing has run yet."""
    found = Driver()
    bindings = types.SimpleNamespace(driver=found, __path__=[])
    for name, module in {"cuda.bindings": bindings, "cuda.bindings.driver": found}.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(device, "_kernels", {})
    monkeypatch.setattr(device, "compiled", lambda *given: b"code")
    cached = (device.device, device.unfit, device._context)
    for function in cached:
        function.cache_clear()
    yield found
    for function in cached:
        function.cache_clear()


def start(loaded, stream=0):
    device.launch(loaded, (3, 2), 128, Task(), stream)


def test_a_kernel_is_loaded_once_for_each_device(driver):
    loaded = [device.kernel(CHOICE, 128, ordinal) for ordinal in (0, 1, 0)]
    assert [one.ordinal for one in loaded] == [0, 1, 0]
    assert loaded[0] is loaded[2]
    assert len(driver.named("cuLibraryLoadData")) == 2
    device.kernel(CHOICE, 256, 0)
    assert len(driver.named("cuLibraryLoadData")) == 3


def test_a_kernel_is_started(driver):
    loaded = device.kernel(CHOICE, 128, 0)
    start(loaded, stream=77)
    ((function, *how, argument, extra),) = driver.named("cuLaunchKernel")
    assert (function, how, extra) == (Driver.KERNEL, [3, 2, 1, 128, 1, 1, 0, 77], 0)
    assert argument


def test_stream_0_is_the_legacy_one(driver):
    loaded = device.kernel(CHOICE, 128, 0)
    for stream in (0, 1, 2, 77):
        start(loaded, stream)
    assert [given[8] for given in driver.named("cuLaunchKernel")] == [1, 1, 2, 77]


def test_a_thread_without_a_context_gets_the_primary_one(driver):
    loaded = device.kernel(CHOICE, 128, 1)
    assert not driver.named("cuCtxSetCurrent")
    driver.context = 0
    start(loaded)
    start(loaded)
    assert driver.named("cuCtxSetCurrent") == [(Driver.PRIMARY + 1,)]
    assert len(driver.named("cuLaunchKernel")) == 3
    driver.context = 0
    start(loaded)
    assert len(driver.named("cuDevicePrimaryCtxRetain")) == 1


def test_a_kernel_is_loaded_in_a_thread_without_a_context(driver):
    driver.context = 0
    start(device.kernel(CHOICE, 128, 0))
    assert driver.context == Driver.PRIMARY
    assert len(driver.named("cuLaunchKernel")) == 1


def test_other_failures_are_raised(driver):
    loaded = device.kernel(CHOICE, 128, 0)
    driver.failing = "cuLaunchKernel"
    with pytest.raises(RuntimeError, match="the CUDA driver failed: CUDA_ERROR_OUT_OF_MEMORY"):
        start(loaded)
    assert len(driver.named("cuLaunchKernel")) == 1


def test_kernels_are_loaded_beside_a_capture(driver):
    modes = {}
    answer = Driver._answer

    def watched(self, name, given):
        modes[name] = self.mode
        return answer(self, name, given)

    with mock.patch.object(Driver, "_answer", watched):
        start(device.kernel(CHOICE, 128, 0))
    assert {modes[name] for name in ("cuLibraryLoadData", "cuLibraryGetKernel", "cuKernelGetFunction")} == {RELAXED}
    assert modes["cuLaunchKernel"] == driver.mode == GLOBAL


def test_the_capture_mode_is_put_back_where_loading_fails(driver):
    driver.failing = "cuLibraryLoadData"
    with pytest.raises(RuntimeError, match="OUT_OF_MEMORY"):
        device.kernel(CHOICE, 128, 0)
    assert driver.mode == GLOBAL
    driver.failing = None
    assert device.kernel(CHOICE, 128, 0).function == Driver.KERNEL


def test_threads_share_what_is_loaded(driver):
    threads = [threading.Thread(target=device.kernel, args=(CHOICE, 128, 0)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(driver.named("cuLibraryLoadData")) == 1


@pytest.mark.parametrize(
    ("nvrtc", "known", "version", "said"),
    [
        ((13, 0), (75, 90), 13000, None),
        ((12, 9), (50, 90), 13010, None),
        ((12, 0), (50, 90), 12000, None),
        ((11, 8), (35, 90), 12020, "NVRTC 11.8 is too old; pip install nvidia-cuda-nvrtc-cu12"),
        ((13, 0), (75, 90), 12090, "NVRTC 13.0 is too new for the driver, which is of CUDA 12; pip install"),
        ((12, 0), (50, 90), 11080, "the driver is of CUDA 11; install one of CUDA 12 or newer"),
        ((13, 0), (91, 100), 13000, "NVRTC 13.0 compiles for sm_91 and newer, and this GPU is sm_90; pip install"),
        ((13, 0), (90, 100), 13000, None),
    ],
)
def test_what_must_be_installed(driver, monkeypatch, nvrtc, known, version, said):
    monkeypatch.setattr(compiling, "_version", lambda: nvrtc)
    monkeypatch.setattr(compiling, "_architectures", lambda: known)
    monkeypatch.setattr(device, "lacking", compiling.lacking.__wrapped__)
    driver.version = version
    found = device.unfit(0)
    assert found is None if said is None else found.startswith(said)


def test_nvrtc_that_cannot_be_loaded_is_named(driver, monkeypatch):
    monkeypatch.setattr(compiling, "_version", mock.Mock(side_effect=RuntimeError("no libnvrtc.so\nlooked in")))
    monkeypatch.setattr(device, "lacking", compiling.lacking.__wrapped__)
    assert device.unfit(0).startswith("NVRTC cannot be used (no libnvrtc.so); pip install nvidia-cuda-nvrtc, or for")


def test_a_driver_that_cannot_be_used_is_named(driver):
    driver.failing = "cuInit"
    assert device.unfit(0) == "the CUDA driver cannot be used (the CUDA driver failed: CUDA_ERROR_OUT_OF_MEMORY)"
