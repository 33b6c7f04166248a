"""Data sets are the same every time, their parts are apart, and what is broken is named."""

from __future__ import annotations

import shutil
import struct

import numpy as np
import pytest
import torch
from PIL import Image

from halp_iee.errors import DataError, HalpError, UsageError
from halp_iee.train import load
from halp_iee.train.digits import digits_hard
from halp_iee.train.tensors import TensorSplit


@pytest.fixture(scope="module")
def hard():
    return digits_hard(seed=0, train_size=1500, test_size=600)


def same(one, two) -> bool:
    return all(torch.equal(a, b) for x, y in zip(one, two, strict=True) for a, b in zip(x, y, strict=True))


def test_digits_are_split_in_proportion_and_apart_whatever_the_seed():
    data = load("digits", seed=0)
    assert (len(data.train), len(data.test)) == (1297, 500)
    assert same([data.train.images], [load("digits", seed=9).train.images])
    seen = {image.numpy().tobytes() for image in data.train.images}
    assert not any(image.numpy().tobytes() in seen for image in data.test.images)
    counts = torch.bincount(data.test.labels) / 500 - torch.bincount(data.train.labels) / 1297
    assert counts.abs().max() < 0.002
    images, _ = next(data.train.batches(1297))
    assert images.shape == (1297, *data.input_shape)
    assert images.mean().abs() < 1e-4
    assert (images.std() - 1).abs() < 1e-3


def test_hard_digits_are_the_same_for_the_same_seed_only(hard):
    again, other = (digits_hard(seed, 1500, 600) for seed in (0, 1))
    assert same([hard.train.images, hard.test.images], [again.train.images, again.test.images])
    assert not torch.equal(hard.train.images, other.train.images)
    assert hard.fingerprint != other.fingerprint
    assert torch.bincount(hard.train.labels).min() > 100


def test_hard_test_digits_are_made_of_test_originals_alone(monkeypatch):
    from halp_iee.train import digits

    made = []
    true_make = digits._make

    def spy(images, *rest):
        made.append(images)
        return true_make(images, *rest)

    monkeypatch.setattr(digits, "_make", spy)
    digits_hard(0, 20, 20)
    train, test = ({image.numpy().tobytes() for image in part} for part in made)
    assert len(made[0]) == 1297
    assert len(made[1]) == 500
    assert not train & test


def splits(hard, tmp_path):
    rng = np.random.default_rng(0)
    colour = torch.from_numpy(rng.integers(0, 256, (70, 3, 12, 10), dtype=np.uint8))
    yield hard.train
    yield load("digits").train
    yield TensorSplit(colour, torch.arange(70), (0.5,) * 3, (0.2,) * 3, "crop-flip")
    yield load(f"imagefolder:{folder_of_images(tmp_path / 'images', ['a', 'b'], 20)}", image_size=16).train


def test_batches_depend_on_seed_and_epoch_and_not_on_where_they_begin_or_on_global_generators(hard, tmp_path):
    for split in splits(hard, tmp_path):
        before = torch.get_rng_state(), np.random.get_state()[1].copy()
        options = {"epoch": 2, "seed": 5, "shuffle": True, "augment": True}
        whole = list(split.batches(16, **options))
        assert torch.equal(before[0], torch.get_rng_state())
        assert (before[1] == np.random.get_state()[1]).all()
        for start in (0, 1, len(whole) - 1):
            assert same(whole[start:], split.batches(16, **options, start_batch=start))
        assert len(whole) == len(split) // 16
        assert not same(whole[:1], list(split.batches(16, **options | {"epoch": 3}))[:1])
        assert not same(whole[:1], list(split.batches(16, **options | {"seed": 6}))[:1])


def test_augmentation_of_an_image_does_not_depend_on_the_batch_that_it_is_in(hard, tmp_path):
    for split in splits(hard, tmp_path):
        one, two = ([torch.cat(x) for x in zip(*split.batches(n, seed=1, augment=True), strict=True)] for n in (7, 16))
        assert torch.equal(one[1], two[1])
        assert torch.allclose(one[0], two[0], atol=1e-5)


def test_unshuffled_batches_hold_every_image_once(hard, tmp_path):
    for split in splits(hard, tmp_path):
        labels = torch.cat([y for _, y in split.batches(16)])
        assert len(labels) == len(split)


def test_an_epoch_smaller_than_a_batch_is_one_batch():
    split = TensorSplit(torch.zeros(5, 1, 8, 8), torch.zeros(5, dtype=torch.int64))
    assert [len(y) for _, y in split.batches(64, shuffle=True)] == [5]


# Folders of images


def folder_of_images(folder, classes, count, size=(24, 18)):
    rng = np.random.default_rng(0)
    for name in classes:
        (folder / name).mkdir(parents=True)
        for i in range(count):
            Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(folder / name / f"{i}.png")
    return folder


def test_a_folder_with_train_and_val_is_read_as_laid_out(tmp_path):
    folder_of_images(tmp_path / "train", ["cat", "dog"], 4)
    folder_of_images(tmp_path / "val", ["cat", "dog"], 2)
    data = load(f"imagefolder:{tmp_path}", image_size=32)
    assert (data.classes, len(data.train), len(data.test)) == (("cat", "dog"), 8, 4)
    images, labels = next(data.test.batches(4))
    assert images.shape == (4, 3, 32, 32)
    assert labels.tolist() == [0, 0, 1, 1]


def test_a_folder_of_classes_is_divided_the_same_way_every_time(tmp_path):
    folder_of_images(tmp_path, ["a", "b", "c"], 20)
    one, two = (load(f"imagefolder:{tmp_path}", image_size=16) for _ in range(2))
    assert (len(one.train), len(one.test)) == (54, 6)
    assert one.test.files == two.test.files
    assert not set(one.test.files) & set(one.train.files)
    assert "every tenth" in one.note


def empty_class(folder):
    (folder / "train" / "bird").mkdir()
    (folder / "val" / "bird").mkdir()


def corrupt(folder):
    (folder / "train" / "cat" / "1.png").write_bytes(b"not an image")


def cut_off(folder):
    file = folder / "val" / "dog" / "0.png"
    file.write_bytes(file.read_bytes()[:60])


def no_val(folder):
    shutil.rmtree(folder / "val")


def other_classes(folder):
    (folder / "val" / "dog").rename(folder / "val" / "wolf")


def no_classes(folder):
    shutil.rmtree(folder / "train")
    (folder / "train").mkdir()


@pytest.mark.parametrize(
    ("damage", "word"),
    [
        (empty_class, "bird holds no image"),
        (corrupt, r"cat/1\.png"),
        (cut_off, r"dog/0\.png"),
        (no_val, "neither val/ nor test/"),
        (other_classes, "'dog' is in only one of train/ and val/"),
        (no_classes, "no class folders"),
    ],
)
def test_a_damaged_folder_is_refused_in_one_line_that_names_the_place(tmp_path, damage, word):
    folder_of_images(tmp_path / "train", ["cat", "dog"], 3)
    folder_of_images(tmp_path / "val", ["cat", "dog"], 2)
    damage(tmp_path)
    with pytest.raises(DataError, match=word) as caught:
        load(f"imagefolder:{tmp_path}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["jpg", "bmp", "webp", "tif"])
def test_an_image_cut_off_in_its_pixels_is_named_before_the_first_step(tmp_path, kind):
    folder_of_images(tmp_path, ["a", "b"], 10)
    rng = np.random.default_rng(0)
    file = tmp_path / "a" / f"0.{kind}"
    Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(file)
    load(f"imagefolder:{tmp_path}", image_size=16)
    file.write_bytes(file.read_bytes()[:-900])
    with pytest.raises(DataError, match=rf"a/0\.{kind}"):
        load(f"imagefolder:{tmp_path}", image_size=16)


def test_an_image_that_breaks_after_it_was_looked_at_is_named_when_its_turn_comes(tmp_path):
    folder_of_images(tmp_path, ["a", "b"], 10)
    data = load(f"imagefolder:{tmp_path}", image_size=16)
    (tmp_path / "a" / "3.png").write_bytes(b"gone")
    with pytest.raises(DataError, match=r"a/3\.png"):
        list(data.train.batches(4)) + list(data.test.batches(4))


# CIFAR


def binary_cifar(folder, per_file=6):
    folder.mkdir()
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 10, (6 * per_file, 3073), dtype=np.uint8)
    for name, part in zip([f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"], np.split(rows, 6), strict=True):
        (folder / f"{name}.bin").write_bytes(part.tobytes())
    return rows


def python2_pickle(pixels: np.ndarray, labels: list[int], by_columns: bool = False, key: bytes = b"labels") -> bytes:
    """The opcodes of the published files (protocol 2, written by Python 2)."""

    def text(value: bytes) -> bytes:
        return b"U" + bytes([len(value)]) + value

    raw = pixels.tobytes("F" if by_columns else "C")
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\nq\x07cnumpy\nndarray\nq\x08K\x00\x85U\x01b\x87Rq\x09(K\x01"
        + b"K" + bytes([len(pixels)]) + b"M\x00\x0c\x86cnumpy\ndtype\nq\x0aU\x02u1K\x00K\x01\x87Rq\x0b"
        + b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb" + (b"\x88" if by_columns else b"\x89")
        + b"T" + struct.pack("<i", len(raw)) + raw + b"tb"
    )  # fmt: skip
    numbers = b"]q\x05(" + b"".join(b"K" + bytes([n]) for n in labels) + b"e"
    entries = text(b"batch_label") + text(b"training batch 1 of 5") + text(key) + numbers
    return b"\x80\x02}q\x01(" + entries + text(b"data") + array + text(b"filenames") + b"](" + text(b"x.png") + b"eu."


def test_cifar_is_read_from_its_binary_version(tmp_path):
    rows = binary_cifar(tmp_path / "cifar-10-batches-bin")
    for place in (tmp_path, tmp_path / "cifar-10-batches-bin"):
        data = load(f"cifar10:{place}")
        assert (len(data.train), len(data.test), data.num_classes) == (30, 6, 10)
        assert data.train.labels.tolist() == rows[:30, 0].tolist()
        assert np.array_equal(data.test.images.numpy().reshape(6, -1), rows[30:, 1:])


def test_cifar_100_is_read_by_its_fine_labels_from_both_versions(tmp_path):
    rng = np.random.default_rng(0)
    pixels, labels = (
        rng.integers(0, 256, (12, 3072), dtype=np.uint8),
        rng.integers(20, 100, 12, dtype=np.uint8),
    )
    (tmp_path / "bin" / "cifar-100-binary").mkdir(parents=True)
    (tmp_path / "py" / "cifar-100-python").mkdir(parents=True)
    for name, part in (("train", slice(0, 8)), ("test", slice(8, 12))):
        rows = np.concatenate([labels[part, None] // 5, labels[part, None], pixels[part]], axis=1)
        (tmp_path / "bin" / "cifar-100-binary" / f"{name}.bin").write_bytes(rows.tobytes())
        raw = python2_pickle(pixels[part], labels[part].tolist(), key=b"fine_labels")
        (tmp_path / "py" / "cifar-100-python" / name).write_bytes(raw)
    for version in ("bin", "py"):
        data = load(f"cifar100:{tmp_path / version}")
        assert data.num_classes == 100
        assert data.train.labels.tolist() == labels[:8].tolist()
        assert np.array_equal(data.test.images.numpy().reshape(4, -1), pixels[8:])


@pytest.mark.parametrize("by_columns", [False, True])
def test_cifar_is_read_from_its_python_version_without_unpickling(tmp_path, monkeypatch, by_columns):
    import io
    import pickle
    import pickletools

    rows = binary_cifar(tmp_path / "bin")
    place = tmp_path / "cifar-10-batches-py"
    place.mkdir()
    for name, part in zip([f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"], np.split(rows, 6), strict=True):
        raw = python2_pickle(part[:, 1:], part[:, 0].tolist(), by_columns)
        (place / name).write_bytes(raw)
    pickletools.dis(raw, out=io.StringIO())  # the imitation is a sound pickle; looking at it runs nothing
    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, lambda *_, **__: pytest.fail("unpickled"))
    data = load(f"cifar10:{tmp_path}")
    assert np.array_equal(data.train.images.numpy().reshape(30, -1), rows[:30, 1:])
    assert data.train.labels.tolist() == rows[:30, 0].tolist()


def test_a_hostile_pickle_in_place_of_cifar_runs_nothing(tmp_path):
    place = tmp_path / "cifar-10-batches-py"
    place.mkdir()
    evil = b"cos\nsystem\n(S'touch " + str(tmp_path / "owned").encode() + b"'\ntR."
    (place / "data_batch_1").write_bytes(evil)
    with pytest.raises(DataError, match="data_batch_1"):
        load(f"cifar10:{tmp_path}")
    assert not (tmp_path / "owned").exists()


def test_broken_cifar_files_are_named(tmp_path):
    folder = tmp_path / "cifar-10-batches-bin"
    binary_cifar(folder)
    raw = (folder / "data_batch_3.bin").read_bytes()
    for damage, word in (
        (raw[:-5], "whole number of records"),
        (b"", "0 bytes"),
        (b"\xff" + raw[1:], "label 255"),
    ):
        (folder / "data_batch_3.bin").write_bytes(damage)
        with pytest.raises(DataError, match=f"data_batch_3.bin.*{word}"):
            load(f"cifar10:{tmp_path}")
    (folder / "data_batch_3.bin").unlink()
    with pytest.raises(DataError, match=r"data_batch_3\.bin"):
        load(f"cifar10:{tmp_path}")


@pytest.mark.parametrize(
    ("spec", "kind", "word"),
    [
        ("digit", UsageError, "did you mean digits"),
        ("mnist", UsageError, "the known ones are"),
        ("", UsageError, "unknown data set"),
        ("digits:/x", UsageError, "takes no directory"),
        ("cifar10", UsageError, "no directory is named"),
        ("imagefolder:", UsageError, "no directory is named"),
        ("imagefolder:/no/such/place", DataError, "there is no directory"),
        ("cifar100:/proc", DataError, "cifar-100-binary/train.bin"),
        ("voc:/data", UsageError, "classification"),
        ("/tmp", UsageError, "did you mean imagefolder:/tmp"),
        (f"imagefolder:{__file__}", DataError, "is a file"),
    ],
)
def test_what_cannot_be_read_is_said_in_one_line(spec, kind, word):
    with pytest.raises(HalpError, match=word) as caught:
        load(spec)
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)
