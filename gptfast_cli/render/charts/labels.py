"""Where names stand beside points, so that none covers another name or another point."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

LETTER: Final = 6.2
"""Pixels that a letter takes, on the wide side of the mean."""

_HEIGHT: Final = 14


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle on the sheet."""

    left: float
    top: float
    right: float
    bottom: float

    def meets(self, other: "Box") -> bool:
        """Whether the two have a spot in common."""
        is_beside = self.right <= other.left or other.right <= self.left
        return not (is_beside or self.bottom <= other.top or other.bottom <= self.top)

    def holds(self, other: "Box") -> bool:
        """Whether the other lies within."""
        is_across = self.left <= other.left and other.right <= self.right
        return is_across and self.top <= other.top and other.bottom <= self.bottom


def placed(names: Sequence[str], points: Sequence[Box], sheet: Box) -> list[Box | None]:
    """A box for each name beside its point, or None where there is no room: the first names choose first."""
    taken = list(points)
    boxes: list[Box | None] = []
    for name, point in zip(names, points, strict=True):
        free = (box for box in _around(point, LETTER * len(name)) if sheet.holds(box))
        box = next((box for box in free if not any(box.meets(other) for other in taken)), None)
        boxes.append(box)
        taken += [box] if box is not None else []
    return boxes


def _around(point: Box, width: float) -> list[Box]:
    """Right, left, above, below, and the four between."""
    x, y = (point.left + point.right) / 2, (point.top + point.bottom) / 2
    right, left = point.right + 5, point.left - 5 - width
    above, below = point.top - 2 - _HEIGHT, point.bottom + 2
    middle = y - _HEIGHT / 2
    corners = [
        (right, middle), (left, middle), (x - width / 2, above), (x - width / 2, below),
        (right, above), (right, below), (left, above), (left, below),
    ]  # fmt: skip
    return [Box(at, top, at + width, top + _HEIGHT) for at, top in corners]
