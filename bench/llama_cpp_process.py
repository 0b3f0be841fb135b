"""Runs in the peer's own environment: `python llama_cpp_process.py WEIGHTS THREADS`.

Each line of its input is a list of requests in JSON, {"prompt": token ids, "new_tokens": count}; each line of its
output what they took together, {"tokens": …, "seconds": …}. Greedy, one request after the other, no end token.
"""

import json
import sys
import time
from typing import Any

import xllamacpp

CONTEXT = 2048
"""Tokens: those of one of Tandem's sequence slots."""


def serve(weights: str, threads: int) -> None:
    parameters = xllamacpp.CommonParams()
    parameters.model.path = weights
    parameters.n_ctx = CONTEXT
    parameters.n_parallel = 1
    parameters.cpuparams.n_threads = threads
    parameters.cpuparams_batch.n_threads = threads
    server = xllamacpp.Server(parameters)
    for line in sys.stdin:
        requests = json.loads(line)
        started = time.perf_counter()
        tokens = sum(generate(server, request) for request in requests)
        print(json.dumps({"tokens": tokens, "seconds": time.perf_counter() - started}), flush=True)


def generate(server: xllamacpp.Server, request: dict[str, Any]) -> int:
    answer = server.handle_completions(
        {
            "prompt": request["prompt"],
            "max_tokens": request["new_tokens"],
            "temperature": 0,
            "ignore_eos": True,
            "cache_prompt": False,
        }
    )
    generated: int = answer["usage"]["completion_tokens"]
    if generated != request["new_tokens"]:
        raise RuntimeError(f"{generated} tokens were generated, and {request['new_tokens']} were asked for")
    return generated


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]))
