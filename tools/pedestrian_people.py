"""What people who never lived look like: clothes, bags, hair and builds."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

Colour = tuple[int, int, int]  # RGB

CLOTHES: dict[str, Colour] = {
    "black": (28, 28, 32),
    "grey": (112, 114, 118),
    "silver": (176, 178, 182),
    "white": (232, 232, 228),
    "navy": (34, 44, 84),
    "blue": (46, 92, 172),
    "sky": (128, 176, 220),
    "teal": (30, 122, 122),
    "green": (52, 124, 62),
    "olive": (104, 104, 56),
    "khaki": (178, 158, 116),
    "brown": (98, 66, 44),
    "red": (178, 36, 40),
    "wine": (106, 26, 48),
    "orange": (220, 120, 40),
    "yellow": (226, 196, 64),
    "pink": (226, 144, 168),
    "purple": (108, 62, 140),
}
TROUSERS = ("black", "grey", "navy", "blue", "khaki", "brown", "olive", "white")
HAIR: tuple[Colour, ...] = ((26, 22, 22), (52, 36, 26), (96, 62, 34), (170, 130, 74), (128, 126, 124), (122, 52, 28))
SKIN: tuple[Colour, ...] = ((238, 204, 178), (224, 180, 148), (196, 146, 108), (146, 98, 68), (94, 62, 46))
PATTERNS = ("plain", "plain", "plain", "rings", "stripes", "checks", "logo", "band", "jacket")
HAIR_STYLES = ("short", "short", "long", "ponytail", "bald")
HATS = ("none", "none", "none", "none", "cap", "beanie")
BOTTOMS = ("trousers", "trousers", "trousers", "shorts", "skirt")
BAGS = ("none", "none", "backpack", "backpack", "shoulder", "hand")


class Person(NamedTuple):
    """What a person looks like, wherever they are seen.

    Attributes:
      height: against that of the average person.
      build: width against that of the average person.
      waist: width of the waist against that of the hips.
      skin: colour.
      hair: colour.
      hair_style: one of `HAIR_STYLES`.
      hat: one of `HATS`.
      hat_colour: of the hat.
      top: colour of shirt or jacket.
      second: colour of its pattern, or of the shirt below a jacket.
      pattern: one of `PATTERNS`.
      long_sleeves: whether sleeves end at the wrists.
      hem: level where the top ends.
      bottom: one of `BOTTOMS`.
      bottom_colour: of it.
      shoes: colour.
      bag: one of `BAGS`.
      bag_colour: of the bag.
      bag_side: 1 for the person's left, -1 for the right.
    """

    height: float
    build: float
    waist: float
    skin: Colour
    hair: Colour
    hair_style: str
    hat: str
    hat_colour: Colour
    top: Colour
    second: Colour
    pattern: str
    long_sleeves: bool
    hem: float
    bottom: str
    bottom_colour: Colour
    shoes: Colour
    bag: str
    bag_colour: Colour
    bag_side: int


def random_person(generator: np.random.Generator) -> Person:
    """Chooses every attribute."""
    top, second = _two_colours(generator)
    return Person(
        height=float(generator.uniform(0.9, 1.06)),
        build=float(generator.uniform(0.86, 1.22)),
        waist=float(generator.uniform(0.78, 1.0)),
        skin=_jitter(SKIN[generator.integers(len(SKIN))], generator),
        hair=_jitter(HAIR[generator.integers(len(HAIR))], generator),
        hair_style=str(generator.choice(HAIR_STYLES)),
        hat=str(generator.choice(HATS)),
        hat_colour=_cloth(generator),
        top=top,
        second=second,
        pattern=str(generator.choice(PATTERNS)),
        long_sleeves=bool(generator.random() < 0.55),
        hem=float(generator.uniform(0.5, 0.58)),
        bottom=str(generator.choice(BOTTOMS)),
        bottom_colour=_cloth(generator, TROUSERS),
        shoes=_cloth(generator, ("black", "white", "brown", "grey", "red")),
        bag=str(generator.choice(BAGS)),
        bag_colour=_cloth(generator),
        bag_side=int(generator.choice((-1, 1))),
    )


def similar_person(person: Person, generator: np.random.Generator) -> Person:
    """Someone who is easily taken for another: one or two things that are seen differ, and the body a little."""
    other = random_person(generator)
    groups = (("top", "second"), ("pattern",), ("bottom", "bottom_colour"), ("bag", "bag_side"), ("hat", "hat_colour"))
    groups += (("hair", "hair_style"), ("shoes", "long_sleeves"))
    changed = generator.choice(len(groups), size=int(generator.integers(1, 3)), replace=False)
    names = [name for place in changed for name in groups[place]]
    body = {"height": person.height + generator.normal(0, 0.015), "build": person.build + generator.normal(0, 0.03)}
    return person._replace(**{name: getattr(other, name) for name in names}, **body)


def _cloth(generator: np.random.Generator, names: Sequence[str] = tuple(CLOTHES)) -> Colour:
    return _jitter(CLOTHES[names[generator.integers(len(names))]], generator)


def _two_colours(generator: np.random.Generator) -> tuple[Colour, Colour]:
    """Colours of a top and its pattern, which can be told apart."""
    names = generator.permutation(list(CLOTHES))
    brightness = [sum(CLOTHES[name]) for name in names]
    other = next(i for i in range(1, len(names)) if abs(brightness[i] - brightness[0]) > 150)
    return tuple(_jitter(CLOTHES[name], generator) for name in (names[0], names[other]))


def _jitter(colour: Colour, generator: np.random.Generator) -> Colour:
    varied = np.array(colour) * generator.uniform(0.88, 1.12) + generator.normal(0, 5, 3)
    return tuple(int(value) for value in varied.clip(12, 245))


def shaded(colour: Colour, shade: float) -> Colour:
    """A colour that is darker or brighter by a factor."""
    return tuple(min(255, int(value * shade)) for value in colour)
