import pytest

from halp_iee.latency import LatencyModel, LatencyTable
from halp_iee.latency.profile import default_table_path, emit, missing_from, profile_network
from halp_iee.latency.table import available, find, slug
from halp_profiler import table as tables
from halp_profiler.__main__ import main
from halp_profiler.errors import DeviceError, TableError, UsageError
from tests.latency.networks import residual_network
from tests.profiler.fakes import CONV, header, point


@pytest.fixture(autouse=True)
def _somewhere_else(tmp_path, monkeypatch):
    monkeypatch.setenv("HALP_LATENCY_TABLES", str(tmp_path / "mine"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def make(path, batch=1):
    tables.create_or_check(path, header(batch=batch))
    tables.append(path, [point(CONV, 8, 8, 1.0)])
    return path


def test_a_path_comes_first_then_the_named_folder_then_the_cache(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cached = make(tmp_path / "cache" / "halp-iee" / "latency_tables" / "a.jsonl", 1)
    assert find("a") == cached
    named = make(tmp_path / "mine" / "a.jsonl", 2)
    assert find("a") == find("a.jsonl") == named
    make(tmp_path / "a.jsonl", 3)
    assert LatencyTable.load("a.jsonl").batch == 3
    assert LatencyTable.load("a").batch == 2
    assert LatencyTable.load(cached).batch == 1
    assert named in list(available())


def test_a_table_that_is_not_there_names_every_place_and_the_nearest(tmp_path):
    make(tmp_path / "mine" / "titanv-resnet50.jsonl")
    with pytest.raises(TableError) as error:
        find("titanv-resnet5")
    text = str(error.value)
    assert str(tmp_path / "mine") in text
    assert str(tmp_path / "cache") in text
    assert "_tables" in text
    assert "Did you mean titanv-resnet50" in text
    assert "\n" not in text


@pytest.mark.parametrize("name", ["", "  ", "a\0b", "../../etc", "/nowhere/t.jsonl", "x" * 5000])
def test_a_strange_name_is_a_clear_error(name):
    with pytest.raises(TableError):
        LatencyTable.load(name)


def test_a_folder_is_no_table(tmp_path):
    with pytest.raises(TableError):
        LatencyTable.load(tmp_path)


def test_different_settings_have_different_default_paths():
    paths = {
        default_table_path("cpu", "resnet20"), default_table_path("cpu", "resnet50"),
        default_table_path("cpu", "resnet20", threads=2), default_table_path("cpu", "resnet20", batch=8),
        default_table_path("titanv", "resnet20"), default_table_path("titanv", "resnet20", precision="fp16"),
    }  # fmt: skip
    assert len(paths) == 6
    assert all(p.suffix == ".jsonl" for p in paths)


def test_a_model_given_as_a_file_makes_a_file_name():
    assert "/" not in slug("../nets/My Net.py:build", "t1")
    assert default_table_path("cpu", "../nets/net.py:build").parent == default_table_path("cpu", "x").parent


def test_profiling_a_modelled_device_makes_a_table_that_says_so(tmp_path):
    network = residual_network(1)
    table = profile_network(network, "TITAN V", tmp_path / "t.jsonl", batch=64)
    assert (table.source, table.device, table.batch, table.is_local) == (
        "modelled",
        "NVIDIA TITAN V",
        64,
        False,
    )
    assert profile_network(network, "titanv", model="net", batch=64).path == default_table_path(
        "titanv", "net", batch=64
    )
    with pytest.raises(DeviceError):
        profile_network(network, "titanv", source="measured")
    with pytest.raises(UsageError):
        profile_network(network, "no such thing")


def test_what_a_table_lacks_for_a_network_is_known_without_measuring(tmp_path):
    small, wide, deep = residual_network(1), residual_network(1, channels=64), residual_network(2)
    table = profile_network(small, "titanv", tmp_path / "t.jsonl")
    assert missing_from(table, small) == missing_from(table, deep) == ()
    assert {r.kernel.op for r in missing_from(table, wide)} == {"conv", "global_pool", "linear"}
    both = profile_network(wide, "titanv", tmp_path / "t.jsonl")
    assert missing_from(both, wide) == missing_from(both, small) == ()


def test_what_is_emitted_for_another_machine_makes_the_same_table(tmp_path):
    network = residual_network(1)
    emit(network, tmp_path / "sweep.json", device="titanv", batch=4)
    assert main(["run", str(tmp_path / "sweep.json"), "--out", str(tmp_path / "there.jsonl")]) == 0
    here = profile_network(network, "titanv", tmp_path / "here.jsonl", batch=4)
    there = LatencyTable.load(tmp_path / "there.jsonl")
    assert missing_from(there, network) == ()
    assert LatencyModel(network, there).dense_ms == LatencyModel(network, here).dense_ms


def test_a_network_without_kernels_cannot_be_profiled(tmp_path):
    from tests.latency.networks import HandMade

    with pytest.raises(TableError):
        profile_network(HandMade((), ()), "titanv", tmp_path / "t.jsonl")
    assert not (tmp_path / "t.jsonl").exists()
