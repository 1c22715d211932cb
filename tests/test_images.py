"""Sets of pictures: every kind of file as it should look, what is broken skipped with its reason, nothing in memory."""

import io
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vesalius.data import images as module
from vesalius.data import picture_file
from vesalius.data.images import open_images
from vesalius.data.picture_file import read_picture
from vesalius.errors import VesaliusError
from vesalius.preprocessing import Preprocessing

PHOTOGRAPHS = Path(os.environ.get("VESALIUS_PHOTOGRAPHS", "photographs"))
HALVES = np.zeros((20, 30, 3), dtype=np.uint8)
HALVES[:, :15] = (255, 0, 0)
HALVES[:, 15:] = (0, 0, 255)


def encoded(picture: Image.Image, kind: str = "PNG", **options) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


@pytest.fixture
def folder(tmp_path):
    """Three whole pictures, one cut short, one that is none, one empty, one hidden."""
    for number, colour in enumerate(("red", "green", "blue")):
        Image.new("RGB", (40, 30), colour).save(tmp_path / f"{number}.png")
    whole = encoded(Image.effect_noise((64, 64), 50).convert("RGB"), "JPEG")
    (tmp_path / "3-cut.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "4-text.png").write_text("these are words")
    (tmp_path / "5-empty.gif").write_bytes(b"")
    (tmp_path / ".hidden").write_text("not listed")
    return tmp_path


def test_a_folder_gives_what_it_has_and_says_what_it_has_not(folder):
    images = open_images(folder)
    assert images.names == ["0.png", "1.png", "2.png"]
    assert [image.mean((1, 2)).argmax().item() for image in images] == [0, 1, 2]
    assert list(images.skipped) == ["3-cut.jpg", "4-text.png", "5-empty.gif"]
    assert "truncated" in images.skipped["3-cut.jpg"]
    assert "not a picture" in images.skipped["4-text.png"]
    assert images.classes is None
    with pytest.raises(IndexError):
        images[3]
    assert torch.equal(images[-1], images[2])


def test_subfolders_are_classes(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (4, 4)).save(tmp_path / name / "1.png")
    images = open_images(str(tmp_path))
    assert images.names == ["cat/1.png", "dog/1.png"]
    assert images.classes == ["cat", "dog"]


def test_an_archive_is_the_folder_that_it_holds(folder, tmp_path_factory):
    file = tmp_path_factory.mktemp("archive") / "set.tar"
    with tarfile.open(file, "w") as archive:
        for path in sorted(folder.iterdir(), reverse=True):
            archive.add(path, path.name)
    packed, loose = open_images(file), open_images(folder)
    assert packed.names == loose.names
    assert packed.hash == loose.hash
    assert all(torch.equal(one, two) for one, two in zip(packed, loose, strict=True))
    file.write_bytes(file.read_bytes()[:700])
    with pytest.raises(VesaliusError, match=r"tar|read"):
        open_images(file)


def test_a_list_and_a_single_file(folder):
    images = open_images([folder / "2.png", folder / "nowhere.png"])
    assert len(images) == 1
    assert "no such file" in next(iter(images.skipped.values())).lower()
    assert open_images(folder / "1.png").names == ["1.png"]
    assert images.hash == open_images(str(folder / "2.png")).hash


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("nowhere", "does not exist; expected a folder"),
        ("shape:5", "nearest is shapes"),
        ("shapes:many", "names no number of shapes"),
        ("shapes:0", "names no number of shapes"),
        ([], "list of pictures is empty"),
        (torch.zeros(3, 4, 4), r"expected \[picture, channel, height, width\]"),
        (torch.full((1, 3, 2, 2), 255.0), "expected uint8, or numbers from 0 to 1"),
        (torch.full((1, 3, 2, 2), torch.nan), "from nan to nan"),
        (torch.zeros(0, 3, 2, 2), "shape"),
    ],
)
def test_what_is_no_set_of_pictures_is_one_sentence(source, words):
    with pytest.raises(VesaliusError, match=words) as caught:
        open_images(source)
    assert "\n" not in str(caught.value)


def test_nothing_to_read_is_said(tmp_path, folder):
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(VesaliusError, match="is empty; expected pictures"):
        open_images(empty)
    (empty / "a.png").write_text("words")
    with pytest.raises(VesaliusError, match="none of the 1 files"):
        open_images(empty)
    with pytest.raises(VesaliusError, match="not a picture; expected PNG"):
        open_images(folder / "4-text.png")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "TIFF", "PPM", "GIF"])
def test_every_format_is_read(kind):
    picture = read_picture(encoded(Image.fromarray(HALVES), kind), "x")
    assert picture.shape == (3, 20, 30)
    expected = torch.from_numpy(HALVES).permute(2, 0, 1) / 255
    assert (picture - expected)[:, :, [2, -3]].abs().max() < 0.05


def ramp(mode: str) -> bytes:
    levels = np.tile(np.linspace(0, 1, 32, dtype=np.float32), (32, 1))
    if mode == "I;16":
        return encoded(Image.fromarray((levels * 65535).astype(np.uint16)))
    if mode == "F":
        return encoded(Image.fromarray(levels), "TIFF")
    grey = Image.fromarray((levels * 255).astype(np.uint8))
    kind = {"CMYK": "JPEG", "YCbCr": "JPEG", "LAB": "TIFF"}.get(mode, "PNG")
    return encoded(
        grey.convert("RGB").convert(mode) if mode in ("CMYK", "YCbCr") else grey.convert(mode), kind
    )


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "F"])
def test_every_kind_of_pixel_shows_the_same_ramp(mode):
    picture = read_picture(ramp(mode), "x")
    assert picture.shape == (3, 32, 32)
    torch.testing.assert_close(picture, torch.linspace(0, 1, 32).expand(3, 32, 32), atol=0.03, rtol=0)


def test_what_is_transparent_lies_over_grey():
    layers = np.zeros((2, 3, 4), dtype=np.uint8)
    layers[..., 0], layers[..., 3] = 255, (0, 128, 255)
    red, green, _ = read_picture(encoded(Image.fromarray(layers)), "x")
    torch.testing.assert_close(red[0], torch.tensor([0.5, 0.751, 1.0]), atol=1e-3, rtol=0)
    torch.testing.assert_close(green[0], torch.tensor([0.5, 0.249, 0.0]), atol=1e-3, rtol=0)


def test_the_first_frame_upright():
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    first = read_picture(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]), "x")
    assert first[0].min() > 0.9
    turned = Image.fromarray(HALVES)
    exif = turned.getexif()
    exif[0x0112] = 6  # the camera was held a quarter turn to the left
    picture = read_picture(encoded(turned, "JPEG", exif=exif), "x")
    assert picture.shape == (3, 30, 20)
    assert picture[0, :10].mean() > 0.9 > 0.1 > picture[0, 20:].mean()


def test_a_small_file_may_not_announce_a_huge_picture(monkeypatch, tmp_path):
    data = encoded(Image.new("1", (4000, 4000)))
    assert len(data) < 10_000
    monkeypatch.setattr(picture_file, "LARGEST", 1_000_000)
    with pytest.raises(VesaliusError, match=r"4000×4000 pixels; expected at most 1,000,000"):
        read_picture(data, "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1_000_000)
    with pytest.raises(VesaliusError, match="too many pixels"):
        read_picture(data, "bomb.png")
    (tmp_path / "bomb.png").write_bytes(data)
    Image.new("RGB", (4, 4)).save(tmp_path / "fine.png")
    images = open_images(tmp_path)
    assert images.names == ["fine.png"] and "too many pixels" in images.skipped["bomb.png"]


def test_damage_that_shows_only_in_decoding_is_skipped_on_the_way(tmp_path):
    noise = torch.randint(0, 256, (64, 64, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    for number in range(3):
        Image.fromarray(noise.numpy()).save(tmp_path / f"{number}.png")
    data = bytearray((tmp_path / "1.png").read_bytes())
    data[3000:3040] = bytes(40)
    (tmp_path / "1.png").write_bytes(data)
    images = open_images(tmp_path)
    assert len(images) == 3
    assert [numbers for numbers, _ in images.batches((16, 16), batch=2)] == [[0], [2]]
    assert "damaged" in images.skipped["1.png"]
    with pytest.raises(VesaliusError, match=r"'1.png' is truncated or damaged"):
        images[1]
    only = open_images([tmp_path / "1.png"])
    with pytest.raises(VesaliusError, match="none of the 1 files"):
        list(only.batches((16, 16)))


KINDS = {
    "PNG": {}, "JPEG": {"quality": 80}, "WEBP": {}, "GIF": {}, "BMP": {}, "TIFF": {"compression": "tiff_lzw"}, "PPM": {}
}  # fmt: skip
SAMPLES = {kind: encoded(Image.fromarray(HALVES), kind, **options) for kind, options in KINDS.items()}


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(sorted(SAMPLES)), st.data())
def test_damaged_bytes_are_a_picture_or_one_sentence(kind, data):
    bytes_ = bytearray(SAMPLES[kind])
    for place in data.draw(st.lists(st.integers(0, len(bytes_) - 1), max_size=6)):
        bytes_[place] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(bytes_)))
    try:
        picture = read_picture(bytes(bytes_[:cut]), "x")
    except VesaliusError as error:
        assert "'x'" in str(error) and "\n" not in str(error)
    else:
        assert picture.shape[0] == 3 and picture.min() >= 0 and picture.max() <= 1


def test_a_smaller_picture_is_decoded_where_less_is_needed():
    y, x = np.mgrid[:512, :768] / 100
    smooth = (np.stack([np.sin(x), np.cos(y), np.sin(x + y)], 2) * 127 + 128).astype(np.uint8)
    data = encoded(Image.fromarray(smooth), "JPEG", quality=95)
    small, whole = read_picture(data, "x", pixels=60), read_picture(data, "x")
    assert small.shape == (3, 128, 192) and whole.shape == (3, 512, 768)
    fit = Preprocessing((60, 60)).fit
    assert (fit(small) - fit(whole)).abs().mean() < 0.01


def test_batches_fit_a_network(folder):
    preprocessing = Preprocessing((24, 32), mean=(0.5,), sd=(0.25,))
    numbers, pixels = zip(*open_images(folder).batches(preprocessing, batch=2), strict=True)
    assert list(numbers) == [[0, 1], [2]]
    assert pixels[0].shape == (2, 1, 24, 32)
    torch.testing.assert_close(pixels[0][0].mean(), torch.tensor(0.299), atol=1e-3, rtol=0)


def test_a_sample_is_seeded_ordered_and_hashed():
    images = open_images("shapes:60")
    sample, again, other = images.take(9, seed=1), images.take(9, seed=1), images.take(9, seed=2)
    assert sample.names == again.names != other.names
    assert sample.hash == again.hash != other.hash
    place = images.names.index(sample.names[4])
    assert torch.equal(sample[4], images[place]) and sample.classes[4] == images.classes[place]
    assert images.take(60) is images
    assert sample.take(3).names == sorted(sample.take(3).names, key=images.names.index)
    with pytest.raises(VesaliusError, match="at least 1"):
        images.take(0)


def test_shapes_are_drawn_at_the_size_asked_for():
    images = open_images("shapes:5")
    assert len(open_images("shapes")) == module.SHAPES
    ((_, pixels),) = images.batches((64, 64))
    assert pixels.shape == (5, 3, 64, 64)
    assert torch.equal(open_images("shapes:40")[3], images[3])
    assert images.hash != open_images("shapes:6").hash


def test_a_tensor_is_a_set():
    bytes_ = torch.randint(
        0, 256, (3, 1, 6, 7), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    images, same = open_images(bytes_), open_images(bytes_.float() / 255)
    assert images[1].shape == (1, 6, 7)
    assert torch.equal(images[1], same[1])
    assert open_images(images) is images
    ((_, pixels),) = images.batches((6, 7))
    assert pixels.shape == (3, 3, 6, 7)


def test_photographs_of_scikit_image(tmp_path, monkeypatch):
    (tmp_path / "skimage" / "data").mkdir(parents=True)
    (tmp_path / "skimage" / "__init__.py").write_text("raise ImportError('never imported')")
    Image.new("RGB", (4, 4)).save(tmp_path / "skimage" / "data" / "coffee.png")
    (tmp_path / "skimage" / "data" / "cascade.xml").write_text("<xml/>")
    monkeypatch.syspath_prepend(tmp_path)
    assert open_images("skimage").names == ["coffee.png"]
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(VesaliusError, match="pip install scikit-image"):
        open_images("skimage")


@pytest.mark.skipif(not PHOTOGRAPHS.exists(), reason="the photographs are not here")
def test_photographs_stay_on_disk():
    images = open_images(PHOTOGRAPHS)
    assert len(images) == 1000 and not images.skipped
    assert images.take(8).names == images.take(8).names
    _, pixels = next(images.take(8).batches((64, 64)))
    assert 0.2 < pixels.mean() < 0.8
