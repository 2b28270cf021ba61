"""Encoded pictures of every kind, made by hand where OpenCV cannot write them."""

import base64
import struct
import zlib

import cv2
import numpy as np

from towers.datasets.decoding import decode, read_header

# 16 x 16, left half C 200 M 40 Y 10 K 30, right half C 20 M 150 Y 90 K 100, stored inverted as Adobe does.
CMYK_JPEG = base64.b85decode(
    "|JeWT01iQ9Z(?NtWB>pF0095n07C!*0RaI40RjO50RjR70s;gB0s;a81q1{G1O^2L1_lKN1_lQS2nGiU2L=WR3kV4c3JMAe1_%ob3knPg3JMDUzyK5o01"
    "yBW1Va%3O%VWD5dcdO0RO}Q6#xMN000000000000000000RJ|HJ?k5CH%H0000000000000000095m01gC008Ic{080P>KL9q$;nXmS&<NuEbELf76ap"
    "}<0FE!mJO9}"
)


def face(seed, height=16, width=16):
    """A smooth random picture: uint8 RGB [height, width, 3]."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR)


def jpeg(picture, *options):
    """RGB or grey to a JPEG at quality 95; options as cv2.imencode takes them."""
    return cv2.imencode(".jpg", picture[..., ::-1] if picture.ndim == 3 else picture, [1, 95, *options])[1].tobytes()


def png(height, width, bits, colour_type, rows, palette=b""):
    """A PNG of the raw rows given (each without its filter byte)."""
    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row for row in rows))
    chunks = [(b"IHDR", header), *([(b"PLTE", palette)] if palette else []), (b"IDAT", data), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks
    )


def png_bomb(side=30_000):
    """A PNG of side x side pixels in about a hundred bytes."""
    return png(side, side, 8, 2, [b"\0" * 3000])


def with_orientation(encoded, orientation):
    """The JPEG with an EXIF block that holds only this orientation, 1 to 8."""
    entry = struct.pack("<HHIHH", 0x0112, 3, 1, orientation, 0)
    tiff = b"II*\0" + struct.pack("<IH", 8, 1) + entry + struct.pack("<I", 0)
    segment = b"Exif\0\0" + tiff
    return encoded[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + encoded[2:]


def broken_pictures():
    """Name -> bytes that must be refused."""
    whole = jpeg(face(1))
    whole_png = cv2.imencode(".png", face(2))[1].tobytes()
    frame = whole.index(b"\xff\xc0")
    scan = whole.index(b"\xff\xda")
    huffman = whole.index(b"\xff\xc4")
    return {
        "empty": b"",
        "half a JPEG": whole[: len(whole) // 2],
        "JPEG without its last byte": whole[:-1],
        "JPEG cut in its header": whole[:100],
        "only the magic": whole[:3],
        "JPEG without a frame": whole[:frame] + whole[scan:],
        "JPEG of broken tables": whole[: huffman + 5] + b"\xff" * 16 + whole[huffman + 21 :],
        "JPEG of height 0": whole[: frame + 5] + b"\0\0" + whole[frame + 7 :],
        "HTML page": b"<!DOCTYPE html><html><body>404 Not Found</body></html>" * 20,
        "GIF": b"GIF89a" + bytes(40),
        "half a PNG": whole_png[: len(whole_png) // 2],
        "PNG without its end": whole_png[:-12],
        "PNG header only": whole_png[:20],
        "PNG of broken data": whole_png[:60] + bytes(20) + whole_png[80:],
        "PNG bomb": png_bomb(),
        "JPEG bomb": whole[: frame + 5] + struct.pack(">HH", 30_000, 30_000) + whole[frame + 9 :],
        "zeros": bytes(5000),
    }


BROKEN = broken_pictures()


def decoded(encoded: bytes) -> np.ndarray:
    """uint8 RGB [H, W, 3] of a picture whose header is sound; BadPicture."""
    return decode(encoded, read_header(encoded))
