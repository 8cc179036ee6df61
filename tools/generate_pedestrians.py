"""Draws people and writes them in the layout of Market-1501, so that the whole path can be tried without a download.

    python tools/generate_pedestrians.py pedestrians
    python tools/generate_pedestrians.py pedestrians --seed=1 --train-identities=200 --cameras=4

Then `load_dataset("drawn_pedestrians", "train", manual_dir="pedestrians")` reads them. Nothing here is a photograph,
and figures on these images say nothing about figures on Market-1501.

Who is in training and who in test are drawn at random. Everyone is seen by three cameras or more, if there are so
many, each with another street, light and direction to look from, in some images each; the test's people have one image
a camera as a query, and the others in the gallery. Many people look like another one, but for a bag or a shirt. The
gallery holds distractors, numbered 0, and junk, numbered -1: other people, empty streets, and cut parts of bodies. What
is drawn follows from the seed and the numbers.
"""

import argparse
import pathlib
import sys
from collections.abc import Iterator
from concurrent import futures
from typing import NamedTuple

import cv2
import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tools.pedestrian_cameras import HEIGHT, WIDTH, Camera, make_camera, photograph  # noqa: E402
from tools.pedestrian_figures import Pose, draw_person  # noqa: E402
from tools.pedestrian_people import Person, random_person, similar_person  # noqa: E402

FOLDERS = ("bounding_box_train", "query", "bounding_box_test")
_FINER = 3  # people are drawn this much larger and averaged
_QUALITY = 92  # of the JPEGs
_PEOPLE, _CAMERAS, _SIGHTINGS, _IMAGES = range(4)  # streams of random numbers


class Image(NamedTuple):
    """One image to be drawn.

    Attributes:
      path: of the file, below the folder.
      person: who is seen.
      camera: number, from 1.
      walk: stands for one walk past one camera: heading, place and step vary little in it.
      frame: in the walk.
      kind: "person", "empty" or "part".
    """

    path: str
    person: Person
    camera: int
    walk: int
    frame: int
    kind: str = "person"


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=pathlib.Path, help="folder for the images")
    parser.add_argument("--seed", type=int, default=0, help="of everything that is drawn (0)")
    parser.add_argument("--train-identities", type=int, default=100, help="people in training (100)")
    parser.add_argument("--test-identities", type=int, default=100, help="people in test (100)")
    parser.add_argument("--cameras", type=int, default=6, help="at least 2 (6)")
    parser.add_argument("--frames", type=int, default=4, help="most images of a person by a camera, at least 2 (4)")
    parser.add_argument("--distractors", type=int, default=300, help="images of person 0 (300)")
    parser.add_argument("--junk", type=int, default=100, help="images of person -1 (100)")
    return parser.parse_args(arguments)


def generate(
    output: pathlib.Path,
    *,
    seed: int = 0,
    train_identities: int = 100,
    test_identities: int = 100,
    cameras: int = 6,
    frames: int = 4,
    distractors: int = 300,
    junk: int = 100,
) -> dict[str, int]:
    """Writes the images, and returns how many each folder holds.

    Args:
      output: folder; is made where it does not exist, and must not hold one of `FOLDERS`.
      seed: of everything that is drawn.
      train_identities: people in training.
      test_identities: people in test.
      cameras: how many there are.
      frames: most images of a person by a camera.
      distractors: images of person 0.
      junk: images of person -1.

    Raises:
      ValueError: a number is too small, or the folder is in use.
    """
    _check_numbers(
        {"seed": (seed, 0), "train_identities": (train_identities, 1), "test_identities": (test_identities, 1)}
        | {"cameras": (cameras, 2), "frames": (frames, 2), "distractors": (distractors, 0), "junk": (junk, 0)}
    )
    used = next((output / name for name in FOLDERS if (output / name).exists()), None)
    if used:
        raise ValueError(f"{used}: exists already; delete it, or name another folder")
    people = _people(seed, train_identities + test_identities)
    numbers = np.random.default_rng([seed, _PEOPLE, 1]).permutation(len(people)) + 1
    in_training = set(numbers[:train_identities].tolist())
    images = [
        *_sightings(seed, people, in_training, cameras, frames),
        *_others(seed, people, cameras, distractors, junk),
    ]
    watching = [
        make_camera(np.random.default_rng([seed, _CAMERAS, number]), number, cameras)
        for number in range(1, cameras + 1)
    ]
    _write_all(output, images, watching, seed)
    return {name: sum(image.path.startswith(f"{name}/") for image in images) for name in FOLDERS}


def _check_numbers(numbers: dict[str, tuple[int, int]]) -> None:
    """Refuses a number, by its name, that is below the least one."""
    for name, (value, least) in numbers.items():
        if value < least:
            raise ValueError(f"{name}: got {value}, want at least {least}")


def _people(seed: int, count: int) -> list[Person]:
    """People, many of whom look like others."""
    generator = np.random.default_rng([seed, _PEOPLE, 0])
    people: list[Person] = []
    while len(people) < count:
        first = random_person(generator)
        alike = int(generator.choice((0, 1, 2, 3), p=(0.35, 0.3, 0.2, 0.15)))
        people += [first, *(similar_person(first, generator) for _ in range(alike))]
    return people[:count]


def _sightings(seed: int, people: list[Person], in_training: set[int], cameras: int, frames: int) -> Iterator[Image]:
    """All images of the people; a camera's first one of a test person is a query."""
    generator = np.random.default_rng([seed, _SIGHTINGS, 0])
    for number, person in enumerate(people, start=1):
        seen = int(generator.integers(min(3, cameras), cameras + 1))
        for camera in sorted(generator.choice(cameras, seen, replace=False) + 1):
            start, sequence = int(generator.integers(1, 90_000)), int(generator.integers(1, 7))
            for frame in range(int(generator.integers(2, frames + 1))):
                folder = FOLDERS[0] if number in in_training else FOLDERS[1] if frame == 0 else FOLDERS[2]
                name = f"{number:04d}_c{camera}s{sequence}_{start + 25 * frame:06d}_{frame:02d}.jpg"
                yield Image(f"{folder}/{name}", person, int(camera), 1000 * number + int(camera), frame)


def _others(seed: int, people: list[Person], cameras: int, distractors: int, junk: int) -> Iterator[Image]:
    """Distractors: other people, empty streets and parts of bodies; and junk: parts of the people."""
    generator = np.random.default_rng([seed, _SIGHTINGS, 1])
    for i in range(distractors + junk):
        is_junk = i >= distractors
        camera = int(generator.integers(1, cameras + 1))
        stranger = random_person(generator)
        if is_junk:
            stranger, kind = people[int(generator.integers(len(people)))], "part"
        else:
            kind = str(generator.choice(("person", "empty", "part"), p=(0.4, 0.3, 0.3)))
        number = "-1" if is_junk else "0000"
        name = f"{number}_c{camera}s{generator.integers(1, 7)}_{1000 + 25 * i:06d}_{i % 100:02d}.jpg"
        yield Image(f"{FOLDERS[2]}/{name}", stranger, camera, -1 - i, 0, kind)


def _write_all(output: pathlib.Path, images: list[Image], cameras: list[Camera], seed: int) -> None:
    """Draws the images, each with random numbers of its own, and writes their files."""
    for name in FOLDERS:
        (output / name).mkdir(parents=True)

    def write(place: int) -> None:
        _write(output, images[place], cameras[images[place].camera - 1], [seed, _IMAGES, place])

    with futures.ThreadPoolExecutor() as pool:
        list(pool.map(write, range(len(images))))


def _write(output: pathlib.Path, image: Image, camera: Camera, seed: list[int]) -> None:
    """Draws an image and writes its file."""
    generator = np.random.default_rng(seed)
    walk = np.random.default_rng([seed[0], _SIGHTINGS, 2, abs(image.walk), int(image.walk < 0)])
    place = float(np.clip(walk.uniform(0.02, 0.98) + 0.01 * image.frame, 0, 1))
    pose = _pose(camera, image, walk, generator)
    size = (_FINER * HEIGHT, _FINER * WIDTH)
    figures = np.zeros((*size, 4), np.uint8)
    if image.kind != "empty":
        figures = draw_person(image.person, pose, size)
        if generator.random() < 0.12:
            figures = _occlude(figures, pose, generator)
    picture = photograph(camera, figures, generator, place=place)
    quality = [cv2.IMWRITE_JPEG_QUALITY, _QUALITY]
    data = cv2.imencode(".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), quality)[1]
    (output / image.path).write_bytes(data.tobytes())


def _pose(camera: Camera, image: Image, walk: np.random.Generator, generator: np.random.Generator) -> Pose:
    """How a person is seen in a frame: like in the other frames of the walk, but for the step and the detector."""
    heading = camera.heading + (np.pi if walk.random() < 0.25 else 0.0) + walk.normal(0, 0.35)
    phase = walk.uniform(0, 2 * np.pi) + 1.9 * image.frame + generator.normal(0, 0.2)
    stride = float(walk.uniform(0.25, 0.5))
    height = camera.fill * HEIGHT * generator.normal(1, 0.05)
    x, y = WIDTH * (0.5 + generator.normal(0, 0.05)), HEIGHT * (0.97 + generator.normal(0, 0.02))
    if image.kind == "part":  # zoomed in, or cut by the border
        height *= generator.uniform(1.3, 2.4)
        x += WIDTH * generator.choice((-1, 1)) * generator.uniform(0.2, 0.6)
        y += HEIGHT * generator.uniform(0.0, 1.0)
    feet = (_FINER * float(x), _FINER * float(y))
    return Pose(
        float(heading + generator.normal(0, 0.1)), float(phase), stride, camera.elevation, feet, _FINER * height
    )


def _occlude(figures: np.ndarray, pose: Pose, generator: np.random.Generator) -> np.ndarray:
    """Puts something in front: someone else at the border, a post, or a low wall."""
    height, width = figures.shape[:2]
    kind = generator.choice(("person", "post", "wall"))
    colour = (*(int(value) for value in generator.integers(50, 150, 3)), 255)
    if kind == "person":
        side = generator.choice((-1, 1))
        feet = (pose.feet[0] + side * width * generator.uniform(0.38, 0.55), pose.feet[1] + 0.04 * height)
        other = draw_person(
            random_person(generator), pose._replace(feet=feet, height=1.05 * pose.height), (height, width)
        )
        return np.where(other[..., 3:] > 0, other, figures)
    if kind == "post":
        x = int(generator.uniform(0.15, 0.85) * width)
        cv2.rectangle(figures, (x, 0), (x + int(0.1 * width), height), colour, -1)
    else:
        top = int(generator.uniform(0.7, 0.88) * height)
        cv2.rectangle(figures, (0, top), (width, height), colour, -1)
    return figures


def main() -> None:
    """Generates what the command line asks for."""
    arguments = vars(parse_arguments())
    output = arguments.pop("output")
    try:
        counts = generate(output, **arguments)
    except (ValueError, OSError) as error:
        sys.exit(str(error))
    print(f"{output}: " + ", ".join(f"{count} images in {name}" for name, count in counts.items()))


if __name__ == "__main__":
    main()
