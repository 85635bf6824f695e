"""Pictures and arrays in files: what is written comes back; damage costs one line."""

from __future__ import annotations

import gzip
import io
import itertools
import os
import random
import struct
import threading
import time
import tracemalloc
import zlib
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mnist_dist.errors import InputError
from mnist_dist.pictures import decoding
from mnist_dist.pictures.image_files import Batch, find_files, read_batches

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (20, 30), dtype=np.uint8)
COLOUR = RNG.integers(0, 256, (20, 30, 3), dtype=np.uint8)
MEBIBYTE = 1 << 20


def as_is(images, *, name):
    images = images[np.newaxis] if images.ndim == 2 else images
    return images if images.ndim == 4 else images[..., np.newaxis]


def read(*files, prepare=as_is, images_per_batch=1, num_threads=2):
    return list(
        read_batches(
            [os.fspath(f) if not isinstance(f, InputError) else f for f in files],
            prepare=prepare,
            images_per_batch=images_per_batch,
            num_threads=num_threads,
        )
    )


def read_one(path):
    """The pixels of the one picture in a file: [h, w] or [h, w, 3]."""
    (batch,) = read(path)
    if isinstance(batch, InputError):
        raise batch
    assert batch.files == [os.fspath(path)]
    assert batch.indices == [None]
    (image,) = batch.images
    return image[..., 0] if image.shape[2] == 1 else image


def read_error(path):
    (error,) = read(path)
    assert isinstance(error, InputError), error
    assert "\n" not in str(error)
    assert str(error).startswith(f"{os.fspath(path)!r}: ")
    return str(error)


def save(pixels, path, **options):
    Image.fromarray(pixels).save(path, **options)
    return path


def png_bytes(width, height, *, pixels=b"", depth=8):
    def chunk(kind, data):
        checksum = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + checksum

    header = struct.pack(">IIBBBBB", width, height, depth, 0, 0, 0, 0)
    data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(pixels))
    return b"\x89PNG\r\n\x1a\n" + data + chunk(b"IEND", b"")


def tiff_bytes(width, height, *, bits, kind):
    size = width * height * bits // 8
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: 1, 273: 134, 277: 1}
    tags |= {278: height, 279: size, 339: kind}
    entries = [struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items()]
    directory = struct.pack("<4sIH", b"II*\0", 8, len(tags)) + b"".join(entries)
    return directory + bytes(4 + size)


def idx_bytes(*shape, data):
    return struct.pack(f">HBB{len(shape)}I", 0, 8, len(shape), *shape) + data


def npy_bytes(array):
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


# Pictures.


@pytest.mark.parametrize("pixels", [GREY, COLOUR], ids=["grey", "colour"])
@pytest.mark.parametrize("suffix", ["png", "bmp", "ppm", "tiff", "webp", "jpg"])
def test_formats(tmp_path, suffix, pixels):
    soft = pixels // 4  # JPEG rounds hard contrasts
    options = {"webp": {"lossless": True}, "jpg": {"quality": 100, "subsampling": 0}}
    found = read_one(save(soft, tmp_path / f"a.{suffix}", **options.get(suffix, {})))
    if found.ndim > soft.ndim:  # WebP has no grey
        assert suffix == "webp"
        found = found[..., 0]
    np.testing.assert_allclose(found, soft, atol=4 if suffix == "jpg" else 0)


def test_content_decides_not_the_name(tmp_path):
    path = tmp_path / "a.npy"
    save(GREY, path, format="PNG")
    np.testing.assert_array_equal(read_one(path), GREY)


def test_one_bit_palette_and_sixteen_bits(tmp_path):
    black_and_white = Image.fromarray(GREY).convert("1")
    black_and_white.save(tmp_path / "1.png")
    found = read_one(tmp_path / "1.png")
    np.testing.assert_array_equal(found, np.asarray(black_and_white) * 255)

    palette = Image.fromarray(COLOUR).quantize(64)
    palette.save(tmp_path / "p.gif")
    found = read_one(tmp_path / "p.gif")
    np.testing.assert_array_equal(found, np.asarray(palette.convert("RGB")))

    deep = GREY.astype(np.uint16) * 257
    np.testing.assert_array_equal(read_one(save(deep, tmp_path / "16.png")), GREY)
    np.testing.assert_array_equal(read_one(save(deep, tmp_path / "16.tiff")), GREY)
    close = read_one(
        save(np.where(deep < 65000, deep + 100, deep), tmp_path / "up.png")
    )
    np.testing.assert_array_equal(close, GREY)

    assert "floats" in read_error(save(GREY.astype(np.float32), tmp_path / "f.tiff"))


@pytest.mark.parametrize(
    ("bits", "kind", "found"),
    [
        (32, 2, "32 bits, signed"),
        (32, 1, "32 bits, unsigned"),
        (16, 2, "16 bits, signed"),
        (12, 1, "12 bits, unsigned"),
    ],
)
def test_integers_without_a_known_white_are_refused(tmp_path, bits, kind, found):
    (tmp_path / "a.tiff").write_bytes(tiff_bytes(30, 20, bits=bits, kind=kind))
    error = read_error(tmp_path / "a.tiff")
    assert f"found pixels of {found}, expected 8 or 16 bits, unsigned" in error


def test_grey_map_is_as_bright_as_its_maximum_says(tmp_path):
    path = tmp_path / "a.pgm"
    levels = (GREY.astype(np.uint16) * 4).astype(">u2")
    path.write_bytes(b"P5 30 20 1020\n" + levels.tobytes())
    np.testing.assert_array_equal(read_one(path), GREY)


@pytest.mark.parametrize("has_colour", [False, True])
@pytest.mark.parametrize(("ink", "paper"), [(0, 255), (255, 0), (90, 255), (200, 0)])
def test_transparent_pictures_lie_on_paper_that_shows_the_ink(
    tmp_path, ink, paper, has_colour
):
    alpha = np.zeros((20, 30), np.uint8)
    alpha[5:9, 7:20] = 255
    alpha[5, 7] = 128
    channels = [np.full_like(alpha, ink)] * (3 if has_colour else 1)
    path = save(np.stack([*channels, alpha], axis=-1), tmp_path / "a.png")
    expected = np.rint(paper + (ink - paper) * (alpha / 255))
    found = read_one(path)
    np.testing.assert_allclose(found[..., 0], expected, atol=1)
    np.testing.assert_allclose(found[..., 2], expected, atol=1)


def test_opaque_alpha_changes_nothing(tmp_path):
    opaque = np.dstack([COLOUR, np.full((20, 30), 255, np.uint8)])
    np.testing.assert_array_equal(read_one(save(opaque, tmp_path / "a.png")), COLOUR)


@pytest.mark.parametrize(
    ("orientation", "upright"),
    [
        (1, lambda a: a),
        (2, np.fliplr),
        (3, lambda a: np.rot90(a, 2)),
        (4, np.flipud),
        (5, np.transpose),
        (6, lambda a: np.rot90(a, -1)),
        (7, lambda a: np.rot90(a.T, 2)),
        (8, np.rot90),
    ],
)
@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_orientation_that_a_camera_noted(tmp_path, suffix, orientation, upright):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(GREY, tmp_path / f"a.{suffix}", exif=exif)
    np.testing.assert_array_equal(read_one(path), upright(GREY))


def test_first_frame_of_an_animation(tmp_path):
    frames = [Image.fromarray(f) for f in (GREY, 255 - GREY)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    found = read_one(tmp_path / "a.gif")
    np.testing.assert_array_equal(found.reshape(20, 30, -1)[..., 0], GREY)


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_photographs_are_scaled_down_evenly(tmp_path, suffix):
    ramp = np.linspace(0, 255, 5000).astype(np.uint8)[np.newaxis].repeat(4000, axis=0)
    found = read_one(save(ramp, tmp_path / f"a.{suffix}"))
    height, width = found.shape
    assert 1024 <= height < 2048
    assert width == pytest.approx(1.25 * height, abs=1)
    np.testing.assert_allclose(found[500], np.linspace(0, 255, width), atol=2)


# Bad pictures.


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"x", "found 0x78 at its start, expected a picture (PNG, "),
        (b"hello, world", "found 0x68656c6c at its start"),
        (b"\x89PNG\r\n\x1a\n", "found 0x89504e47 at its start"),
        (b"PK\3\4" + bytes(50), "found 0x504b0304 at its start"),
        (b"%PDF-1.4", "found 0x25504446"),
        (png_bytes(28, 28, pixels=bytes(100)), "cannot be read (image file is trunc"),
        (png_bytes(0, 28), "found 0x89504e47 at its start"),
        (png_bytes(60000, 60000), "cannot be read (Image size (3600000000 pixels)"),
        (png_bytes(9000, 9000), "found 9000x9000 pixels, expected at most 67108864"),
        (png_bytes(2**31 - 1, 2**31 - 1), "cannot be read (Image size"),
        (b"P5 9000 9000 255 ", "found 9000x9000 pixels"),
    ],
)
def test_bad_pictures(tmp_path, content, message):
    path = tmp_path / "a.png"
    path.write_bytes(content)
    assert message in read_error(path)


def test_missing_file_folder_pipe_and_nul(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert "No such file" in read_error(tmp_path / "no")
    assert "expected a regular file" in read_error(tmp_path / "pipe")
    assert "embedded null" in read_error("a\0b")  # byte, or character from 3.12 on
    assert "Too many levels" in read_error(link(tmp_path / "loop", tmp_path / "loop"))


def link(path, target):
    path.symlink_to(target)
    return path


def test_too_many_bytes_are_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(decoding, "MAX_ENCODED_BYTES", 1000)
    path = tmp_path / "a.bmp"
    path.write_bytes(bytes(1_000_000))
    assert "found more than 1000 bytes" in read_error(path)


def test_one_flipped_bit_in_a_png_is_never_silent(tmp_path, mnist):
    path = save(mnist.test.images[0, :, :, 0], tmp_path / "a.png")
    content = path.read_bytes()
    num_refused = 0
    for position in range(8 * len(content)):
        damaged = bytearray(content)
        damaged[position // 8] ^= 1 << position % 8
        path.write_bytes(damaged)
        (found,) = read(path, num_threads=1)
        if isinstance(found, InputError):
            num_refused += 1
        else:
            np.testing.assert_array_equal(found.images[0], mnist.test.images[0])
    assert num_refused > 0.9 * 8 * len(content)


def encoded_samples():
    image = Image.fromarray(COLOUR)
    for file_format in decoding.FORMATS:
        stream = io.BytesIO()
        image.save(stream, file_format)
        yield stream.getvalue()
    yield npy_bytes(COLOUR)
    yield idx_bytes(1, 20, 30, data=GREY.tobytes())
    yield gzip.compress(idx_bytes(1, 20, 30, data=GREY.tobytes()), mtime=0)


SAMPLES = list(encoded_samples())


@given(
    sample=st.sampled_from(SAMPLES),
    seed=st.integers(0, 2**32),
    num_changes=st.integers(0, 8),
    length=st.floats(0, 1),
    is_cut=st.booleans(),
)
@settings(deadline=None, max_examples=300)
@pytest.mark.filterwarnings("ignore:::PIL")
def test_damaged_files_are_pixels_or_one_line(
    tmp_path_factory, sample, seed, num_changes, length, is_cut
):
    draw = random.Random(seed)
    damaged = bytearray(sample[: int(length * len(sample))] if is_cut else sample)
    for _ in range(num_changes if damaged else 0):
        # Headers matter most.
        last = draw.choice([min(64, len(damaged)), len(damaged)]) - 1
        damaged[draw.randint(0, last)] = draw.randrange(256)
    path = tmp_path_factory.getbasetemp() / "damaged"
    path.write_bytes(damaged)
    for found in read(path, num_threads=1):
        if isinstance(found, InputError):
            assert "\n" not in str(found)
        else:
            assert found.images.dtype == np.uint8
            assert found.images.ndim == 4
            assert found.images.shape[3] in (1, 3)


# Arrays.

IMAGES = RNG.integers(0, 256, (1000, 5, 4), dtype=np.uint8)
ARRAYS = {
    "npy": npy_bytes(IMAGES),
    "npy with channel": npy_bytes(IMAGES[..., np.newaxis]),
    "idx": idx_bytes(1000, 5, 4, data=IMAGES.tobytes()),
    "idx with channel": idx_bytes(1000, 5, 4, 1, data=IMAGES.tobytes()),
    "gzip": gzip.compress(idx_bytes(1000, 5, 4, data=IMAGES.tobytes())),
}


@pytest.mark.parametrize("kind", ARRAYS)
@pytest.mark.parametrize("images_per_batch", [1, 64, 1000, 5000])
def test_arrays_come_in_pieces_and_in_order(tmp_path, kind, images_per_batch):
    path = tmp_path / "array"
    path.write_bytes(ARRAYS[kind])
    batches = read(path, path, images_per_batch=images_per_batch)
    assert all(len(b.files) >= images_per_batch for b in batches[:-1])
    assert all(len(b.files) == len(b.indices) == len(b.images) for b in batches)
    assert max(len(b.files) for b in batches) < 2 * images_per_batch
    assert [i for b in batches for i in b.indices] == 2 * list(range(1000))
    assert {f for b in batches for f in b.files} == {str(path)}
    found = np.concatenate([b.images for b in batches])
    np.testing.assert_array_equal(
        found, np.concatenate([IMAGES, IMAGES])[..., np.newaxis]
    )


@pytest.mark.parametrize("pixels", [GREY, COLOUR], ids=["grey", "colour"])
def test_npy_of_one_picture(tmp_path, pixels):
    np.save(tmp_path / "a.npy", pixels)
    (batch,) = read(tmp_path / "a.npy")
    assert batch.indices == [0]
    np.testing.assert_array_equal(batch.images[0].squeeze(), pixels)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.array([{}]), "found pickled Python objects, never loaded"),
        (GREY.astype(np.float32), "found float32 of shape (20, 30), expected images"),
        (GREY.astype(np.int64), "found int64"),
        (GREY > 9, "found bool"),
        (GREY[0], "found uint8 of shape (30,)"),
        (np.uint8(1), "found uint8 of shape ()"),
        (np.zeros((2, 3, 4, 4), np.uint8), "found uint8 of shape (2, 3, 4, 4)"),
        (np.zeros((0, 3, 4), np.uint8), "found uint8 of shape (0, 3, 4)"),
        (np.asfortranarray(GREY), "found values in Fortran order, expected C order"),
        (np.zeros(2, [("a", np.uint8)]), "of shape (2,)"),
    ],
)
def test_arrays_of_something_else(tmp_path, array, message):
    np.save(tmp_path / "a.npy", array, allow_pickle=True)
    assert message in read_error(tmp_path / "a.npy")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (idx_bytes(9, data=bytes(9)), "found shape (9,), expected images of shape (n,"),
        (idx_bytes(2, 3, 4, 4, data=bytes(96)), "found shape (2, 3, 4, 4)"),
        (idx_bytes(1, 9000, 9000, data=b""), "found 9000x9000 pixels"),
        (b"\0\0\x0d\3" + bytes(20), "found values of type float32"),
        (b"\0\0\x08\5" + bytes(20), "not an IDX file of unsigned bytes"),
        (b"\x1f\x8bhello", "damaged gzip data"),
        (b"\x93NUMPY", "not an array in .npy format"),
        (b"\x93NUMPY\1\0\x0a\0{'descr': ", "not an array in .npy format"),
        (npy_bytes(GREY).replace(b"(20, 30)", b"(-2, 30)"), "found uint8 of shape (-2"),
    ],
)
def test_bad_headers_of_arrays(tmp_path, content, message):
    path = tmp_path / "a"
    path.write_bytes(content)
    assert message in read_error(path)


@pytest.mark.parametrize("kind", ["npy", "idx"])
def test_array_cut_short_gives_what_is_whole_and_an_error(tmp_path, kind):
    path = tmp_path / "cut"
    path.write_bytes(ARRAYS[kind][: -20 * 300 - 3])
    *found, error = read(path, images_per_batch=100)
    assert "too short: found 699 whole images, the header claims 1000" in str(error)
    np.testing.assert_array_equal(
        np.concatenate([b.images for b in found]), IMAGES[:699, ..., np.newaxis]
    )


@pytest.mark.parametrize("kind", ARRAYS)
def test_damage_behind_the_images_is_reported_too(tmp_path, kind):
    path = tmp_path / "array"
    content = ARRAYS[kind]
    path.write_bytes(content[:-8] + b"damaged!" if kind == "gzip" else content + b"x")
    batch, error = read(path, images_per_batch=1000)
    assert len(batch.files) == 1000
    expected = "damaged gzip data (CRC" if kind == "gzip" else "trailing bytes after"
    assert expected in str(error)


@pytest.mark.parametrize("compress", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_memory_does_not_grow_with_the_array_nor_with_what_it_claims(
    tmp_path, compress
):
    content = idx_bytes(2**32 - 1, 28, 28, data=bytes(64 * MEBIBYTE))
    (tmp_path / "large").write_bytes(compress(content))
    del content
    num_images = 0
    tracemalloc.start()
    for found in read_batches(
        [str(tmp_path / "large")], prepare=as_is, images_per_batch=256, num_threads=2
    ):
        if isinstance(found, Batch):
            num_images += len(found.files)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert num_images == 64 * MEBIBYTE // 784
    assert "the header claims 4294967295" in str(found)
    assert peak < 8 * MEBIBYTE


# Many files.


def test_files_come_in_order_with_their_errors(tmp_path):
    files = []
    for number in range(300):
        files.append(tmp_path / f"{number}")
        if number % 7 == 0:
            files[-1].write_bytes(b"bad")
        else:
            save(np.full((2, 2), number % 256, np.uint8), files[-1], format="PNG")
    passed_on = InputError("passed on")
    found = read(
        *files[:150], passed_on, *files[150:], images_per_batch=1, num_threads=4
    )
    assert len(found) == 301
    assert found[150] is passed_on
    for number, item in zip(range(300), found[:150] + found[151:], strict=True):
        if number % 7 == 0:
            assert isinstance(item, InputError)
            assert f"/{number}'" in str(item)
        else:
            assert item.files == [str(files[number])]
            assert (item.images == number % 256).all()


def test_errors_of_preparing_are_the_files(tmp_path):
    def refuse(images, *, name):
        raise InputError(f"{name}: refused")

    save(GREY, tmp_path / "a.png")
    np.save(tmp_path / "a.npy", GREY)
    for path in (tmp_path / "a.png", tmp_path / "a.npy"):
        assert [str(e) for e in read(path, prepare=refuse)] == [
            f"{str(path)!r}: refused"
        ]


def test_large_pictures_are_decoded_at_the_same_time(tmp_path):
    """Each of two threads waits until the other has a picture, too."""
    both = threading.Barrier(2)

    def wait(images, *, name):
        both.wait(timeout=20)
        return as_is(images, name=name)

    paths = [save(GREY, tmp_path / f"{n}.png") for n in range(4)]
    assert all(isinstance(b, Batch) for b in read(*paths, prepare=wait, num_threads=2))


def test_endless_files_are_read_only_a_little_ahead(tmp_path):
    path = str(save(GREY, tmp_path / "a.png"))
    taken = itertools.count()
    batches = read_batches(
        (path for _ in taken), prepare=as_is, images_per_batch=10, num_threads=2
    )
    for _ in range(100):
        assert len(next(batches).files) == 10
    batches.close()
    assert next(taken) < 1000 + 200


# Standard input.


@pytest.fixture
def standard_input(monkeypatch):
    reader, writer = os.pipe()
    buffer = os.fdopen(reader, "rb")
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=buffer))

    def give(content, pause=0.0):
        def write():
            with os.fdopen(writer, "wb", buffering=0) as pipe:
                if pause:
                    for byte in content[:5]:
                        pipe.write(bytes([byte]))
                        time.sleep(pause)
                pipe.write(content[5:] if pause else content)

        thread = threading.Thread(target=write)
        thread.start()
        return thread

    yield give
    buffer.close()


@pytest.mark.parametrize("kind", ARRAYS)
def test_array_from_standard_input(standard_input, kind):
    writing = standard_input(ARRAYS[kind])
    batches = read("-", images_per_batch=300)
    writing.join()
    assert {f for b in batches for f in b.files} == {"-"}
    assert [i for b in batches for i in b.indices] == list(range(1000))
    found = np.concatenate([b.images for b in batches])
    np.testing.assert_array_equal(found[..., 0], IMAGES)


@pytest.mark.parametrize("pause", [0, 0.01])
def test_picture_from_standard_input(standard_input, tmp_path, pause):
    content = save(GREY, tmp_path / "a.png").read_bytes()
    writing = standard_input(content, pause)
    np.testing.assert_array_equal(read_one("-"), GREY)
    writing.join()


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "standard input: found nothing"), (b"x", "standard input: found 0x78")],
)
def test_bad_standard_input(standard_input, content, message):
    standard_input(content).join()
    (error,) = read("-")
    assert str(error).startswith(message)


# Folders.


def test_folders_in_the_order_of_names_without_what_is_hidden(tmp_path):
    for name in ["b/2.png", "b/10.png", "a/x", "a/.hidden", ".git/x", "z", "b/c/d/e"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    link(tmp_path / "b" / "up", tmp_path)  # would be a loop
    link(tmp_path / "a" / "y", tmp_path / "z")
    found = list(find_files([str(tmp_path), "no/such", "-"]))
    names = ["z", "a/x", "a/y", "b/10.png", "b/2.png", "b/c/d/e"]
    assert found == [*(f"{tmp_path}/{name}" for name in names), "no/such", "-"]


def test_folder_without_files_is_an_error(tmp_path):
    (error,) = find_files([str(tmp_path)])
    assert str(error) == f"{str(tmp_path)!r}: found no files in this folder"
