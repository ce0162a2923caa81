"""The style sheet's colours: every writing can be read on what it stands on, in light and in dark."""

import re

import pytest

from gptfast_cli.render.charts.svg import EDGES, chart_style, shade

STYLE = chart_style()
SHADES = [*(f"loss{n}" for n in (4, 3, 2, 1)), "even", *(f"gain{n}" for n in (1, 2, 3, 4))]
PAIRS = [
    *((f"on-{each}", each) for each in SHADES),
    *((ink, page) for ink in ("ink", "soft", "good", "warn", "first", "second") for page in ("page",)),
    ("ink", "warn-page"),
]


def colours(mode: str) -> dict[str, str]:
    light, dark = re.findall(r":root \{(.*?)\}", STYLE, flags=re.DOTALL)
    named = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", light))
    return named if mode == "light" else named | dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", dark))


def luminance(colour: str) -> float:
    """Relative luminance as WCAG 2 defines it."""
    parts = [int(colour[n : n + 2], 16) / 255 for n in (1, 3, 5)]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("mode", ["light", "dark"])
@pytest.mark.parametrize(("ink", "page"), PAIRS)
def test_writing_stands_out_from_its_ground(mode: str, ink: str, page: str) -> None:
    named = colours(mode)
    assert contrast(named[ink], named[page]) >= 4.5


@pytest.mark.parametrize("mode", ["light", "dark"])
@pytest.mark.parametrize("side", ["loss", "gain"])
def test_a_stronger_shade_is_further_from_even(mode: str, side: str) -> None:
    named = colours(mode)
    lights = [luminance(named[each]) for each in ("even", *(f"{side}{n}" for n in (1, 2, 3, 4)))]
    if mode == "dark":
        lights = lights[1:]  # even is grey there, and a first tint is no lighter than it
    assert lights == sorted(lights, reverse=mode == "light")


def test_every_shade_has_its_colours_in_both_modes() -> None:
    for each in SHADES:
        assert all(rule in STYLE for rule in (f".{each} {{", f".on-{each} {{", f".ring-{each} {{"))
        assert STYLE.count(f"--{each}: #") == STYLE.count(f"--on-{each}: #") == 2


def test_a_ratio_and_its_inverse_are_equally_strong_and_one_is_even() -> None:
    assert shade(1.0) == shade(1.01) == shade(0.99) == "even"
    for n, edge in enumerate(EDGES, start=1):
        assert shade(edge * 1.001) == f"gain{n}"
        assert shade(1 / (edge * 1.001)) == f"loss{n}"
    assert shade(0.0) == "loss4"
