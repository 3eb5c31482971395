"""Pictures of any kind become what the networks take, or a clear message; collections keep their split."""

from __future__ import annotations

import io
import tarfile
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from semair.errors import ScenarioError
from semair.models.semantic import images
from semair.models.semantic.images import Collection, draw, prepare


def encoded(image, kind="PNG", **options):
    target = io.BytesIO()
    image.save(target, kind, **options)
    return target.getvalue()


def drawn(side=80, seed=1):
    return Image.fromarray(draw(side, np.random.default_rng(seed)))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1", "CMYK", "YCbCr", "HSV", "I", "F", "I;16"])
def test_every_mode_becomes_colour(mode):
    image = drawn()
    if mode in ("I", "I;16"):
        image = Image.fromarray(np.array(image.convert("L")).astype(np.uint16) * 257)
        image = image.convert("I") if mode == "I" else image
    elif mode == "F":
        image = Image.fromarray(np.array(image.convert("L")).astype(np.float32) / 255)
    else:
        image = image.convert(mode)
    found = prepare(image, (64, 64))
    assert found.shape == (64, 64, 3) and found.dtype == np.uint8
    if mode not in ("1", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV"):
        expected = prepare(drawn().convert("L"), (64, 64))
        assert np.abs(found.astype(int) - expected).max() <= 1


def test_transparent_parts_are_white():
    layers = np.zeros((64, 64, 4), np.uint8)
    layers[:32] = (10, 20, 30, 255)
    found = prepare(encoded(Image.fromarray(layers)), (64, 64))
    assert tuple(found[5, 5]) == (10, 20, 30) and tuple(found[60, 5]) == (255, 255, 255)


def test_files_of_16_bit_keep_their_brightness(tmp_path):
    values = (np.linspace(0, 65535, 64 * 64).reshape(64, 64)).astype(np.uint16)
    path = tmp_path / "deep.png"
    Image.fromarray(values).save(path)
    found = prepare(path, (64, 64))
    assert np.abs(found[..., 0].astype(float) - values / 257).max() <= 1


@pytest.mark.parametrize("shape", [(1, 1), (3, 700), (700, 3), (17, 29), (2000, 1500)])
def test_every_size_is_cut_or_enlarged(shape):
    found = prepare(np.full((*shape, 3), 90, np.uint8), (64, 128))
    assert found.shape == (64, 128, 3)
    assert (found == 90).all()


def test_pictures_are_turned_as_their_camera_says():
    image = Image.fromarray(np.concatenate([np.zeros((64, 32, 3), np.uint8), np.full((64, 32, 3), 255, np.uint8)], 1))
    exif = Image.Exif()
    exif[0x0112] = 6
    found = prepare(encoded(image, exif=exif), (64, 64))
    assert found[5, 32].max() < 50 and found[60, 32].min() > 200


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "WEBP", "TIFF"])
def test_a_cut_file_is_refused_or_served_but_never_a_traceback(kind):
    whole = encoded(drawn(), kind)
    with pytest.raises(ScenarioError, match=r"truth\.x"):
        prepare(whole[: len(whole) // 8], (64, 64), "truth.x")


@settings(max_examples=60)
@given(st.data())
def test_whatever_is_given_is_a_picture_or_an_error_for_the_user(data):
    whole = bytearray(encoded(drawn(24), data.draw(st.sampled_from(["PNG", "JPEG", "GIF", "BMP"]))))
    for _ in range(data.draw(st.integers(0, 6))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    given_bytes = bytes(whole[: data.draw(st.integers(0, len(whole)))])
    try:
        found = prepare(given_bytes, (64, 64))
    except ScenarioError:
        return
    assert found.shape == (64, 64, 3)


def test_what_is_wrong_is_named(tmp_path, monkeypatch):
    with pytest.raises(ScenarioError, match="there is no picture"):
        prepare(tmp_path / "none.png", (64, 64))
    with pytest.raises(ScenarioError, match=r"notes\.txt is no picture of a known kind"):
        prepare(b"some words", (64, 64), "notes.txt")
    with pytest.raises(ScenarioError, match=r"an array of shape \(2, 3, 5\)"):
        prepare(np.zeros((2, 3, 5), np.uint8), (64, 64))
    with pytest.raises(ScenarioError, match="outside 0 to 1"):
        prepare(np.full((4, 4), np.nan), (64, 64))
    with pytest.raises(ScenarioError, match="an array of complex128"):
        prepare(np.zeros((4, 4), complex), (64, 64))
    monkeypatch.setattr(images, "MOST_PIXELS", 1000)
    with pytest.raises(ScenarioError, match="80 x 80 pixels; at most"):
        prepare(encoded(drawn()), (64, 64))


def write_pictures(folder, n=60):
    folder.mkdir(parents=True, exist_ok=True)
    for k in range(n):
        drawn(24, k).save(folder / f"{k:03}.png")


def test_a_picture_stays_in_its_split_whatever_it_is_called_and_however_it_is_packed(tmp_path):
    write_pictures(tmp_path / "photos")
    first = Collection.read(tmp_path / "photos")
    assert sum(map(len, first.pictures.values())) == 60
    assert len(first.pictures["train"]) > 40
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive, tarfile.open(tmp_path / "photos.tar", "w") as tar:
        for k, path in enumerate(sorted((tmp_path / "photos").iterdir(), reverse=True)):
            archive.write(path, f"other/{k:03}.png")
            tar.add(path, f"{path.stem}.PNG")
    for name in ("photos.zip", "photos.tar"):
        again = Collection.read(tmp_path / name)
        for split in images.SPLITS:
            one = {pixels.tobytes() for pixels in first.pictures[split]}
            assert one == {pixels.tobytes() for pixels in again.pictures[split]}


def test_folders_called_val_and_test_are_taken_at_their_word(tmp_path):
    for name in ("val", "test", "train"):
        write_pictures(tmp_path / name, 3)
    (tmp_path / "val" / "broken.jpg").write_bytes(b"nothing")
    found = Collection.read(tmp_path)
    assert len(found.pictures["valid"]) >= 3 and len(found.pictures["test"]) >= 3
    assert "no picture of a known kind" in found.skipped["val/broken.jpg"]


def test_collections_without_pictures_are_refused(tmp_path):
    with pytest.raises(ScenarioError, match="holds no pictures"):
        Collection.read(tmp_path)
    with pytest.raises(ScenarioError, match="neither a folder nor an archive"):
        Collection.read(tmp_path / "nowhere")
    (tmp_path / "broken.zip").write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(ScenarioError, match="or damaged"):
        Collection.read(tmp_path / "broken.zip")
    only = tmp_path / "one" / "val"
    write_pictures(only, 2)
    with pytest.raises(ScenarioError, match="has no pictures for train"):
        Collection.read(tmp_path / "one").crops(1, "train", 16, np.random.default_rng(1))


def test_archives_that_cannot_be_unpacked_are_refused(tmp_path, monkeypatch):
    write_pictures(tmp_path / "photos", 2)
    packed = tmp_path / "photos.zip"
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in (tmp_path / "photos").iterdir():
            archive.write(path, path.name)
    whole = packed.read_bytes()
    begin = whole.index(b"PNG") - 10
    packed.write_bytes(whole[:begin] + bytes([whole[begin] ^ 0xFF]) * 60 + whole[begin + 60 :])
    with pytest.raises(ScenarioError, match="or damaged"):
        Collection.read(packed)
    # Bit 0 of the flags: with a password.
    locked = bytearray(whole)
    for mark, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        locked[whole.index(mark) + at] |= 1
    packed.write_bytes(locked)
    with pytest.raises(ScenarioError, match="password"):
        Collection.read(packed)
    monkeypatch.setattr(images, "MOST_BYTES", 100)
    packed.write_bytes(whole)
    for place in (packed, tmp_path / "photos"):
        with pytest.raises(ScenarioError, match=r"000\.png has 0 MB; pictures have at most"):
            Collection.read(place)


def test_a_picture_that_was_only_opened_may_turn_out_to_be_cut(tmp_path):
    (tmp_path / "cut.png").write_bytes(encoded(drawn())[:2000])
    with Image.open(tmp_path / "cut.png") as image, pytest.raises(ScenarioError, match="cut or damaged"):
        prepare(image, (64, 64))


def test_crops_are_those_of_the_seed_and_never_enlarged():
    found = Collection.drawn(20, 100)
    one = found.crops(8, "train", 64, np.random.default_rng(5))
    assert one.shape == (8, 64, 64, 3)
    assert np.array_equal(one, found.crops(8, "train", 64, np.random.default_rng(5)))
    assert not np.array_equal(one, found.crops(8, "train", 64, np.random.default_rng(6)))
    # A square as large as the picture is the picture, or its mirror image.
    whole = found.crops(1, "test", 100, np.random.default_rng(1))[0]
    assert any(np.array_equal(whole, kept[:, ::step]) for kept in found.pictures["test"] for step in (1, -1))


def test_fixed_pictures_are_the_same_every_time_and_begin_again_when_there_are_too_few():
    found = Collection.drawn(10, 80)
    squares = found.fixed(5, "test", 64)
    assert np.array_equal(squares[:2], squares[2:4])
    assert np.array_equal(squares, found.fixed(5, "test", 64))
