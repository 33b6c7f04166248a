"""What of the TensorRT backend is this project's own logic, with a module that stands for TensorRT."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from halp_profiler.backends.base import Request, Settings
from halp_profiler.backends.tensorrt_runs import TensorRt, creation_flags, kernel_ms, major_version, median_build
from halp_profiler.devices import Device, find
from halp_profiler.errors import DeviceError, UsageError
from halp_profiler.kernel import Kernel
from tests.profiler.test_watch import Seen

pytest.importorskip("onnx")
GPU = Device("cuda:0", "NVIDIA H200", "cuda", True, details=(("uuid", "GPU-1"),))
CONV = Kernel("conv", (8, 8), (3, 3), (1, 1), (1, 1), fused=("relu",))


class FakeTensorRt:
    """As much of TensorRT as the backend calls; every build has tactics of another speed, as the real ones may."""

    def __init__(self, version="10.9.0", build_ms=(1.0, 3.0, 2.0)):
        self.__version__, self.build_ms = version, list(build_ms)
        self.log, self.caches_given, self.parses, self.plan_made = [], [], True, True
        fake = self

        class Logger:
            ERROR = 1

            def __init__(self, severity): ...

        class IProfiler:
            def __init__(self): ...

        class Cache:
            def __init__(self, data):
                self.data = bytes(data)

            def serialize(self):
                return self.data + b"+"

        class Config:
            def set_flag(self, flag):
                fake.log.append(("set", flag))

            def clear_flag(self, flag):
                fake.log.append(("clear", flag))

            def create_timing_cache(self, data):
                fake.caches_given.append(bytes(data))
                self.cache = Cache(data)
                return self.cache

            def set_timing_cache(self, cache, ignore_mismatch):
                return True

            def get_timing_cache(self):
                return self.cache

        class Builder:
            def __init__(self, logger): ...

            def create_network(self, flags):
                fake.log.append(("network", flags))
                return SimpleNamespace()

            def create_builder_config(self):
                return Config()

            def build_serialized_network(self, network, config):
                return network.model if fake.plan_made else None

        class OnnxParser:
            num_errors = 1

            def __init__(self, network, logger):
                self.network = network

            def parse(self, data):
                import onnx

                self.network.model = onnx.load_from_string(data)
                return fake.parses

            def get_error(self, i):
                return "unsupported node"

        class Runtime:
            def __init__(self, logger): ...

            def deserialize_cuda_engine(self, plan):
                return Engine(plan, fake.build_ms.pop(0) if len(fake.build_ms) > 1 else fake.build_ms[0])

        class Engine:
            def __init__(self, model, ms):
                self.model, self.ms, self.names = model, ms, [i.name for i in model.graph.input]
                self.num_io_tensors = len(self.names)

            def get_tensor_name(self, i):
                return self.names[i]

            def get_tensor_shape(self, name):
                return (1, 2)

            def get_tensor_dtype(self, name):
                return "DataType.HALF"

            def create_execution_context(self):
                return Context(self)

        class Context:
            profiler = None

            def __init__(self, engine):
                self.engine, self.addresses = engine, {}

            def set_tensor_address(self, name, address):
                self.addresses[name] = address

            def execute_v2(self, addresses):
                assert len(addresses) == self.engine.num_io_tensors == len(self.addresses)
                if self.profiler:
                    nodes = [n.name for n in self.engine.model.graph.node]
                    kernels = sorted({n.split("_")[0] for n in nodes if n.startswith("k")})
                    for k in kernels:
                        mine = [n for n in nodes if n.startswith(f"{k}_")]
                        self.profiler.report_layer_time(" + ".join(mine), self.engine.ms * (1 + int(k[1:])))
                        self.profiler.report_layer_time(f"Reformatting CopyNode for Input Tensor 0 to {mine[0]}", 0.25)
                    for n in nodes:
                        if not n.startswith("k"):
                            self.profiler.report_layer_time(n, 100.0)
                return True

        self.Logger, self.IProfiler, self.Builder, self.OnnxParser, self.Runtime = (
            Logger, IProfiler, Builder, OnnxParser, Runtime,
        )  # fmt: skip
        self.ProfilingVerbosity = SimpleNamespace(DETAILED=2)
        self.BuilderFlag = SimpleNamespace(TF32="tf32")
        self.NetworkDefinitionCreationFlag = SimpleNamespace(STRONGLY_TYPED=1)


def made(fake, watch=None, **settings):
    return TensorRt(
        GPU, Settings(**settings), rounds=4, tensorrt=fake, allocate=lambda shape, dtype: (object(), 1),
        watch=watch or Seen(),
    )  # fmt: skip


def test_the_median_of_several_builds_counts_and_only_the_kernels_own_layers():
    backend = made(FakeTensorRt())
    first, second = backend.measure([Request(CONV, 8, 8), Request(CONV, 16, 16)])
    assert first.median_ms == pytest.approx(2.0 + 0.25)
    assert second.median_ms == pytest.approx(2 * 2.0 + 0.25)
    assert first.samples == 3 * 4
    assert first.flags == ("builds_differ",)


def test_builds_that_agree_bear_no_flag_and_a_throttled_gpu_is_tried_again():
    assert made(FakeTensorRt(build_ms=[2.0])).measure([Request(CONV, 8, 8)])[0].flags == ()
    watch = Seen(("throttled",), ())
    assert made(FakeTensorRt(build_ms=[2.0]), watch).measure([Request(CONV, 8, 8)])[0].flags == ()
    watch = Seen(*[("busy",)] * 3)
    assert made(FakeTensorRt(build_ms=[2.0]), watch).measure([Request(CONV, 8, 8)])[0].flags == ("busy",)


def test_each_build_goes_on_with_a_timing_cache_of_its_own():
    fake = FakeTensorRt(build_ms=[2.0])
    backend = made(fake)
    backend.measure([Request(CONV, 8, 8)])
    backend.measure([Request(CONV, 16, 16)])
    assert fake.caches_given == [b"", b"", b"", b"+", b"+", b"+"]


@pytest.mark.parametrize(("version", "flags"), [("10.0.1", 2), ("10.13.2.6", 2), ("11.0.0", 0), ("11.4.0.106", 0)])
def test_10_is_asked_for_strong_typing_and_11_has_it(version, flags):
    fake = FakeTensorRt(version, [2.0])
    made(fake).measure([Request(CONV, 8, 8)])
    assert ("network", flags) in fake.log
    assert creation_flags(fake, major_version(fake)) == flags


@pytest.mark.parametrize("version", ["8.6.1", "9.3", "12.0", "dev"])
def test_a_version_that_is_not_known_is_refused(version):
    with pytest.raises(DeviceError, match="version 10 or 11"):
        made(FakeTensorRt(version))


def test_tf32_is_on_only_where_it_is_asked_for():
    for precision, expected in (("tf32", "set"), ("fp32", "clear"), ("fp16", "clear")):
        fake = FakeTensorRt(build_ms=[2.0])
        made(fake, precision=precision).measure([Request(CONV, 8, 8)])
        assert {kind for kind, flag in fake.log if flag == "tf32"} == {expected}


def test_a_network_that_does_not_build_is_one_clear_error():
    for broken in ("parses", "plan_made"):
        fake = FakeTensorRt()
        setattr(fake, broken, False)
        with pytest.raises(DeviceError, match="TensorRT cannot run conv"):
            made(fake).measure([Request(CONV, 8, 8)])


@pytest.mark.parametrize(
    ("layers", "ms"),
    [
        ([("k0_t1 + k0_t2", 2.0), ("s0_t0", 9.0), ("n0_t3", 9.0)], 2.0),
        ([("k0_t1 || k1_t4", 3.0)], 1.5),
        ([("Reformatting CopyNode for Input Tensor 0 to k0_t1 + k0_t2", 0.5), ("k0_t1 + k0_t2", 2.0)], 2.5),
        ([("k10_t1", 2.0), ("k1_t2", 1.0)], 0.0),
        ([("PWN(k0_t3, PWN(k0_t4))", 1.0), ("{ForeignNode[k0_t1...k0_t2]}", 1.0)], 2.0),
    ],
)
def test_a_kernels_time_is_that_of_the_layers_that_hold_its_nodes(layers, ms):
    assert kernel_ms(layers, 0) == pytest.approx(ms)


def test_a_kernel_that_was_fused_away_is_refused_and_not_called_free():
    with pytest.raises(DeviceError, match="fused into"):
        median_build(Request(CONV, 8, 8), [np.zeros(4)] * 3)


def test_layouts_are_tensorrts_own():
    with pytest.raises(UsageError, match="layout"):
        made(FakeTensorRt(), layout="nhwc")


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "tf32", "fp16", "bf16"])
def test_it_really_measures_on_a_gpu(precision):
    pytest.importorskip("tensorrt")
    backend = TensorRt(find("cuda:0"), Settings(batch=8, precision=precision))
    conv = Kernel("conv", (28, 28), (3, 3), (1, 1), (1, 1), fused=("add", "relu"))
    small, large = backend.measure([Request(conv, 64, 64), Request(conv, 512, 512)])
    assert 0 < small.median_ms < large.median_ms < 1000
