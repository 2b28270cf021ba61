"""Who the people are: the law that faces are drawn from, and their names.

Lengths are in units of half a nominal head (the chin at y = 1, y downwards, the middle of the face at x = 0), angles in
radians, and what is called a tone, a share or a habit lies in [0, 1].
"""

from collections import namedtuple

import numpy as np

LAW = {
    "skin_tone": (0.0, 1.0),
    "skin_warmth": (0.0, 1.0),
    "head_width": (0.58, 0.90),
    "cheek_width": (0.90, 1.06),
    "jaw_width": (0.54, 0.96),
    "jaw_height": (0.42, 0.66),
    "chin_width": (0.14, 0.42),
    "chin_height": (0.86, 1.16),
    "eye_spacing": (0.25, 0.42),
    "eye_height": (-0.20, 0.06),
    "eye_width": (0.115, 0.21),
    "eye_opening": (0.32, 0.90),
    "eye_tilt": (-0.28, 0.34),
    "eye_tone": (0.0, 1.0),
    "iris_size": (0.60, 1.0),
    "lid_width": (0.008, 0.036),
    "brow_gap": (0.14, 0.29),
    "brow_thickness": (0.02, 0.12),
    "brow_length": (0.75, 1.30),
    "brow_tilt": (-0.34, 0.34),
    "brow_arch": (0.0, 0.10),
    "brow_tone": (0.0, 1.0),
    "nose_length": (0.20, 0.46),
    "nose_width": (0.07, 0.23),
    "nose_bridge": (0.0, 1.0),
    "mouth_gap": (0.15, 0.28),
    "mouth_width": (0.16, 0.41),
    "upper_lip": (0.015, 0.09),
    "lower_lip": (0.025, 0.125),
    "mouth_curve": (-0.05, 0.06),
    "lip_tone": (0.0, 1.0),
    "ear_size": (0.10, 0.30),
    "ear_spread": (0.0, 0.13),
    "hair_tone": (0.0, 1.0),
    "hair_shade": (0.75, 1.25),
    "hair_cover": (0.0, 1.0),
    "hair_volume": (0.02, 0.30),
    "hair_length": (0.0, 1.0),
    "hair_sides": (-0.30, 0.35),
    "hair_wave": (0.0, 0.08),
    "hair_curls": (5.0, 15.0),
    "hairline": (0.34, 0.78),
    "hair_part": (-0.60, 0.60),
    "hair_peak": (-0.16, 0.16),
    "beard": (0.0, 1.0),
    "moustache": (0.0, 1.0),
    "glasses": (0.0, 1.0),
    "glasses_roundness": (0.0, 1.0),
    "glasses_size": (0.19, 0.27),
    "glasses_tone": (0.0, 1.0),
    "blush": (0.0, 1.0),
    "freckles": (0.0, 1.0),
    "mole_x": (-0.50, 0.50),
    "mole_y": (-0.55, 0.80),
    "mole_size": (0.0, 0.05),
}
Person = namedtuple("Person", LAW)
# Tones and habits stay even: their palettes and thresholds are made for that.
MARKED = np.array([bounds != (0.0, 1.0) for bounds in LAW.values()])
LOW = np.array([low for low, _ in LAW.values()])
HIGH = np.array([high for _, high in LAW.values()])

# What is seen first counts most: two people alike in these would be mixed up whatever their moles.
SALIENT = (
    "skin_tone",
    "head_width",
    "hair_tone",
    "hair_length",
    "hair_volume",
    "hairline",
    "eye_spacing",
    "nose_length",
)
MIN_DISTANCE = 0.37
MAX_DRAWS = 1000

FIRST_NAMES = (
    "Ada Aldo Alma Amir Anouk Aron Basil Bela Bruno Carla Cato Celia Cyril Dana Dario Delia Edda Elio Elsa Emil "
    "Enzo Fay Felix Flora Gwen Hana Hugo Ida Igor Ines Ivo Jana Joel Juno Kai Lena Leo Lida Mara Milo Nadia Nils "
    "Odile Oskar Petra Quinn Rhea Saul"
).split()
LAST_NAMES = (
    "Abbot Adler Amsel Arden Ashby Baker Barlow Beck Birch Bloom Brook Carver Cole Corbin Dale Decker Drake Elm "
    "Falk Fern Field Finch Forge Frost Garner Glass Grove Hale Hart Hawke Heath Hollis Iver Keller Kern Lake Lark "
    "Linden Lowe Marsh Mercer Moss Nagel North Oakes Orchard Penn Quarry Reed Ridge Rowan Sandler Shore Stone Thorn "
    "Vale Vance Ward Wells Weaver Wilde Winter Wolfe Yarrow"
).split()
INITIALS = ["", *"ABCDEFGHIJKLMNOPQRSTUVWXYZ"]
MAX_PEOPLE = len(FIRST_NAMES) * len(LAST_NAMES) * len(INITIALS)


def normalise(person: Person) -> np.ndarray:
    """Return a person's place in the unit cube of the law, float64 [F]."""
    return (np.array(person) - LOW) / (HIGH - LOW)


def distance(person: Person, others: np.ndarray) -> np.ndarray:
    """Return root mean square distances [N] to people at places [N, F]; the salient factors count thrice."""
    weights = np.array([3.0 if name in SALIENT else 1.0 for name in LAW])
    return np.sqrt((weights * (others - normalise(person)) ** 2).sum(-1) / weights.sum())


def draw_people(count: int, seed: int) -> list[Person]:
    """Draw `count` people, no two nearer than MIN_DISTANCE; the first n are the same for every count.

    Factors with bounds other than [0, 1] follow the arcsine law: as in caricature, marked features are commoner than
    middling ones, which tells people apart better than an even law between the same bounds. The others are even.
    Raises ValueError where the law has no room for another person.
    """
    rng = np.random.default_rng([seed, 0])
    people, places = [], np.empty((count, len(LAW)))
    while len(people) < count:
        for _ in range(MAX_DRAWS):
            place = rng.random(len(LAW))
            place[MARKED] = 0.5 - 0.5 * np.cos(np.pi * place[MARKED])
            person = Person(*(LOW + (HIGH - LOW) * place).tolist())
            if not people or distance(person, places[: len(people)]).min() >= MIN_DISTANCE:
                break
        else:
            raise ValueError(f"no room for {count} people at a distance of {MIN_DISTANCE}: found {len(people)}")
        places[len(people)] = normalise(person)
        people.append(person)
    return people


def draw_names(count: int, seed: int) -> list[str]:
    """Draw `count` different names in LFW's form, `First_Last`; a middle initial comes in once these run out.

    Raises ValueError above MAX_PEOPLE.
    """
    if count > MAX_PEOPLE:
        raise ValueError(f"{count} people, but there are names for {MAX_PEOPLE}")
    rng = np.random.default_rng([seed, 1])
    num_plain = len(FIRST_NAMES) * len(LAST_NAMES)
    names = []
    for block in range(-(-count // num_plain)):
        for number in rng.permutation(num_plain)[: count - len(names)]:
            first, last = FIRST_NAMES[number % len(FIRST_NAMES)], LAST_NAMES[number // len(FIRST_NAMES)]
            names.append("_".join(part for part in (first, INITIALS[block], last) if part))
    return names
