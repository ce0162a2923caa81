"""The choice of a temperature: what belongs to another is hidden while one is chosen, on a screen and nowhere else.

It needs no script: a style rule looks at which button is pressed. A browser that does not know `:has` shows all.
"""

from collections.abc import Iterable, Sequence

from gptfast_cli.core.drafts.report import DraftReport
from gptfast_cli.render.markup import Child, Element, tag


def temperatures(judgement: DraftReport) -> list[float]:
    """All that something was measured at, the lowest first."""
    drafts = {each.temperature for each in judgement.drafts}
    return sorted(drafts | {each.temperature for each in judgement.plain})


def chooser(choices: Sequence[float]) -> Element | None:
    """A button for each temperature and one for all; nothing where there is no choice."""
    if len(choices) < 2:
        return None
    buttons = [(f"t{n}", f"{temperature:g}") for n, temperature in enumerate(choices)]
    return tag(
        "fieldset",
        tag("legend", "Temperature"),
        *(child for n, (name, label) in enumerate(buttons) for child in _button(name, label, is_chosen=n == 0)),
        *_button("t-all", "all", is_chosen=False),
        class_="chooser",
    )


def chooser_rules(choices: Sequence[float]) -> str:
    """The style rules that hide what is not chosen."""
    rules = (f"main:has(#t{n}:checked) .at:not(.t{n})" for n in range(len(choices)))
    return f"@media screen{{{','.join(rules)}{{display:none}}}}" if len(choices) > 1 else ""


def at_temperature(
    choices: Sequence[float], temperature: float, children: Iterable[Child], class_: str = ""
) -> Element:
    """What belongs to a temperature."""
    return tag("div", *children, class_=f"at t{choices.index(temperature)} {class_}".rstrip())


def _button(name: str, label: str, *, is_chosen: bool) -> list[Element]:
    checked = "checked" if is_chosen else None
    return [
        tag("input", type="radio", name="temperature", id=name, checked=checked),
        tag("label", label, for_=name),
    ]
