"""A face as a drawing, feature by feature.

Images are uint8 [H, W, 3] in RGB order and drawn on in place; colours are float64 [3] from 0 to 255.
"""

from dataclasses import dataclass

import numpy as np
from face_geometry import Pose, ellipse, fill, on_face, silhouette, smooth, stroke
from face_law import Person

SKIN = np.array(
    [(252, 226, 208), (240, 200, 172), (216, 166, 130), (172, 120, 88), (132, 88, 64), (106, 70, 54)], float
)
HAIR = np.array(
    [
        (26, 22, 22),
        (66, 42, 30),
        (118, 66, 38),
        (176, 82, 44),
        (216, 172, 98),
        (204, 204, 204),
        (104, 134, 196),
        (170, 92, 160),
    ],
    float,
)
IRIS = np.array([(58, 36, 24), (112, 74, 36), (86, 116, 58), (60, 128, 152), (70, 104, 176), (128, 140, 150)], float)
LIPS = np.array([(226, 150, 138), (196, 96, 96), (172, 54, 70), (128, 52, 62)], float)
FRAMES = np.array([(24, 24, 28), (110, 50, 30), (150, 30, 50), (40, 60, 130), (170, 150, 90)], float)
BALD_BELOW = 0.06


@dataclass(frozen=True)
class Expression:
    """What the face does: `smile` in [-1, 1], `mouth_open`, `lids_open` from 0 to 1, brows raised and gaze in units."""

    smile: float
    mouth_open: float
    lids_open: float
    brows: float
    gaze_x: float
    gaze_y: float


def tone(palette: np.ndarray, position: float) -> np.ndarray:
    """Return the colour [3] at `position` in [0, 1] along a palette [n, 3]."""
    knots = np.linspace(0, 1, len(palette))
    return np.array([np.interp(position, knots, channel) for channel in palette.T])


def skin_colour(person: Person) -> np.ndarray:
    """Return a person's skin colour, [3]."""
    return tone(SKIN, person.skin_tone) * (1 + (person.skin_warmth - 0.5) * np.array([0.14, 0.0, -0.32]))


def hair_colour(person: Person) -> np.ndarray:
    """Return a person's hair colour, [3]."""
    return tone(HAIR, person.hair_tone) * person.hair_shade


def head_outline(person: Person) -> np.ndarray:
    """Return the outline of the head, [n, 2]."""
    width, cheek = person.head_width, person.head_width * person.cheek_width
    jaw, chin = cheek * person.jaw_width, person.chin_height
    right = [
        (0.55 * width, -0.88),
        (0.93 * width, -0.52),
        (width, -0.12),
        (cheek, 0.15),
        ((cheek + jaw) / 2, (0.2 + person.jaw_height) / 2),
        (jaw, person.jaw_height),
        (min(person.chin_width, 0.8 * jaw), 0.97 * chin),
    ]
    left = [(-x, y) for x, y in reversed(right)]
    return smooth(np.array([(0, -1.0), *right, (0, chin), *left]))


def draw_body(image: np.ndarray, person: Person, pose: Pose, clothes: np.ndarray) -> None:
    """Draw what is behind the head: long hair, neck, clothes and ears."""
    skin, width = skin_colour(person), person.head_width
    if person.hair_length > 0.4 and person.hair_cover > BALD_BELOW:
        end = -0.4 + 2.2 * person.hair_length
        outer = width + person.hair_volume + 0.06
        right = [(outer * 0.8, -0.8), (outer, -0.2), (outer * (1 + person.hair_wave), 0.5 * end), (outer * 0.9, end)]
        strand = np.array([(0, -1.05), *right, (0, end + 0.05), *[(-x, y) for x, y in reversed(right)]])
        fill(image, silhouette(smooth(strand), pose), hair_colour(person) * 0.72)
    neck = 0.62 * width
    fill(image, silhouette([(-neck, 0.5), (neck, 0.5), (neck, 1.6), (-neck, 1.6)], pose), skin * 0.8)
    shoulders = [
        (-0.75, 1.32),
        (-neck * 0.9, 1.22),
        (0, 1.48),
        (neck * 0.9, 1.22),
        (0.75, 1.32),
        (1.6, 1.6),
        (2.2, 3.2),
    ]
    fill(image, silhouette([*shoulders, (-2.2, 3.2), (-1.6, 1.6)], pose), clothes)
    for side in (-1, 1):
        x = side * (width + person.ear_spread) * np.cos(pose.yaw) - 0.15 * np.sin(pose.yaw)
        ear = ellipse(x, 0.06 - 0.2 * np.sin(pose.pitch), 0.55 * person.ear_size, person.ear_size)
        fill(image, silhouette(ear, pose), skin * 0.93)
        fill(image, silhouette(0.55 * ear + 0.45 * ear.mean(0), pose), skin * 0.78)


def draw_skin(image: np.ndarray, person: Person, pose: Pose) -> None:
    """Draw the head with its blush, freckles and mole."""
    skin = skin_colour(person)
    outline = silhouette(head_outline(person), pose)
    fill(image, outline, skin)
    stroke(image, outline, skin * 0.8, 0.02 * pose.scale, closed=True)
    blush = skin * (1 + person.blush * np.array([0.06, -0.14, -0.10]))
    for side in (-1, 1):
        cheek = ellipse(side * 0.58 * person.head_width, 0.30, 0.15, 0.11)
        fill(image, on_face(cheek, pose), blush)
    if person.freckles > 0.7:
        spots = np.random.default_rng(int(person.freckles * 1e9)).uniform((-0.45, 0.1), (0.45, 0.36), (22, 2))
        for x, y in spots:
            fill(image, on_face(ellipse(x, y, 0.016, 0.016, 8), pose), skin * 0.72)
    if person.mole_size > 0.02:
        mole = ellipse(person.mole_x * person.head_width / 0.75, person.mole_y, person.mole_size, person.mole_size, 12)
        fill(image, on_face(mole, pose), skin * 0.35)


def mouth_height(person: Person) -> float:
    """Return the y of the resting mouth: below the nose by `mouth_gap`, and above a short chin all the same."""
    return min(person.eye_height + person.nose_length + person.mouth_gap + 0.06, 0.74 * person.chin_height)


def draw_beard(image: np.ndarray, person: Person, pose: Pose) -> None:
    """Draw beard and moustache of those who have them; the larger the factor above its threshold, the fuller."""
    colour = 0.75 * hair_colour(person) + 0.25 * skin_colour(person)
    mouth = mouth_height(person)
    if person.beard > 0.62:
        outline = head_outline(person)
        fullness = (person.beard - 0.62) / 0.38
        top = mouth + 0.18 - 0.55 * fullness
        rim = outline[outline[:, 1] > top]
        rim = rim[np.argsort(np.arctan2(rim[:, 0], rim[:, 1] - top + 0.01))]
        edge, lip = rim[-1, 0], person.mouth_width
        right = [(0.86 * edge, max(top, mouth - 0.15) + 0.04), (1.15 * lip, mouth + 0.10), (0.5 * lip, mouth + 0.18)]
        inside = [*right, (0, mouth + 0.16), *[(-x, y) for x, y in reversed(right)]]
        fill(image, np.vstack([silhouette(rim * (1, 1.03), pose), on_face(smooth(inside, closed=False), pose)]), colour)
    if person.moustache > 0.72:
        thick = 0.03 + 0.22 * (person.moustache - 0.72)
        half = person.mouth_width * 1.05
        y = mouth - person.upper_lip - 0.035
        shape = [
            (-half, y + 0.05),
            (-0.5 * half, y - thick),
            (0, y - 0.6 * thick),
            (0.5 * half, y - thick),
            (half, y + 0.05),
        ]
        fill(image, on_face(smooth([*shape, (0, y + 0.02)]), pose, 0.05), colour * 0.9)


def draw_mouth(image: np.ndarray, person: Person, pose: Pose, expression: Expression) -> None:
    """Draw lips, and teeth where the mouth is open."""
    half = person.mouth_width * (1 + 0.18 * expression.smile)
    y = mouth_height(person)
    corner = y - person.mouth_curve - 0.09 * expression.smile
    gap = 0.13 * expression.mouth_open
    lips = tone(LIPS, person.lip_tone) * (1.05 - 0.45 * person.skin_tone)
    top = [(-half, corner), (-0.45 * half, y - person.upper_lip), (-0.12 * half, y - 1.1 * person.upper_lip)]
    top += [(0, y - 0.85 * person.upper_lip)] + [(-x, v) for x, v in reversed(top)]
    low = [(0.5 * half, y + gap + person.lower_lip), (0, y + gap + 1.15 * person.lower_lip)]
    low += [(-0.5 * half, y + gap + person.lower_lip)]
    fill(image, on_face(smooth([*top, *low]), pose, 0.03), lips)
    line = [(-0.94 * half, corner), (-0.5 * half, y), (0, y + 0.01), (0.5 * half, y), (0.94 * half, corner)]
    if gap > 0.02:
        inside = [*line, (0.5 * half, y + gap), (0, y + gap + 0.01), (-0.5 * half, y + gap)]
        fill(image, on_face(smooth(inside), pose, 0.02), np.array([70.0, 24, 28]))
        teeth = [(-0.6 * half, y), (0.6 * half, y), (0.5 * half, y + 0.4 * gap), (-0.5 * half, y + 0.4 * gap)]
        fill(image, on_face(smooth(teeth), pose, 0.02), np.array([240.0, 238, 230]))
    else:
        stroke(image, on_face(smooth(line, closed=False), pose, 0.03), lips * 0.5, 0.022 * pose.scale)


def draw_nose(image: np.ndarray, person: Person, pose: Pose) -> None:
    """Draw the nose, whose tip stands out of the face and so moves most as the head turns."""
    skin = skin_colour(person)
    bottom, half = person.eye_height + person.nose_length, person.nose_width
    root = person.eye_height + 0.02
    bridge = [(-0.05, root), (0.05, root), (0.05 + 0.3 * half, bottom - 0.1), (-0.05 - 0.3 * half, bottom - 0.1)]
    tip = on_face([(0.05 + 0.3 * half, bottom - 0.1), (-0.05 - 0.3 * half, bottom - 0.1)], pose, 0.18)
    top = on_face(bridge[:2], pose, 0.04)
    fill(image, np.vstack([top, tip]), skin * (0.98 + 0.10 * person.nose_bridge))
    ball = [
        (-half, bottom),
        (-0.75 * half, bottom - 0.10),
        (0, bottom - 0.14),
        (0.75 * half, bottom - 0.10),
        (half, bottom),
    ]
    fill(image, on_face(smooth([*ball, (0, bottom + 0.055)]), pose, 0.16), skin * 0.88)
    for side in (-1, 1):
        nostril = ellipse(side * 0.5 * half, bottom + 0.01, 0.24 * half, 0.022, 10)
        fill(image, on_face(nostril, pose, 0.16), skin * 0.45)
    wings = smooth([(-half, bottom - 0.05), (-1.02 * half, bottom + 0.01), (-0.7 * half, bottom + 0.035)], closed=False)
    for side in (-1, 1):
        stroke(image, on_face(wings * (side, 1), pose, 0.14), skin * 0.62, 0.02 * pose.scale)


def draw_eyes(image: np.ndarray, person: Person, pose: Pose, expression: Expression) -> None:
    """Draw eyes, lids and brows."""
    skin = skin_colour(person)
    half = person.eye_width
    height = half * person.eye_opening * expression.lids_open
    hair = hair_colour(person)
    brow_colour = hair * (0.35 + 0.5 * person.brow_tone)
    for side in (-1, 1):
        middle = np.array([side * person.eye_spacing, person.eye_height])

        def turned(points, angle, middle=middle, side=side):
            cos, sin = np.cos(angle), np.sin(angle)
            return np.asarray(points, float) @ np.array([[cos, -sin], [sin, cos]]) * (side, 1) + middle

        upper = [
            (-half, 0.12 * height),
            (-0.5 * half, -0.8 * height),
            (0.1 * half, -height),
            (0.65 * half, -0.65 * height),
        ]
        lower = [(half, 0), (0.4 * half, 0.7 * height), (-0.4 * half, 0.75 * height)]
        eye = on_face(turned(smooth([*upper, *lower]), person.eye_tilt), pose)
        if expression.lids_open > 0.15:
            iris = (middle[0] + expression.gaze_x, middle[1] + expression.gaze_y, 0.62 * half * person.iris_size)
            draw_eyeball(image, person, pose, eye, iris)
        lid = on_face(turned(smooth([*upper, lower[0]], closed=False), person.eye_tilt), pose)
        stroke(image, lid, skin * 0.22, person.lid_width * pose.scale + 1)
        crease = on_face(
            turned(smooth([*upper, lower[0]], closed=False) * (1.05, 1.3) - (0, 0.03), person.eye_tilt), pose
        )
        stroke(image, crease, skin * 0.75, 0.012 * pose.scale)
        reach, thick = half * person.brow_length, person.brow_thickness
        arch = person.brow_arch
        brow = [(-reach, 0.3 * thick), (-0.3 * reach, -0.6 * thick - 0.7 * arch), (0.35 * reach, -0.6 * thick - arch)]
        brow += [(reach, 0), (0.35 * reach, 0.5 * thick - arch), (-0.3 * reach, 0.6 * thick - 0.7 * arch)]
        brow = turned(smooth(brow), person.brow_tilt) - (0, person.brow_gap + expression.brows)
        fill(image, on_face(brow, pose, 0.03), brow_colour)


def draw_eyeball(
    image: np.ndarray, person: Person, pose: Pose, eye: np.ndarray, iris: tuple[float, float, float]
) -> None:
    """Draw white, iris (x, y, radius in units) and pupil inside the eye's outline in pixels, [n, 2]."""
    left, top = np.maximum(np.floor(eye.min(0)).astype(int) - 2, 0)
    right, bottom = np.ceil(eye.max(0)).astype(int) + 3
    patch = image[top:bottom, left:right]
    if not patch.size:
        return
    inside = np.zeros(patch.shape[:2], np.uint8)
    fill(inside, eye - (left, top), np.array([255.0]))
    ball = np.full_like(patch, 244)
    x, y, radius = iris
    colour = tone(IRIS, person.eye_tone)
    for size, shade in ((1.0, colour * 0.6), (0.85, colour), (0.42, colour * 0.1)):
        fill(ball, on_face(ellipse(x, y, size * radius, size * radius, 20), pose) - (left, top), shade)
    fill(ball, on_face(ellipse(x - 0.03, y - 0.03, 0.02, 0.02, 8), pose) - (left, top), np.array([255.0, 255, 255]))
    share = inside[..., None] / np.float32(255)
    patch[:] = np.round(ball * share + patch * (1 - share)).astype(np.uint8)


def draw_hair(image: np.ndarray, person: Person, pose: Pose) -> None:
    """Draw the hair on the skull: its outline stays with the head's, its hairline turns with the face."""
    if person.hair_cover < BALD_BELOW:
        return
    colour = hair_colour(person)
    width, volume = person.head_width, person.hair_volume
    angles = np.linspace(-0.12, np.pi + 0.12, 60)
    radius = 1.02 + person.hair_wave * (1 + np.sin(person.hair_curls * angles * 2))
    outer = np.stack([(width + 0.7 * volume) * np.cos(angles), -(1.0 + volume) * np.sin(angles)], -1) * radius[:, None]
    sides = person.hair_sides
    outer = np.vstack([[(width * 1.03, sides)], outer, [(-width * 1.03, sides)]])
    line, part = -person.hairline, person.hair_part * width
    crown = max(line - 0.05 + person.hair_peak, -0.9)
    inner = [
        (-0.93 * width, sides),
        (-0.88 * width, min(line + 0.32, sides - 0.05)),
        (-0.62 * width + 0.3 * part, line + 0.06),
        (part, crown),
        (0.62 * width + 0.3 * part, line + 0.06),
        (0.88 * width, min(line + 0.32, sides - 0.05)),
        (0.93 * width, sides),
    ]
    hairline = on_face(smooth(inner, closed=False), pose, -0.1)
    fill(image, np.vstack([silhouette(outer, pose), hairline]), colour)
    strands = [(part, crown), (0.5 * part, -0.9), (0.2 * part, -1.0 - 0.6 * volume)]
    stroke(image, on_face(smooth(strands, closed=False), pose, -0.05), colour * 0.7, 0.03 * pose.scale)
    gleam = np.stack([0.75 * width * np.cos(angles[12:26]), -(0.86 + 0.5 * volume) * np.sin(angles[12:26])], -1)
    stroke(image, silhouette(gleam, pose), colour * 1.15 + 12, 0.04 * pose.scale)


def draw_glasses(image: np.ndarray, person: Person, pose: Pose, lens: np.ndarray | None = None) -> None:
    """Draw a frame over the eyes, filled with the colour `lens` where one is given."""
    frame = tone(FRAMES, person.glasses_tone)
    power = 2 / (2 + 4 * (1 - person.glasses_roundness))
    angles = np.arange(32) * (2 * np.pi / 32)
    cos, sin = np.cos(angles), np.sin(angles)
    size = person.glasses_size
    rim = np.stack([size * np.sign(cos) * abs(cos) ** power, 0.82 * size * np.sign(sin) * abs(sin) ** power], -1)
    spacing, y = max(person.eye_spacing, size + 0.03), person.eye_height
    for side in (-1, 1):
        lens_rim = on_face(rim + (side * spacing, y + 0.02), pose, 0.08)
        if lens is not None:
            fill(image, lens_rim, lens)
        stroke(image, lens_rim, frame, 0.035 * pose.scale, closed=True)
        temple = np.vstack(
            [on_face([(side * (spacing + size), y)], pose, 0.08), silhouette([(side * person.head_width, y)], pose)]
        )
        stroke(image, temple, frame, 0.03 * pose.scale)
    bridge = on_face([(size - spacing, y), (0, y - 0.03), (spacing - size, y)], pose, 0.12)
    stroke(image, bridge, frame, 0.035 * pose.scale)


def draw_face(
    image: np.ndarray,
    person: Person,
    pose: Pose,
    expression: Expression,
    clothes: np.ndarray,
) -> None:
    """Draw a person on a background image."""
    draw_body(image, person, pose, clothes)
    draw_skin(image, person, pose)
    draw_beard(image, person, pose)
    draw_mouth(image, person, pose, expression)
    draw_eyes(image, person, pose, expression)
    draw_nose(image, person, pose)
    draw_hair(image, person, pose)
    if person.glasses > 0.6:
        draw_glasses(image, person, pose)
