"""Peak memory of log-probabilities and their gradient, in chunks and dense: `python benchmarks/head_memory.py`, about a minute.

One output layer (896 wide, 151,936 tokens, those of Qwen2.5-0.5B), 4,096 tokens, float32. Every computation runs in a process of its
own; counted is the largest resident memory beyond what weights, hidden states and their gradients take.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import threading
import time
from pathlib import Path


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def worker(kind: str, tokens: int, vocabulary: int, width: int) -> dict[str, float]:
    import torch

    from anypo.policies.language.filter import Filter
    from anypo.policies.language.output_head import functionals

    torch.manual_seed(0)
    head = torch.nn.Linear(width, vocabulary, bias=False)
    hidden = torch.randn(tokens, width, requires_grad=True)
    taken = torch.randint(vocabulary, (tokens,))
    head.weight.grad, hidden.grad = torch.zeros_like(head.weight), torch.zeros_like(hidden)
    for grad in (head.weight.grad, hidden.grad):
        grad.fill_(0.0)
    base, peak, done = resident(), 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.is_set():
            peak = max(peak, resident())
            time.sleep(0.001)

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    if kind == "dense":
        logp = head(hidden).log_softmax(-1).gather(1, taken[:, None])[:, 0]
    else:
        logp = functionals(hidden, head, taken, Filter(), ("logp",), vocabulary)["logp"]
    logp.sum().backward()
    seconds = time.perf_counter() - start
    done.set()
    watcher.join()
    return {"bytes": float(peak - base), "seconds": seconds, "gradient": float(hidden.grad.norm())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kind", nargs="?", choices=("dense", "chunked"))
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--vocabulary", type=int, default=151_936)
    parser.add_argument("--width", type=int, default=896)
    parser.add_argument("--json", type=Path, help="write the figures there")
    options = parser.parse_args()
    size = (options.tokens, options.vocabulary, options.width)
    if options.kind:
        print(json.dumps(worker(options.kind, *size)))
        return
    from measured import machine

    found: dict[str, object] = {"machine": machine(), "size": size}
    for kind in ("dense", "chunked"):
        words = [f"--{name}={value}" for name, value in zip(("tokens", "vocabulary", "width"), size, strict=True)]
        done = subprocess.run([sys.executable, __file__, kind, *words], check=True, stdout=subprocess.PIPE, text=True)
        found[kind] = one = json.loads(done.stdout)
        print(f"{kind:8} {one['bytes'] / 2**20:7.0f} MiB  {one['seconds']:6.1f} s  |gradient| {one['gradient']:.6g}")
    found["share"] = found["chunked"]["bytes"] / found["dense"]["bytes"]
    print(f"chunked takes {found['share']:.3f} of the dense memory")
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
