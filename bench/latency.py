"""How long tokens take, and how many there are: `python bench/latency.py`.

- 1 to 64 clients that stream, of the whole service and of the bare engine: time to the first token and between
  tokens, throughput, and so what the service costs.
- Pure decoding of 1 to 128 sequences, beside the limits of this machine's memory and arithmetic; drawn in
  docs/images/engine-throughput.svg.
- Prompts with a beginning in common, with and without the reuse of keys and values; what these take.
- `chunk_tokens`, the dial between even texts and fast reading.

All sides take turns in every round; medians count, and percentiles are over all rounds. Prints tables in Markdown and
writes bench-latency.json.
"""

import argparse
import time
from pathlib import Path

import transformers

from bench import chunk_dial, decode_curve, kv_reuse, service_cost
from bench.decoder import DTYPE
from bench.generate import whole_service
from bench.machine import describe
from bench.report import keep

FILE = Path("bench-latency.json")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="tiny loads: shows that everything runs")
    quick = parser.parse_args().quick
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    machine = describe(DTYPE)
    started = time.monotonic()
    # The rest has the machine for itself: the service has stopped by then.
    with whole_service() as client:
        clients = service_cost.measure(client, service_cost.QUICK if quick else service_cost.FULL)
    curve = decode_curve.measure(decode_curve.QUICK if quick else decode_curve.FULL)
    reuse = kv_reuse.measure(kv_reuse.QUICK if quick else kv_reuse.FULL)
    dial = chunk_dial.measure(chunk_dial.QUICK if quick else chunk_dial.FULL)
    if not quick:
        decode_curve.picture(curve)
    seconds = time.monotonic() - started
    print(f"\n{seconds:.0f} s in all")
    figures = {"clients": clients, "decoding": curve, "kv_reuse": reuse, "chunk_tokens": dial}
    keep(FILE, {"machine": machine, "seconds": seconds, **figures}, quick=quick)


if __name__ == "__main__":
    main()
