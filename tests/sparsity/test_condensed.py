"""The condensed layer computes what the dense one does, for any weight, batch and backend."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from halp_iee import trace
from halp_iee.condensed import CondensedLinear, compiled, condense, fastest_here, linear
from halp_iee.condensed.layout import rows_of, tiles_of
from halp_iee.errors import UsageError


def sparse_weight(rows: int, columns: int, density: float, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator)
    return weight * (torch.rand(rows, columns, generator=generator) < density)


shapes = st.tuples(st.integers(1, 70), st.integers(1, 130))
densities = st.sampled_from([0.0, 0.02, 0.1, 0.3, 0.9, 1.0])


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@settings(max_examples=80, deadline=None)
@given(
    shapes,
    densities,
    st.sampled_from([0, 1, 2, 3, 4, 8, 9, 16, 17, 33, 64, 65, 100]),
    st.booleans(),
    st.integers(0, 99),
)
def test_equals_the_dense_layer(shape: tuple[int, int], density: float, batch: int, bias: bool, seed: int) -> None:
    weight = sparse_weight(*shape, density, seed)
    layer = CondensedLinear(weight, torch.randn(shape[0]) if bias else None)
    assert layer.nonzeros == int((weight != 0).sum())
    assert torch.equal(layer.dense(), weight)
    x = torch.randn(batch, shape[1])
    close(layer(x), linear.reference(x, layer))


@settings(max_examples=40, deadline=None)
@given(shapes, densities, st.integers(0, 99))
def test_tiles_hold_every_weight_once(shape: tuple[int, int], density: float, seed: int) -> None:
    weight = sparse_weight(*shape, density, seed).numpy()
    tiles = tiles_of(rows_of(weight))
    rebuilt = torch.zeros(tiles.steps.shape[0] * 16, tiles.steps.shape[1] * 32)
    at = 0
    for t in range(len(tiles.steps)):
        assert tiles.first[t] == at
        for block, steps in enumerate(tiles.steps[t]):
            for s in range(at, at + int(steps)):
                for lane in range(16):
                    rebuilt[t * 16 + lane, block * 32 + tiles.index[s, lane]] += float(tiles.values[s, lane])
            at += int(steps)
        for s in range(tiles.rest_first[t], tiles.rest_first[t] + tiles.rest[t]):
            for lane in range(16):
                rebuilt[t * 16 + lane, tiles.rest_index[s, lane]] += float(tiles.rest_values[s, lane])
    assert torch.equal(rebuilt[: shape[0], : shape[1]], torch.from_numpy(weight))
    assert rebuilt.count_nonzero() == int((weight != 0).sum())


@pytest.mark.parametrize("batch", [1, 5, 40])
def test_without_a_compiler_it_still_computes(batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "library", lambda: None)
    layer = CondensedLinear(sparse_weight(33, 50, 0.2, 0), torch.randn(33))
    assert layer.backend == "csr"
    x = torch.randn(batch, 50)
    close(layer(x), linear.reference(x, layer))


def test_without_wide_registers_it_still_computes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What a machine without AVX-512 runs: the same source, compiled for the plainest processor."""
    if compiled.library() is None:
        pytest.skip("there is no compiler")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(compiled, "_FLAGS", tuple(f for f in compiled._FLAGS if f != "-march=native"))
    compiled.library.cache_clear()
    try:
        plain = compiled.library()
        assert plain is not None
        assert not plain.condensed_has_tiles()
        monkeypatch.setattr(linear, "library", lambda: plain)
        for batch in (1, 3, 20, 70):
            layer = CondensedLinear(sparse_weight(37, 90, 0.2, batch), torch.randn(37))
            x = torch.randn(batch, 90)
            close(layer(x), linear.reference(x, layer))
    finally:
        compiled.library.cache_clear()


def test_columns_beyond_sixteen_bits() -> None:
    weight = torch.zeros(5, 70_000)
    weight[torch.arange(5), torch.tensor([0, 32_767, 32_768, 65_536, 69_999])] = torch.arange(1.0, 6)
    layer = CondensedLinear(weight)
    assert layer.indices.dtype == torch.int32
    for batch in (1, 20):
        x = torch.randn(batch, 70_000)
        close(layer(x), x @ weight.T)


def test_indices_take_two_bytes_where_they_can() -> None:
    weight = torch.zeros(3, 65_536)
    weight[:, 65_535] = 2.0
    layer = CondensedLinear(weight)
    assert layer.bytes == 3 * (4 + 2)
    close(layer(torch.ones(1, 65_536)), torch.full((1, 3), 2.0))


def test_follows_a_state_dict_and_a_copy() -> None:
    a = CondensedLinear(sparse_weight(20, 30, 0.3, 1), torch.randn(20))
    b = CondensedLinear(sparse_weight(20, 30, 0.1, 2), torch.randn(20))
    x = torch.randn(1, 30)
    b(x)
    b.load_state_dict(a.state_dict())
    assert torch.equal(b(x), a(x))
    assert torch.equal(copy.deepcopy(a)(x), a(x))


def test_reads_tokens_other_types_and_strides() -> None:
    layer = CondensedLinear(sparse_weight(12, 40, 0.3, 3), torch.randn(12))
    x = torch.randn(2, 7, 40)
    close(layer(x), linear.reference(x, layer))
    strided = torch.randn(40, 6).T
    close(layer(strided), linear.reference(strided, layer))
    assert layer(x.bfloat16()).dtype == torch.bfloat16
    assert layer(torch.randn(40)).shape == (12,)


def test_wrong_inputs_are_refused() -> None:
    layer = CondensedLinear(sparse_weight(4, 8, 0.5, 0))
    with pytest.raises(UsageError, match="7 features and 8"):
        layer(torch.randn(1, 7))
    with pytest.raises(UsageError, match="shape"):
        CondensedLinear(torch.randn(3, 3, 3))
    with pytest.raises(UsageError, match="Conv2d"):
        fastest_here(nn.Conv2d(1, 1, 1), 1)  # type: ignore[arg-type]


@pytest.mark.parametrize("batch", [1, 32])
def test_the_fastest_form_computes_the_same(batch: int) -> None:
    layer = nn.Linear(96, 64)
    with torch.no_grad():
        layer.weight.mul_(sparse_weight(64, 96, 0.1, 4) != 0)
        layer.weight[::3] = 0
    choice = fastest_here(layer, batch, seconds=0.02)
    assert {"dense", "slimmed", "condensed", "csr"} <= set(choice.ms)
    assert choice.ms[choice.form] == min(choice.ms.values())
    x = torch.randn(batch, 96)
    close(choice.layer(x), layer(x))


class Mlp(nn.Module):
    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(24, 48), activation, nn.Linear(48, 24)
        self.head = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x + self.fc2(self.act(self.fc1(x))))


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.GELU(), nn.Sigmoid()], ids=["relu", "gelu", "sigmoid"])
def test_ablated_neurons_leave_with_what_reads_them(activation: nn.Module) -> None:
    """Their bias is not zero, and a sigmoid of zero is not either: the constant must not be lost."""
    torch.manual_seed(0)
    model = Mlp(activation).eval()
    with torch.no_grad():
        model.fc1.weight.mul_(sparse_weight(48, 24, 0.2, 5) != 0)
        model.fc1.weight[:20] = 0
        model.fc2.weight.mul_(sparse_weight(24, 48, 0.2, 6) != 0)
    x = torch.randn(3, 24)
    expected = model(x)
    done = condense(trace(model, x), batch=1, seconds=0.01)
    assert list(done.removed.values()) == [48 - int(model.fc1.weight.any(1).sum())]
    close(done.model(x), expected)
    assert torch.equal(model(x), expected), "the network itself is not changed"
    assert set(done.choices) == {"fc1", "fc2"}


_INTERPRETED = """
import torch
from halp_iee.condensed.gpu import multiply
from halp_iee.condensed.layout import rows_of
torch.manual_seed(0)
for batch, rows, columns in ((1, 5, 9), (20, 33, 40), (70, 17, 30)):
    weight = torch.randn(rows, columns) * (torch.rand(rows, columns) < 0.2)
    weight[1] = 0
    found, x, bias = rows_of(weight.numpy()), torch.randn(batch, columns), torch.randn(rows)
    start, index, values = (torch.from_numpy(a.astype(t)) for a, t in
                            ((found.start, "int64"), (found.index, "int64"), (found.values, "float32")))
    for b in (bias, None):
        got = multiply(x, start, index, values, b)
        torch.testing.assert_close(got, torch.nn.functional.linear(x, weight, b), rtol=1e-4, atol=1e-4)
"""


def test_the_gpu_kernel_is_right_in_tritons_interpreter() -> None:
    pytest.importorskip("triton")
    done = subprocess.run(
        [sys.executable, "-c", _INTERPRETED], env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.gpu
@pytest.mark.parametrize("batch", [1, 7, 64, 256])
def test_equals_the_dense_layer_on_a_gpu(batch: int) -> None:
    layer = CondensedLinear(sparse_weight(300, 500, 0.1, 7), torch.randn(300)).cuda()
    x = torch.randn(batch, 500, device="cuda")
    assert layer.backend == "triton"
    close(layer(x), linear.reference(x, layer))


@pytest.mark.gpu
def test_two_of_four_is_tried_where_the_gpu_has_it() -> None:
    weight = torch.randn(128, 256).reshape(-1, 4)
    weight[:, 2:] = 0
    layer = nn.Linear(256, 128).cuda().half()
    with torch.no_grad():
        layer.weight.copy_(weight.reshape(128, 256))
    choice = fastest_here(layer, 64, tolerance=0.02)
    assert torch.cuda.get_device_capability() < (8, 0) or "2:4" in choice.ms
