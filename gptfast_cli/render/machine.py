"""The machine, the versions and the day of a measurement in one line, as it stands below a table of results."""

from gptfast_cli.core.bench.environment import Environment


def machine_line(about: Environment) -> str:
    """Where it was measured, with what, and when."""
    threads = f"{about.threads} thread{'' if about.threads == 1 else 's'} of {about.cpu or 'a CPU'}"
    ranks = "" if about.ranks == 1 else f"{about.ranks} ranks, each on "
    commit = f", commit {about.commit[:10]}{'-dirty' * about.commit.endswith('-dirty')}" if about.commit else ""
    return (
        f"{ranks}{about.gpu or threads}, {about.dtype} on {about.device}; torch {about.torch}, "
        f"Python {about.python}, gptfast {about.gptfast}{commit}; {about.date[:10]}"
    )
