"""Cameras that watch pedestrians: each has a street, a cast of colour, an exposure and a place to look from."""

from typing import NamedTuple

import cv2
import numpy as np

from tools.pedestrian_people import Colour

HEIGHT, WIDTH = 128, 64  # of an image, pixels
_STREET = 12  # width of a street, images
_GROUNDS: tuple[Colour, ...] = ((128, 126, 122), (150, 142, 128), (104, 108, 112), (92, 112, 72), (162, 150, 140))
_WALLS: tuple[Colour, ...] = ((168, 150, 128), (128, 88, 72), (186, 186, 182), (112, 124, 140), (86, 104, 78))


class Camera(NamedTuple):
    """What the images of a camera have in common.

    Attributes:
      street: uint8 `[h, w, 3]`, RGB; images show parts of it.
      cast: gain of each colour.
      gamma: above 1 for dark images.
      blur: sigma, pixels.
      noise: sigma, of 255.
      elevation: how much it looks down, see `Pose` of pedestrian_figures.py.
      heading: where people walk mostly, radians; some come the other way.
      fill: height of an average person against that of an image.
      light: how much brighter people are on their right side in the image than on the left.
      haze: how much contrast is lost.
    """

    street: np.ndarray
    cast: tuple[float, float, float]
    gamma: float
    blur: float
    noise: float
    elevation: float
    heading: float
    fill: float
    light: float
    haze: float


def make_camera(generator: np.random.Generator, number: int, count: int) -> Camera:
    """Makes one of some cameras; their headings are spread evenly, everything else is drawn.

    Args:
      generator: of random numbers.
      number: of the camera, from 1.
      count: of the cameras.
    """
    warmth, tint = generator.uniform(-0.2, 0.2), generator.uniform(-0.08, 0.08)
    return Camera(
        street=_draw_street(generator),
        cast=(1 + warmth, 1 + tint, 1 - warmth),
        gamma=float(generator.uniform(0.75, 1.4)),
        blur=float(generator.uniform(0.3, 0.9)),
        noise=float(generator.uniform(1.5, 5.0)),
        elevation=float(generator.uniform(0.02, 0.24)),
        heading=2 * np.pi * (number - 1 + generator.uniform(-0.3, 0.3)) / count,
        fill=float(generator.uniform(0.82, 0.92)),
        light=float(generator.choice((-1, 1)) * generator.uniform(0.1, 0.3)),
        haze=float(generator.uniform(0.0, 0.18)),
    )


def photograph(camera: Camera, figures: np.ndarray, generator: np.random.Generator, *, place: float) -> np.ndarray:
    """Puts people into the street and takes the picture.

    Args:
      camera: that takes it.
      figures: uint8 `[s * 128, s * 64, 4]`, RGB and opacity.
      generator: of random numbers.
      place: in the street, from 0 to 1.

    Returns:
      RGB, uint8 `[128, 64, 3]`.
    """
    opacity = cv2.resize(figures[..., 3], (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA).astype(np.float32) / 255
    people = cv2.resize(figures, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA)[..., :3].astype(np.float32)
    people *= _relief(opacity, camera.light)[..., None]  # colours are zero where nobody is, so already weighted
    left = int(place * (camera.street.shape[1] - WIDTH))
    top = int(generator.integers(camera.street.shape[0] - HEIGHT + 1))
    ground = camera.street[top : top + HEIGHT, left : left + WIDTH].astype(np.float32)
    ground *= _shadow(opacity, camera.light)[..., None]
    image = people + ground * (1 - opacity[..., None])
    return _expose(image, camera, generator)


def _relief(opacity: np.ndarray, light: float) -> np.ndarray:
    """Brightness of people, who are round, and brighter on one side."""
    soft = cv2.GaussianBlur(opacity, (0, 0), 3)
    slope = cv2.Sobel(soft, cv2.CV_32F, 1, 0, ksize=3)
    return np.clip(0.82 + 0.28 * soft - 3 * light * slope, 0.45, 1.4)


def _shadow(opacity: np.ndarray, light: float) -> np.ndarray:
    """What is left of the light on the ground around the feet."""
    shift = -6 if light > 0 else 6
    move = np.array([[1, 0, shift], [0, 0.35, 0.65 * HEIGHT - 2]], np.float32)
    fallen = cv2.warpAffine(opacity, move, (WIDTH, HEIGHT))
    return 1 - 0.4 * cv2.GaussianBlur(fallen, (0, 0), 2.5)


def _expose(image: np.ndarray, camera: Camera, generator: np.random.Generator) -> np.ndarray:
    """What lens and sensor make of it; every picture is a little brighter or darker."""
    image = cv2.GaussianBlur(image, (0, 0), camera.blur * generator.uniform(0.8, 1.4) + 0.05)
    image = image / 255 * np.array(camera.cast, np.float32) * generator.uniform(0.88, 1.12)
    image = np.clip(image, 0, 1) ** (camera.gamma * generator.uniform(0.92, 1.08))
    image = camera.haze * 0.62 + (1 - camera.haze) * image
    image += generator.normal(0, camera.noise / 255, image.shape)
    return (255 * image.clip(0, 1)).round().astype(np.uint8)


def _draw_street(generator: np.random.Generator) -> np.ndarray:
    """A wall with what stands before it, above a ground that comes nearer."""
    height, width = int(1.15 * HEIGHT), _STREET * WIDTH
    horizon = int(generator.uniform(0.12, 0.5) * HEIGHT)
    street = np.empty((height, width, 3), np.uint8)
    street[:horizon] = _WALLS[generator.integers(len(_WALLS))]
    street[horizon:] = _GROUNDS[generator.integers(len(_GROUNDS))]
    _draw_wall(street, horizon, generator)
    _draw_ground(street, horizon, generator)
    for _ in range(int(generator.integers(10, 18))):
        _draw_thing(street, horizon, generator)
    clouds = sum(
        cv2.resize(
            generator.normal(0, strength, (height // size, width // size)).astype(np.float32),
            (width, height),
            interpolation=cv2.INTER_CUBIC,
        )
        for size, strength in ((2, 4), (8, 6), (40, 9))
    )
    return (street + clouds[..., None]).clip(0, 255).astype(np.uint8)


def _draw_wall(street: np.ndarray, horizon: int, generator: np.random.Generator) -> None:
    """Windows and doors in a row."""
    x = 0
    while x < street.shape[1]:
        size = int(generator.integers(14, 40))
        if generator.random() < 0.7:
            colour = _vary((70, 80, 94), generator, 15)
            cv2.rectangle(street, (x, 4), (x + size - 6, horizon - int(generator.integers(1, 12))), colour, -1)
        x += size
    cv2.rectangle(street, (0, horizon - 2), (street.shape[1], horizon), (72, 70, 68), -1)


def _draw_ground(street: np.ndarray, horizon: int, generator: np.random.Generator) -> None:
    """Slabs, the nearer the larger, or a kerb."""
    colour = tuple(int(0.86 * value) for value in street[-1, 0])
    lines = horizon + (street.shape[0] - horizon) * np.linspace(0, 1, int(generator.integers(4, 9))) ** 1.8
    for y in lines.astype(int):
        cv2.line(street, (0, int(y)), (street.shape[1], int(y)), colour, 1)
    step = int(generator.integers(24, 60))
    for x in range(0, street.shape[1], step):
        cv2.line(street, (x, horizon), (x + int(0.6 * (x % (4 * step) - 2 * step)), street.shape[0]), colour, 1)


def _draw_thing(street: np.ndarray, horizon: int, generator: np.random.Generator) -> None:
    """Something that stands in the street: a tree, a post, a parked bicycle, a sign or a bench."""
    x = int(generator.integers(street.shape[1]))
    foot = int(generator.uniform(horizon, horizon + 0.45 * (street.shape[0] - horizon)))
    kind = generator.choice(("tree", "post", "bicycle", "sign", "bench"))
    if kind == "tree":
        cv2.line(street, (x, foot), (x, 0), _vary((74, 58, 44), generator, 12), int(generator.integers(4, 9)))
        for _ in range(14):
            leaf = (x + int(generator.normal(0, 16)), int(generator.normal(horizon * 0.3, 10)))
            cv2.circle(street, leaf, int(generator.integers(4, 10)), _vary((58, 92, 46), generator, 22), -1)
    elif kind == "post":
        cv2.line(street, (x, foot), (x, 0), _vary((90, 92, 96), generator, 30), int(generator.integers(2, 5)))
    elif kind == "bicycle":
        colour = _vary((66, 66, 70), generator, 36)
        for wheel in (x - 11, x + 11):
            cv2.circle(street, (wheel, foot - 8), 8, (36, 36, 38), 2)
        frame = np.array([[x - 11, foot - 8], [x - 3, foot - 20], [x + 8, foot - 20], [x + 11, foot - 8]])
        cv2.polylines(street, [frame], True, colour, 2)
    elif kind == "sign":
        colour = _vary((150, 96, 80), generator, 50)
        cv2.rectangle(street, (x - 12, foot - 34), (x + 12, foot - 14), colour, -1)
        cv2.line(street, (x, foot - 14), (x, foot), (80, 80, 80), 2)
    else:
        cv2.rectangle(street, (x - 20, foot - 12), (x + 20, foot - 7), _vary((120, 86, 54), generator, 25), -1)
        for leg in (x - 16, x + 16):
            cv2.line(street, (leg, foot - 7), (leg, foot), (60, 60, 60), 2)


def _vary(colour: Colour, generator: np.random.Generator, strength: float) -> Colour:
    return tuple(int(value) for value in (np.array(colour) + generator.normal(0, strength, 3)).clip(0, 255))
