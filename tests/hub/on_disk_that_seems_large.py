"""`gptfast` on a disk that seems to have room, until it has none."""

import shutil

import gptfast_cli.core.jobs.download  # noqa: F401
from gptfast_cli.app import main

shutil.disk_usage = lambda _: type("Usage", (), {"free": 10**12})  # type: ignore[assignment, return-value]
main()
