"""How far a model is from the reference, for a person: each number with what it means, and what can be said of both."""

import math
from collections.abc import Iterator
from typing import Final

from gptfast_cli.core.measure.comparison.comparing import Compared
from gptfast_cli.core.measure.comparison.contestants import Side
from gptfast_cli.core.measure.divergence import Divergence
from gptfast_cli.render.numbers import nats, share
from gptfast_cli.render.table import Table

_HEADINGS: Final = ("divergence", "value", "")


def divergence_table(found: Compared) -> Table:
    """A row for each number."""
    return Table(_HEADINGS, tuple(_rows(found.divergence)), "<><")


def divergence_sides(found: Compared) -> str:
    """Who stands against whom, and on what."""
    text = "the bundled text" if found.protocol is None else f"the text by {found.protocol}"
    windows = f", {found.n_windows:,} of {found.n_windows_all:,} windows" if found.is_partial else ""
    return (
        f"{_told(found.model)}, against the reference, {_told(found.reference)}: {found.divergence.tokens:,} tokens of "
        f"{text}{windows}"
    )


def divergence_verdict(found: Compared) -> str:
    """Which one predicts the text better, where that can be told."""
    divergence, model, reference = found.divergence, found.model.name, found.reference.name
    if found.is_itself:
        return f"{model} was compared with itself."
    if divergence.ppl_ratio_low is None or divergence.ppl_ratio_high is None:
        return "Which one predicts the text better cannot be told from this."
    low, high = divergence.ppl_ratio_low, divergence.ppl_ratio_high
    decimals = _decimals(high - low)
    ratio = f"x {divergence.ppl_ratio:.{decimals}f} [{low:.{decimals}f}, {high:.{decimals}f}]"
    match divergence.better:
        case None:
            return f"No difference in perplexity beyond the noise: {ratio}."
        case "reference":
            return f"The reference, {reference}, predicts the text better: perplexity {ratio}."
        case "other":
            return f"{model} predicts the text better than the reference: perplexity {ratio}."


def _rows(found: Divergence) -> Iterator[tuple[str, str, str]]:
    yield "KLD", nats(found.kld_mean), "mean, in nats"
    yield "KLD p99", nats(found.kld_p99), ""
    yield "KLD max", nats(found.kld_max), ""
    yield "same top", share(found.same_top1), "both put the same token first"
    yield "flips", share(found.flips), "just one of both puts the text's token first"
    yield "RMS change", share(found.rms_p_change), "of the probability of the text's token"
    yield "alpha", f"{found.alpha:.4f}", "the share of tokens accepted as the reference's draft"
    yield "perplexity", f"{found.ppl_other:.4f}", f"the reference {found.ppl_reference:.4f}"


def _told(side: Side) -> str:
    return ", ".join([f"{side.name} ({side.scheme} {side.dtype} on {side.device}", side.backend, *side.roundings]) + ")"


def _decimals(width: float) -> int:
    """Digits behind the point that show an interval of this width."""
    return min(max(4, 2 - math.floor(math.log10(width))), 8) if 0 < width < math.inf else 4
