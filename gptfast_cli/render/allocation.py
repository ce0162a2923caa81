"""What each layer of a model got under a budget, and why: what it costs in every scheme that it could have had."""

from typing import TextIO

from gptfast_cli.core.jobs.allocating import ChosenAllocation
from gptfast_cli.core.schemes.plain import NAME as PLAIN
from gptfast_cli.render.numbers import nats, size
from gptfast_cli.render.tables import write_table


def document(chosen: ChosenAllocation) -> dict[str, object]:
    """The choice as JSON fields; KLDs are means in nats, each of one layer alone."""
    return {
        "layers": [
            {
                "layer": layer,
                "scheme": str(chosen.allocation.of_layer(layer)),
                "kld": {str(option.storage): option.kld for option in options},
                "bytes": {str(option.storage): option.n_bytes for option in options},
            }
            for layer, options in enumerate(chosen.options)
        ],
        "ends_kld": chosen.ends_kld,
        "predicted_kld": chosen.predicted_kld,
        "measured_kld": chosen.measured_kld,
        "tokens": chosen.n_tokens,
    }


def write_choice(chosen: ChosenAllocation, stream: TextIO) -> None:
    """Write a line for each layer: what it got, its size, and its KLD in each scheme by itself; then the sums."""
    storages = [option.storage for option in chosen.options[0] if option.storage.scheme != PLAIN]
    rows = []
    for layer, options in enumerate(chosen.options):
        by_storage = {option.storage: option for option in options}
        got = chosen.allocation.of_layer(layer)
        klds = (nats(by_storage[storage].kld) for storage in storages)
        rows.append((str(layer), str(got), size(by_storage[got].n_bytes), *klds))
    write_table([("LAYER", "GETS", "SIZE", *(f"KLD IN {str(storage).upper()}" for storage in storages)), *rows], stream)
    stream.write(
        f"KLD {nats(chosen.predicted_kld)} as a sum, of which embedding and head {nats(chosen.ends_kld)}; "
        f"{nats(chosen.measured_kld)} together, over {chosen.n_tokens:,} tokens\n"
    )
