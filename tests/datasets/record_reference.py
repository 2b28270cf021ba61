"""A slow reader and writer of `.rec`, straight from the format's description, and pictures to put into one."""

import struct

MAGIC = b"\x0a\x23\xd7\xce"


def read_all(data):
    """(place, payload) of every record of a `.rec`, one after the other."""
    records, place = [], 0
    while place < len(data):
        head, payload, kind = place, b"", None
        while kind not in (0, 3):
            assert data[place : place + 4] == MAGIC
            (word,) = struct.unpack("<I", data[place + 4 : place + 8])
            kind, length = word >> 29, word & 0x1FFFFFFF
            assert (kind in (0, 1)) == (place == head)
            payload += MAGIC if place > head else b""
            payload += data[place + 8 : place + 8 + length]
            assert len(data) >= place + 8 + length
            place += 8 + (length + 3) // 4 * 4
        records.append((head, payload))
    return records


def unpack(payload):
    """(labels, picture) of a payload."""
    flag, label, _, _ = struct.unpack("<IfQQ", payload[:24])
    if not flag:
        return [label], payload[24:]
    return list(struct.unpack(f"<{flag}f", payload[24 : 24 + 4 * flag])), payload[24 + 4 * flag :]


def read_index(text):
    """Key -> place."""
    return {int(key): int(place) for key, place in (line.split("\t") for line in text.splitlines())}


def pictures_of(rec, idx):
    """(label, picture) of every picture, in the order of keys, by the rule of InsightFace's readers."""
    by_place = dict(read_all(rec))
    by_key = {key: unpack(by_place[place]) for key, place in read_index(idx).items()}
    labels, picture = by_key[0]
    keys = range(1, int(labels[0])) if struct.unpack("<I", by_place[read_index(idx)[0]][:4])[0] else sorted(by_key)
    return [(by_key[key][0][0], by_key[key][1]) for key in keys]


def whole(payload):
    """A record whose payload holds no magic."""
    return MAGIC + struct.pack("<I", len(payload)) + payload + bytes(-len(payload) % 4)


def payload(label, picture=b"", key=0):
    """A single label in the header, or several behind it."""
    if isinstance(label, list):
        return struct.pack("<IfQQ", len(label), 0, key, 0) + struct.pack(f"<{len(label)}f", *label) + picture
    return struct.pack("<IfQQ", 0, label, key, 0) + picture
