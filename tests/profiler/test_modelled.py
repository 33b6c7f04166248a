import itertools

import numpy as np
import pytest

from halp_profiler import sweep
from halp_profiler import table as tables
from halp_profiler.backends import backend_for
from halp_profiler.backends.modelled import Modelled
from halp_profiler.datasheet import DATASHEETS
from halp_profiler.devices import Device, find, known
from halp_profiler.errors import DeviceError, UsageError
from halp_profiler.kernel import OPS, Kernel, KernelRange

CONV = Kernel("conv", (56, 56), (3, 3), (1, 1), (1, 1), fused=("relu",))


@pytest.mark.parametrize(
    ("typed", "name"),
    [
        ("titanv", "titanv"), ("TITAN V", "titanv"), ("titan-v", "titanv"), ("NVIDIA TITAN V", "titanv"),
        ("V100", "v100"), ("RTX 2080 Ti", "rtx2080ti"), ("2080ti", "rtx2080ti"),
        ("rtx_3090", "rtx3090"), ("GeForce RTX 4090", "rtx4090"), ("A100", "a100"), ("h100", "h100"), ("H200", "h200"),
        ("Jetson AGX Orin", "orin"),
        ("agx-xavier", "xavier"), ("Tesla V100-SXM2-16GB", "v100"), ("NVIDIA A100-SXM4-40GB", "a100"),
        ("NVIDIA H100 80GB HBM3", "h100"), ("cpu", "cpu"),
    ],
)  # fmt: skip
def test_a_device_is_found_however_it_is_typed(typed, name):
    assert find(typed).name == name or find(typed).attached


@pytest.mark.parametrize("typed", ["titanx", "", "A10000", "v10", "../../etc/passwd", "ti\0tan"])
def test_an_unknown_device_names_the_known_ones(typed):
    with pytest.raises(UsageError, match="titanv"):
        find(typed)


def test_the_nearest_name_is_suggested():
    with pytest.raises(UsageError, match="Did you mean titanv"):
        find("titamv")


def test_every_datasheet_says_where_it_is_from_and_makes_sense():
    for name, d in DATASHEETS.items():
        assert d.name == name
        assert len(d.source) > 20
        assert 1 <= d.multiprocessors <= 200
        assert 1 < d.tflops["fp32"] <= d.tflops["fp16"] < 1000
        # Peak fp32 is 2 operations x 64 or 128 lanes a multiprocessor and clock.
        lanes = d.tflops["fp32"] * 1e6 / (2 * d.multiprocessors * d.boost_mhz)
        assert min(abs(lanes - 64), abs(lanes - 128)) < 10, name


def test_every_kernel_on_every_device_takes_some_time():
    for d, op in itertools.product(DATASHEETS.values(), OPS):
        for precision in d.tflops:
            backend = Modelled(d, batch=2, precision=precision)
            spatial = (5,) if op in ("linear", "layer_norm", "softmax") else (4, 5) if op == "matmul" else (14, 14)
            ms = [backend.latency_ms(Kernel(op, spatial), c, c) for c in (1, 64, 1024)]
            assert 0 < ms[0] <= ms[2] < 1000


def test_latency_has_steps_where_tiles_and_waves_end():
    backend = Modelled(DATASHEETS["titanv"], batch=256)
    ms = np.array([backend.latency_ms(CONV, 256, c) for c in range(1, 257)])
    assert ms[128] > 1.05 * ms[127]
    assert ms[127] == pytest.approx(ms[97], rel=0.02)


def test_more_bandwidth_and_more_multiprocessors_are_never_slower():
    for c in (16, 64, 200, 512):
        slow, fast = (Modelled(DATASHEETS[n], batch=8).latency_ms(CONV, c, c) for n in ("xavier", "h200"))
        assert fast < slow


def test_tensor_cores_prefer_multiples_of_eight():
    backend = Modelled(DATASHEETS["h100"], batch=64, precision="fp16")
    big = Kernel("conv", (56, 56), (3, 3), (1, 1), (1, 1))
    assert backend.latency_ms(big, 510, 512) > 1.2 * backend.latency_ms(big, 512, 512)


def test_a_modelled_table_says_so_and_agrees_with_its_formula(tmp_path):
    backend = Modelled(DATASHEETS["titanv"], batch=256)
    path = tmp_path / "t.jsonl"
    result = sweep.run(backend, [KernelRange(CONV, (1, 512), (1, 512))], path, max_error=0.05)
    assert tables.read(path).header.source == "modelled"
    assert result.held_out_error < 0.05
    assert result.seconds < 10


def test_what_cannot_be_done_with_a_device_is_refused_with_the_reason():
    titan = next(d for d in known() if d.name == "titanv")
    with pytest.raises(DeviceError, match="not attached"):
        backend_for(titan, source="measured")
    with pytest.raises(UsageError, match="bf16"):
        backend_for(titan, precision="bf16")
    with pytest.raises(UsageError):
        backend_for(titan, source="guessed")
    with pytest.raises(UsageError):
        backend_for(titan, batch=0)
    with pytest.raises(DeviceError, match="datasheet"):
        backend_for(find("cpu"), source="modelled")
    with pytest.raises(DeviceError, match="no datasheet"):
        backend_for(Device("cuda:0", "Unknown GPU", "cuda", True), source="modelled")


def test_a_gpu_that_is_not_there_is_a_device_error():
    with pytest.raises(DeviceError, match="not there"):
        find("cuda:99")
