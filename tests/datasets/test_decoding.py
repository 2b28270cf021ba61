import re
import threading

import cv2
import numpy as np
import pytest
import simplejpeg
from datasets.pictures import BROKEN, CMYK_JPEG, decoded, face, jpeg, png, png_bomb, with_orientation
from hypothesis import example, given, settings
from hypothesis import strategies as st

from towers.datasets import decoding
from towers.datasets.decoding import BadPicture, Header, Quarantine, decode, fit, read_header, turned
from towers.datasets.folder import PathSource
from towers.errors import BadData

ORIENTATIONS = {
    1: lambda p: p,
    2: lambda p: p[:, ::-1],
    3: lambda p: p[::-1, ::-1],
    4: lambda p: p[::-1],
    5: lambda p: p.transpose(1, 0, 2),
    6: lambda p: np.rot90(p, -1),
    7: lambda p: p[::-1, ::-1].transpose(1, 0, 2),
    8: lambda p: np.rot90(p),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_pictures_are_refused(name):
    with pytest.raises(BadPicture) as error:
        decoded(BROKEN[name])
    assert str(error.value)
    assert "\n" not in str(error.value)


def test_bombs_are_refused_by_their_header(monkeypatch):
    monkeypatch.setattr(cv2, "imdecode", lambda *_: pytest.fail("decoded"))
    monkeypatch.setattr(simplejpeg, "decode_jpeg", lambda *_, **__: pytest.fail("decoded"))
    assert len(png_bomb()) < 200
    for bomb in (png_bomb(), BROKEN["JPEG bomb"]):
        with pytest.raises(BadPicture, match="30000 x 30000 pixels, more than 16000000"):
            decoded(bomb)
    with pytest.raises(BadPicture, match="16777217 bytes, more than"):
        decoded(b"\xff\xd8\xff" + bytes(16 * 2**20 - 2))


def test_a_jpeg_of_endless_scans_is_refused():
    progressive = jpeg(face(0), cv2.IMWRITE_JPEG_PROGRESSIVE, 1)
    assert decoded(progressive).shape == (16, 16, 3)
    last = progressive.rindex(b"\xff\xda")
    with pytest.raises(BadPicture, match="more than 100 scans"):
        read_header(progressive[:last] + progressive[last:-2] * 101 + b"\xff\xd9")


def test_sizes_are_read_from_headers():
    colour = jpeg(face(0, 20, 30))
    for plain in (colour, jpeg(face(0, 20, 30)[..., 0])):
        assert read_header(plain) == Header(20, 30, is_jpeg=True, is_plain_jpeg=True)
    for encoded in (
        jpeg(face(0, 20, 30), cv2.IMWRITE_JPEG_PROGRESSIVE, 1),
        with_orientation(colour, 6),
        colour + b"trailing",
    ):
        assert read_header(encoded) == Header(20, 30, is_jpeg=True)
    assert read_header(cv2.imencode(".png", face(0, 20, 30))[1].tobytes()) == Header(20, 30, is_jpeg=False)
    assert read_header(CMYK_JPEG) == Header(16, 16, is_jpeg=True)


def test_bytes_after_the_end_are_accepted():
    colour = jpeg(face(3))
    assert np.array_equal(decoded(colour + b"appended by a camera"), decoded(colour))


def test_fill_bytes_between_segments_are_accepted():
    colour = jpeg(face(3))
    assert read_header(colour[:2] + b"\xff\xff" + colour[2:]) == Header(16, 16, True, True)


def test_a_cut_picture_with_a_whole_thumbnail_is_refused():
    thumbnail = b"\xff\xe1" + (2 + 6 + 4).to_bytes(2, "big") + b"Other\0" + b"\xff\xd8\xff\xd9"
    whole = jpeg(face(4))
    with pytest.raises(BadPicture, match="cut: JPEG without an end marker"):
        read_header(whole[:2] + thumbnail + whole[2:-10])


def test_a_cut_picture_with_a_whole_thumbnail_behind_its_frame_is_refused():
    thumbnail = b"\xff\xe1" + (2 + 6 + 4).to_bytes(2, "big") + b"Other\0" + b"\xff\xd8\xff\xd9"
    whole = jpeg(face(4))
    scan = whole.index(b"\xff\xda")
    assert read_header(whole[:scan] + thumbnail + whole[scan:] + b"trailing") == Header(16, 16, is_jpeg=True)
    with pytest.raises(BadPicture, match="cut: JPEG without an end marker"):
        read_header(whole[:scan] + thumbnail + whole[scan:-10])


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_exif_orientation_is_applied(orientation):
    encoded = jpeg(face(5, 16, 24))
    expected = ORIENTATIONS[orientation](decoded(encoded))
    assert np.array_equal(decoded(with_orientation(encoded, orientation)), expected)


@pytest.mark.parametrize("own", [None, 3, 6])
@pytest.mark.parametrize(("degrees", "quarters"), [(0, 0), (90, -1), (180, 2), (270, 1)])
def test_a_turn_is_of_the_stored_pixels_and_loses_nothing(own, degrees, quarters):
    stored = jpeg(face(5, 16, 24))
    other = b"\xff\xe1\x00\x08xmp..."[:10]
    stored = stored[:2] + other + stored[2:]
    encoded = stored if own is None else with_orientation(stored, own)
    result = turned(encoded, degrees)
    assert np.array_equal(decoded(result), np.rot90(decoded(stored), quarters))
    assert other in result
    if not degrees:
        assert result == stored


def test_what_cannot_be_turned():
    with pytest.raises(BadPicture, match="only a JPEG can be turned"):
        turned(cv2.imencode(".png", face(2))[1].tobytes(), 90)


@pytest.mark.parametrize("name", [name for name in BROKEN if not BROKEN[name].startswith(b"\x89PNG")])
def test_broken_pictures_are_refused_when_turned(name):
    encoded = turned(BROKEN[name], 90)
    with pytest.raises(BadPicture):
        decoded(encoded)


def test_cmyk():
    picture = decoded(CMYK_JPEG)
    for column, (cyan, magenta, yellow, black) in ((0, (200, 40, 10, 30)), (15, (20, 150, 90, 100))):
        expected = [(255 - ink) * (255 - black) / 255 for ink in (cyan, magenta, yellow)]
        assert np.abs(picture[0, column] - expected).max() <= 2


def test_grey_jpeg_and_png_are_repeated():
    grey = face(6)[..., 0]
    exact = decoded(cv2.imencode(".png", grey)[1].tobytes())
    assert np.array_equal(exact, np.repeat(grey[..., None], 3, axis=-1))
    close = decoded(jpeg(grey))
    assert np.array_equal(close[..., 0], close[..., 2])
    assert np.abs(close.astype(int) - exact).max() < 12


def test_sixteen_bits_keep_the_upper_eight():
    deep = np.random.default_rng(0).integers(0, 65536, (9, 7, 3), np.uint16)
    rows = [row.astype(">u2").tobytes() for row in deep]
    assert np.array_equal(decoded(png(9, 7, 16, 2, rows)), deep >> 8)
    grey = [row[:, 0].astype(">u2").tobytes() for row in deep]
    assert np.array_equal(decoded(png(9, 7, 16, 0, grey))[..., 1], deep[..., 0] >> 8)


def test_alpha_is_dropped():
    clear = np.random.default_rng(0).integers(0, 256, (9, 7, 4), np.uint8)
    assert np.array_equal(decoded(png(9, 7, 8, 6, [row.tobytes() for row in clear])), clear[..., :3])
    grey = decoded(png(9, 7, 8, 4, [row[:, :2].tobytes() for row in clear]))
    assert np.array_equal(grey, np.repeat(clear[..., :1], 3, axis=-1))


def test_palettes_and_single_bits():
    palette = np.random.default_rng(0).integers(0, 256, (4, 3), np.uint8)
    index = np.random.default_rng(1).integers(0, 4, (6, 8), np.uint8)
    assert np.array_equal(decoded(png(6, 8, 8, 3, [row.tobytes() for row in index], palette.tobytes())), palette[index])
    bits = index % 2
    assert np.array_equal(decoded(png(6, 8, 1, 0, [np.packbits(row).tobytes() for row in bits]))[..., 0], bits * 255)


def test_fit_cuts_the_centre_and_shrinks_by_area():
    picture = np.random.default_rng(0).integers(0, 256, (8, 14, 3), np.uint8)
    expected = picture[:, 3:11].reshape(4, 2, 4, 2, 3).mean(axis=(1, 3))
    assert np.abs(fit(picture, 4) - expected).max() <= 0.51
    tall = picture.transpose(1, 0, 2)
    assert np.array_equal(fit(tall, 8), tall[3:11])
    assert fit(picture, 20).shape == (20, 20, 3)
    assert fit(np.zeros((1, 100_000, 3), np.uint8), 64).shape == (64, 64, 3)


def test_enlarging_is_bilinear():
    picture = np.zeros((2, 2, 3), np.uint8)
    picture[:, 1] = 200
    assert fit(picture, 4)[0, :, 0].tolist() == [0, 50, 150, 200]


@settings(max_examples=100, deadline=None)
@given(
    place=st.integers(0, 10**6), change=st.binary(min_size=1, max_size=8), kind=st.sampled_from(["jpeg", "png", "cmyk"])
)
def test_damaged_bytes_give_a_picture_or_a_reason(place, change, kind):
    whole = {"jpeg": jpeg(face(1)), "png": cv2.imencode(".png", face(1))[1].tobytes(), "cmyk": CMYK_JPEG}[kind]
    place %= len(whole)
    damaged = whole[:place] + change + whole[place + len(change) :]
    try:
        picture = decoded(damaged)
    except BadPicture:
        return
    assert picture.dtype == np.uint8
    assert picture.ndim == 3


def test_quarantine_counts_distinct_records_and_names_the_first_ten():
    quarantine = Quarantine(PathSource([f"dir/{record}.jpg" for record in range(1000)]))
    quarantine.check(0.0)
    for record in (7, 7, 7):
        quarantine.add(record, "empty")
    quarantine.check()
    assert quarantine.bad == {7: "empty"}
    for record in range(20, 40):
        quarantine.add(record, "cut")
    with pytest.raises(BadData, match=r"21 of 1000 pictures \(2.100%\) cannot be read, 0.100% are allowed") as error:
        quarantine.check()
    assert error.value.exit_code == 65
    assert str(error.value).count("dir/") == 10
    assert "dir/7.jpg (empty), dir/20.jpg (cut)" in str(error.value)
    assert "dir/29.jpg" not in str(error.value)
    quarantine.check(0.021)


def test_quarantine_keeps_the_first_failure():
    quarantine = Quarantine(PathSource(["a.jpg"]))
    quarantine.fail(BadData("first"))
    quarantine.fail(BadData("second"))
    with pytest.raises(BadData, match="first"):
        quarantine.check(1.0)


def test_quarantine_may_be_filled_by_many_threads():
    quarantine = Quarantine(PathSource(["x"] * 4000))
    threads = [
        threading.Thread(target=lambda first=first: [quarantine.add(first + i, "cut") for i in range(500)])
        for first in range(0, 4000, 500)
    ]
    for thread in threads:
        thread.start()
    for _ in range(20):
        quarantine.check(1.0)
    for thread in threads:
        thread.join()
    assert len(quarantine.bad) == 4000


SUBSAMPLINGS = [getattr(cv2, f"IMWRITE_JPEG_SAMPLING_FACTOR_{name}") for name in ("411", "420", "422", "440", "444")]


@settings(max_examples=150, deadline=None)
@given(
    height=st.integers(1, 50),
    width=st.integers(1, 50),
    quality=st.integers(1, 100),
    subsampling=st.sampled_from(SUBSAMPLINGS),
    grey=st.booleans(),
    damage=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=3),
)
# A Huffman table that OpenCV refuses, in a scan that begins with the second coefficient.
@example(height=22, width=29, quality=46, subsampling=SUBSAMPLINGS[0], grey=False, damage=[(198, 16), (620, 1)])
def test_plain_jpegs_have_the_pixels_of_opencv_also_where_they_are_damaged(
    height, width, quality, subsampling, grey, damage
):
    picture = face(height * 50 + width, height, width)
    settings = [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, subsampling]
    encoded = bytearray(jpeg(picture[..., 0] if grey else picture, *settings))
    assert read_header(bytes(encoded)) == Header(height, width, is_jpeg=True, is_plain_jpeg=True)
    for place, value in damage:
        encoded[place % len(encoded)] = value
    try:
        header = read_header(bytes(encoded))
    except BadPicture:
        return
    expected = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR_RGB)
    if expected is None:
        with pytest.raises(BadPicture, match="does not decode"):
            decode(bytes(encoded), header)
    else:
        assert np.array_equal(decode(bytes(encoded), header), expected)


@pytest.mark.parametrize("grey", [False, True])
@pytest.mark.parametrize("common", [False, True])
def test_a_jpeg_whose_scan_is_not_of_all_coefficients_is_not_plain(common, grey):
    picture = face(1, 16, 16)
    encoded = jpeg(picture[..., 0] if grey else picture)
    if not common:
        encoded = encoded[:2] + b"\xff\xfe\0\x05abc" + encoded[2:]
    scan = encoded.index(b"\xff\xda")
    place = scan + 2 + encoded[scan + 3] - 3
    assert encoded[place : place + 3] == b"\0\x3f\0"
    assert read_header(encoded).is_plain_jpeg
    for which, value in ((0, 1), (1, 62), (2, 1)):
        damaged = bytearray(encoded)
        damaged[place + which] = value
        assert read_header(bytes(damaged)) == Header(16, 16, is_jpeg=True, is_plain_jpeg=False)


def test_a_plain_jpeg_is_decoded_where_it_shall_lie():
    for side, in_place in ((16, True), (12, False), (20, False)):
        encoded, place = jpeg(face(1, side, side)), np.full((16, 16, 3), 7, np.uint8)
        picture = decode(encoded, read_header(encoded), place)
        assert (picture is place) == in_place
        assert np.array_equal(picture, decoded(encoded))
        assert in_place or (place == 7).all()


@pytest.mark.parametrize("side", [12, 20])
def test_a_plain_jpeg_of_another_size_than_its_header_said_is_not_taken(side):
    """Else the rest of its place would be another picture's."""
    encoded = jpeg(face(1, side, side))
    place = np.full((16, 16, 3), 7, np.uint8)
    picture = decode(encoded, Header(16, 16, is_jpeg=True, is_plain_jpeg=True), place)
    assert picture is not place
    assert picture.shape == (side, side, 3)


@settings(max_examples=300, deadline=None)
@given(
    grey=st.booleans(),
    damage=st.lists(st.tuples(st.integers(0, 700), st.integers(0, 255)), max_size=2),
    cut=st.integers(0, 3),
)
def test_the_common_header_is_told_as_segment_by_segment(grey, damage, cut):
    picture = face(7)
    encoded = bytearray(jpeg(picture[..., 0] if grey else picture))
    for place, value in damage:
        encoded[place % len(encoded)] = value
    encoded = bytes(encoded[: len(encoded) - cut])

    def answer():
        try:
            return read_header(encoded)
        except BadPicture as error:
            return str(error)

    at_once = answer()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoding, "_COMMON_JPEG", re.compile(b"(?!)"))
        assert answer() == at_once


def test_what_libjpeg_writes_is_told_at_once(monkeypatch):
    monkeypatch.setattr(decoding, "_find_segment", lambda *_: pytest.fail("segment by segment"))
    for picture in (face(1), face(1)[..., 0]):
        assert read_header(jpeg(picture)).is_plain_jpeg
