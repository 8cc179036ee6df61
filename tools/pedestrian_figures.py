"""Draws people who walk, seen from any side.

A body is a few joints in three dimensions: `lateral` to the person's left, `forward` where the person walks, and
`level` from 0 at the top of the head to 1 on the ground, all in heights of the body. A heading of 0 faces the viewer,
one of pi/2 walks to the right of the picture.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import cv2
import numpy as np

from tools.pedestrian_people import Colour, Person, shaded


class Pose(NamedTuple):
    """How a person is seen.

    Attributes:
      heading: radians, see the module.
      phase: of the steps, radians.
      stride: largest angle of a leg, radians.
      elevation: how much the camera looks down, from 0 to about 0.3.
      feet: x and y in the picture, pixels.
      height: of an average person in the picture, pixels.
    """

    heading: float
    phase: float
    stride: float
    elevation: float
    feet: tuple[float, float]
    height: float


class _Figure:
    """A picture on which the parts of a person are painted, far ones first."""

    def __init__(self, person: Person, pose: Pose, size: tuple[int, int]):
        self.person = person
        self.pose = pose
        self.picture = np.zeros((*size, 4), np.uint8)
        self.scale = pose.height * person.height
        self.cosine, self.sine = math.cos(pose.heading), math.sin(pose.heading)
        self.parts: list[tuple[float, Callable[[], None]]] = []

    def point(self, lateral: float, forward: float, level: float) -> np.ndarray:
        """Where a point of the body is in the picture."""
        elevation, above = self.pose.elevation, 1 - level
        x = (lateral * self.cosine + forward * self.sine) * self.width(level)
        y = above * (1 - elevation + elevation * above) - forward * self.cosine * elevation
        return np.array([self.pose.feet[0] + self.scale * x, self.pose.feet[1] - self.scale * y])

    def width(self, level: float) -> float:
        """How much nearer a level is to a camera above."""
        return 1 - self.pose.elevation / 2 + self.pose.elevation * (1 - level)

    def depth(self, lateral: float, forward: float) -> float:
        """How near a point is to the viewer."""
        return forward * self.cosine - lateral * self.sine

    def half(self, lateral: float, forward: float) -> float:
        """Half the width of what has these half axes."""
        return math.hypot(lateral * self.cosine, forward * self.sine)

    def add(self, depth: float, paint: Callable[[], None]) -> None:
        """Takes a part to be painted."""
        self.parts.append((depth, paint))

    def finish(self) -> np.ndarray:
        """Paints the parts."""
        for _, paint in sorted(self.parts, key=lambda part: part[0]):
            paint()
        return self.picture

    def fill(self, polygon: np.ndarray, colour: Colour, shade: float = 1.0) -> None:
        """Paints a polygon in one colour."""
        points = np.round(np.asarray(polygon) * 16).astype(np.int32)
        cv2.fillPoly(self.picture, [points], (*shaded(colour, shade), 255), cv2.LINE_8, 4)

    def limb(self, ends: Sequence[np.ndarray], radii: Sequence[float], colour: Colour, shade: float = 1.0) -> None:
        """Paints a limb: a chain of joints with a radius each, in heights of the body."""
        for (p, q), (r, s) in zip(itertools.pairwise(ends), itertools.pairwise(radii), strict=True):
            along = (q - p) / (np.linalg.norm(q - p) + 1e-6)
            across = np.array([-along[1], along[0]]) * self.scale
            self.fill(np.stack([p + across * r, q + across * s, q - across * s, p - across * r]), colour, shade)
            for centre, radius in ((p, r), (q, s)):
                self.ellipse(centre, radius, radius, colour, shade)

    def ellipse(self, centre: np.ndarray, width: float, height: float, colour: Colour, shade: float = 1.0) -> None:
        """Paints an ellipse with half axes in heights of the body."""
        angles = np.linspace(0, 2 * np.pi, 20, endpoint=False)
        outline = np.stack([np.cos(angles) * width, np.sin(angles) * height], -1) * self.scale
        self.fill(centre + outline, colour, shade)

    def outline(self, levels: Sequence[tuple[float, float, float]], forward: float = 0.0) -> np.ndarray:
        """The outline of a trunk that has half axes, lateral and forward, at some levels."""
        rows = []
        for level, lateral, depth in levels:
            half = self.half(lateral, depth) * self.scale * self.width(level)
            rows.append((self.point(0, forward, level), half))
        left = [centre - np.array([half, 0]) for centre, half in rows]
        right = [centre + np.array([half, 0]) for centre, half in reversed(rows)]
        return np.array(left + right)

    def fill_texture(self, polygon: np.ndarray, texture: np.ndarray) -> None:
        """Paints a polygon with a part of a picture of the same size."""
        height, width = self.picture.shape[:2]
        x0, y0 = np.floor(polygon.min(0)).astype(int).clip(0, (width - 1, height - 1))
        x1, y1 = (np.ceil(polygon.max(0)).astype(int) + 1).clip(1, (width, height))
        if x1 > x0 and y1 > y0:
            mask = np.zeros((y1 - y0, x1 - x0), np.uint8)
            cv2.fillPoly(mask, [np.round((polygon - (x0, y0)) * 16).astype(np.int32)], 255, cv2.LINE_8, 4)
            cv2.copyTo(texture[y0:y1, x0:x1], mask, self.picture[y0:y1, x0:x1])


def draw_person(person: Person, pose: Pose, size: tuple[int, int]) -> np.ndarray:
    """Draws a person.

    Args:
      person: what they look like.
      pose: how they are seen.
      size: height and width of the picture, pixels.

    Returns:
      uint8 `[h, w, 4]`: RGB and opacity.
    """
    figure = _Figure(person, pose, size)
    for side in (-1, 1):
        _add_leg(figure, side)
        _add_arm(figure, side)
    _add_trunk(figure)
    _add_head(figure)
    if person.bag != "none":
        {"backpack": _add_backpack, "shoulder": _add_shoulder_bag, "hand": _add_hand_bag}[person.bag](figure)
    return figure.finish()


def _add_leg(figure: _Figure, side: int) -> None:
    """A leg with its clothes and shoe."""
    person, pose = figure.person, figure.pose
    phase = pose.phase + (math.pi if side > 0 else 0)
    thigh = pose.stride * math.sin(phase)
    shin = thigh - pose.stride * (0.25 + 0.75 * max(0.0, math.cos(phase)))
    lateral = side * 0.043 * person.build
    hip = (lateral, 0.0, 0.49)
    knee = (lateral, 0.24 * math.sin(thigh), 0.49 + 0.24 * math.cos(thigh))
    ankle = (lateral * 0.9, knee[1] + 0.225 * math.sin(shin), knee[2] + 0.225 * math.cos(shin))
    toe = (lateral * 1.1, ankle[1] + 0.07 * math.cos(shin * 0.7), min(1.0, ankle[2] + 0.03))
    points = [figure.point(*joint) for joint in (hip, knee, ankle, toe)]
    depth = figure.depth(lateral, knee[1] * 0.5)
    shade = 0.86 if depth < -0.005 else 1.0
    cloth = 0.006 * person.build

    def paint() -> None:
        thick = person.build * 0.5 + 0.5
        figure.limb(points[2:], [0.022, 0.018], person.shoes)
        if person.bottom == "trousers":
            radii = [0.052 * thick + cloth, 0.037 * thick + cloth, 0.027 + cloth]
            figure.limb(points[:3], radii, person.bottom_colour, shade)
        else:
            figure.limb(points[:3], [0.048 * thick, 0.034 * thick, 0.021], person.skin, shade)
        if person.bottom == "shorts":
            end = points[0] + 0.8 * (points[1] - points[0])
            figure.limb([points[0], end], [0.054 * thick, 0.048 * thick], person.bottom_colour, shade)

    figure.add(depth - 1, paint)


def _arm_joints(figure: _Figure, side: int) -> list[tuple[float, float, float]]:
    """Shoulder, elbow and wrist."""
    person, pose = figure.person, figure.pose
    swing = -0.75 * pose.stride * math.sin(pose.phase + (math.pi if side > 0 else 0))
    carries = person.bag == "hand" and side == person.bag_side
    upper, fore = (swing * 0.3, 0.05) if carries else (swing, swing + 0.35)
    shoulder = (side * 0.098 * person.build, 0.0, 0.2)
    elbow = (shoulder[0] + side * 0.024, 0.15 * math.sin(upper), 0.2 + 0.15 * math.cos(upper))
    wrist = (elbow[0] + side * 0.004, elbow[1] + 0.145 * math.sin(fore), elbow[2] + 0.145 * math.cos(fore))
    return [shoulder, elbow, wrist]


def _add_arm(figure: _Figure, side: int) -> None:
    """An arm with its sleeve and hand."""
    person = figure.person
    shoulder, elbow, wrist = _arm_joints(figure, side)
    points = [figure.point(*joint) for joint in (shoulder, elbow, wrist)]
    depth = figure.depth(shoulder[0], elbow[1])
    shade = 0.82 if depth < 0 else 0.93

    def paint() -> None:
        thick = person.build * 0.6 + 0.4
        figure.limb(points[1:], [0.024 * thick, 0.018], person.skin, shade)
        figure.ellipse(points[2], 0.021, 0.023, person.skin)
        if person.long_sleeves:
            end = points[1] + 0.9 * (points[2] - points[1])
            figure.limb([*points[:2], end], [0.034 * thick, 0.03 * thick, 0.024], person.top, shade)
        else:
            end = points[0] + 0.75 * (points[1] - points[0])
            figure.limb(points[:2], [0.03 * thick, 0.025 * thick], person.skin, shade)
            figure.limb([points[0], end], [0.034 * thick, 0.036 * thick], person.top, shade)

    figure.add(depth, paint)


def _add_trunk(figure: _Figure) -> None:
    """Neck, top and skirt."""
    person = figure.person
    build, waist = person.build, person.waist
    shoulders = [(0.146, 0.036, 0.036), (0.16, 0.066 * build, 0.05), (0.182, 0.1 * build, 0.06)]
    levels = [*shoulders, (0.25, 0.106 * build, 0.078), (0.38, 0.1 * build * waist, 0.07), (0.48, 0.1 * build, 0.078)]
    levels.append((person.hem, 0.1 * build, 0.076))

    def paint() -> None:
        hips = [(0.42, 0.094 * build, 0.07), (0.5, 0.1 * build, 0.078)]
        if person.bottom == "skirt":
            hips += [(0.66, 0.135 * build, 0.12), (0.68, 0.13 * build, 0.11)]
        else:
            hips += [(0.54, 0.085 * build, 0.065)]
        figure.fill(figure.outline(hips), person.bottom_colour)
        figure.limb([figure.point(0, 0, 0.12), figure.point(0, 0, 0.16)], [0.027, 0.032], person.skin, 0.85)
        figure.fill_texture(figure.outline(levels), _texture(figure))

    figure.add(-0.01, paint)


def _texture(figure: _Figure) -> np.ndarray:
    """The cloth of the top, as large as the picture."""
    person, scale = figure.person, figure.scale
    texture = np.empty_like(figure.picture)
    texture[:] = (*person.top, 255)
    height, width = texture.shape[:2]
    y = (np.arange(height) - figure.point(0, 0, 0.15)[1]) / scale
    x = (np.arange(width) - figure.pose.feet[0]) / scale - 0.1 * figure.sine
    second = (*person.second, 255)
    if person.pattern == "rings":
        texture[y % 0.06 < 0.026] = second
    elif person.pattern == "stripes":
        texture[:, x % 0.05 < 0.018] = second
    elif person.pattern == "checks":
        squares = (y[:, None] % 0.08 < 0.04) ^ (x[None] % 0.08 < 0.04)
        texture[squares] = second
    elif person.pattern == "band":
        texture[(y > 0.08) & (y < 0.17)] = second
    elif person.pattern == "logo" and figure.cosine > 0.2:
        centre = figure.point(0, 0.07, 0.27)
        size = (max(1, int(0.05 * scale * figure.cosine)), max(1, int(0.045 * scale)))
        cv2.ellipse(texture, tuple(int(v) for v in centre), size, 0, 0, 360, second, -1)
    elif person.pattern == "jacket" and figure.cosine > 0.1:
        centre, half = figure.point(0, 0.07, 0.3)[0], 0.032 * scale * figure.cosine
        texture[:, max(0, int(centre - half)) : max(0, int(centre + half))] = second
    return texture


def _add_head(figure: _Figure) -> None:
    """Hair, face and hat."""
    person = figure.person
    centre = figure.point(0, 0.012, 0.07)
    rim = figure.half(0.05, 0.058)

    def paint() -> None:
        hair = person.skin if person.hair_style == "bald" else person.hair
        figure.ellipse(centre, rim, 0.07, hair)
        if figure.cosine > -0.45:
            face = centre + figure.scale * np.array([0.024 * figure.sine, 0.013])
            figure.ellipse(face, 0.043 - 0.006 * abs(figure.sine), 0.055, person.skin)
            for eye in (-0.015, 0.015):
                place = face + figure.scale * np.array([eye * figure.cosine + 0.016 * figure.sine, -0.008])
                figure.ellipse(place, 0.006, 0.005, (40, 32, 30))
            mouth = face + figure.scale * np.array([0.016 * figure.sine, 0.022])
            figure.ellipse(mouth, 0.011, 0.004, shaded(person.skin, 0.68))
        if person.hat != "none":
            _paint_hat(figure, centre, rim)

    figure.add(0.5, paint)
    if person.hair_style in ("long", "ponytail"):
        _add_hair(figure)


def _add_hair(figure: _Figure) -> None:
    """Hair that falls on the shoulders or is tied."""
    person = figure.person
    width, level = (0.052, 0.21) if person.hair_style == "long" else (0.018, 0.19)

    def paint() -> None:
        top = figure.point(0, -0.02 - 0.02 * (width < 0.03), 0.07)
        figure.limb([top, figure.point(0, -0.05, level)], [width * 0.9, width * 0.75], person.hair)

    figure.add(figure.depth(0, -0.06), paint)


def _paint_hat(figure: _Figure, centre: np.ndarray, rim: float) -> None:
    """A cap with a peak, or a beanie."""
    colour = figure.person.hat_colour
    angles = np.linspace(np.pi, 2 * np.pi, 12)
    crown = np.stack([np.cos(angles) * (rim + 0.006), np.sin(angles) * 0.074], -1) * figure.scale
    lower = 0.0 if figure.person.hat == "cap" else 0.014
    base = crown[[-1, 0]] + np.array([0, lower * figure.scale])
    middle = centre - np.array([0, 0.012 * figure.scale])
    figure.fill(middle + np.concatenate([crown, base]), colour)
    if figure.person.hat == "cap" and figure.cosine > -0.6:
        peak = centre + figure.scale * np.array([0.05 * figure.sine, -0.012])
        figure.ellipse(peak, 0.034 + 0.014 * abs(figure.sine), 0.011, colour, 0.75)


def _add_backpack(figure: _Figure) -> None:
    """A bag on the back, and its straps."""
    person = figure.person
    levels = [(0.17, 0.05, 0.03), (0.19, 0.075, 0.045), (0.38, 0.085, 0.055), (0.42, 0.075, 0.045)]

    def paint() -> None:
        figure.fill(figure.outline(levels, forward=-0.105), person.bag_colour)
        pocket = [(0.3, 0.055, 0.05), (0.39, 0.055, 0.052)]
        figure.fill(figure.outline(pocket, forward=-0.11), person.bag_colour, 0.75)

    def straps() -> None:
        for side in (-1, 1):
            ends = [figure.point(side * 0.06, 0.05, 0.16), figure.point(side * 0.07, 0.06, 0.3)]
            figure.limb(ends, [0.012, 0.012], person.bag_colour, 0.7)

    figure.add(figure.depth(0, -0.15), paint)
    if figure.cosine > 0.25:
        figure.add(-0.005, straps)


def _add_shoulder_bag(figure: _Figure) -> None:
    """A bag at the hip, on a strap across the body."""
    person, side = figure.person, figure.person.bag_side
    lateral = side * 0.12 * person.build
    depth = figure.depth(lateral, 0)

    def paint() -> None:
        centre = figure.point(lateral, 0, 0.5)
        half = figure.half(0.035, 0.075) * figure.scale
        corners = np.array([[-half, -0.05], [half, -0.05], [half * 0.95, 0.05], [-half * 0.95, 0.05]])
        corners[:, 1] *= figure.scale
        figure.fill(centre + corners, person.bag_colour)
        figure.fill(centre + corners * (1, 0.4) - (0, 0.025 * figure.scale), person.bag_colour, 0.75)

    def strap() -> None:
        forward = 0.06 if figure.cosine > 0 else -0.06
        ends = [figure.point(-side * 0.06, forward, 0.16), figure.point(lateral * 0.8, forward, 0.46)]
        figure.limb(ends, [0.008, 0.008], person.bag_colour, 0.7)

    figure.add(depth + 0.01 * np.sign(depth), paint)
    figure.add(-0.004, strap)


def _add_hand_bag(figure: _Figure) -> None:
    """A bag that hangs from a hand."""
    person, side = figure.person, figure.person.bag_side
    joints = _arm_joints(figure, side)

    def paint() -> None:
        hand = figure.point(*joints[2])
        half = figure.half(0.03, 0.06) * figure.scale
        top, low = 0.035 * figure.scale, 0.14 * figure.scale
        figure.limb([hand, hand + np.array([0, top])], [0.006, 0.006], person.bag_colour, 0.6)
        figure.fill(
            hand + np.array([[-half, top], [half, top], [half * 1.1, low], [-half * 1.1, low]]), person.bag_colour
        )

    figure.add(figure.depth(joints[0][0], joints[1][1]) + 0.001, paint)
