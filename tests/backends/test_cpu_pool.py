"""The engine's threads: one that another program keeps from running is left out, and taken in again afterwards."""

import subprocess
from pathlib import Path

from gptfast_cli.core.backends.cpu import compiler

PROGRAM = r"""
#include "pool.h"

#include <cstdio>

struct Units {
  Pool& pool;
  int milliseconds;  // that the last thread is kept from running
  std::atomic<int> n_done{0};
};

// Sixteen units, of which the threads take one after another.
static void work(void* argument, int thread) {
  Units& units = *static_cast<Units*>(argument);
  if (thread == units.pool.n_threads - 1)
    std::this_thread::sleep_for(std::chrono::milliseconds(units.milliseconds));
  for (int unit = thread; unit < 16; unit += units.pool.n_active()) units.n_done++;
  units.pool.barrier(thread);
}

int main() {
  Pool pool(3);
  auto run = [&](int milliseconds) {
    Units units{pool, milliseconds};
    pool.run(work, &units);
    return units.n_done == 16;
  };
  const auto began = std::chrono::steady_clock::now();
  bool is_whole = true;
  auto run_until = [&](int n_active, int milliseconds) {
    while (pool.n_active() != n_active && std::chrono::steady_clock::now() - began < std::chrono::minutes(1))
      is_whole = run(milliseconds) && is_whole;
    printf("%d ", pool.n_active());
  };
  run(0);
  run_until(2, 20);
  run_until(3, 0);
  run_until(2, 20);
  printf("%s\n", is_whole ? "whole" : "units are missing");
}
"""


def test_a_thread_that_is_kept_from_running_is_left_out_until_it_runs_again(tmp_path: Path) -> None:
    source, program = tmp_path / "pool.cpp", tmp_path / "pool"
    source.write_text(PROGRAM)
    native = Path(compiler.__file__).parent / "native"
    command = ["g++", "-std=c++20", "-O0", "-pthread", f"-I{native}", str(source), "-o", str(program)]
    subprocess.run(command, check=True)
    done = subprocess.run([program], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.split() == ["2", "3", "2", "whole"]
