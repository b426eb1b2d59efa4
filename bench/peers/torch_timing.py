"""Timing for the peer: CUDA events, warm-up, medians; records as JSON lines.

A record's `label` ("op shape dtype") is what joins it with the line of the same label of
`dit_native_test --bench --json`; `variant` says how PyTorch did it.
"""

import json
import statistics
import sys
import time

import torch

WARM_UP = 0.2  # seconds
SAMPLE = 0.01  # seconds that one sample takes at least
MOST_REPEATS = 200


class Clock:
    """Seconds of `repeats` calls on the device."""

    def __init__(self, device):
        self.on_gpu = torch.device(device).type == "cuda"

    def wait(self):
        if self.on_gpu:
            torch.cuda.synchronize()

    def seconds(self, work, repeats, wall=False):
        if self.on_gpu and not wall:
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            for _ in range(repeats):
                work()
            end.record()
            end.synchronize()
            return begin.elapsed_time(end) / 1e3 / repeats
        self.wait()
        start = time.perf_counter()
        for _ in range(repeats):
            work()
        self.wait()
        return (time.perf_counter() - start) / repeats


def captured(work, calls=1):
    """The work, called so many times, as one CUDA graph: replaying it has no launch gaps."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            work()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(calls):
            work()
    return graph


class Bench:
    def __init__(self, device, path, samples=21, only=(), compiled=True):
        self.device, self.samples, self.only, self.compiled = device, samples, only, compiled
        self.clock = Clock(device)
        self.mark = ""  # behind every variant
        self.file = open(path, "w", encoding="utf-8") if path else None

    def wants(self, label):
        return not self.only or any(part in label for part in self.only)

    def keep(self, record):
        if self.file:
            self.file.write(json.dumps(record) + "\n")
            self.file.flush()  # what is measured survives a time limit

    def skip(self, label, variant, reason):
        if not variant.endswith(self.mark):
            variant += self.mark
        reason = " ".join(str(reason).split())[:160]
        self.keep({"side": "torch", "label": label, "variant": variant, "skipped": reason})
        print(f"{label:<44} {variant:<18} not run: {reason}")

    def measure(
        self, label, variant, work, flops=0.0, traffic=0.0, graph=False, wall=False, units=1
    ):
        """The median time of a unit, of which a call does so many. With `graph`, calls are captured
        in a CUDA graph, several in one where they are short. `wall`: the host's clock, for work
        that ends on the host. What cannot run is recorded as skipped, with the reason: False."""
        if not self.wants(label):
            return False
        variant += self.mark
        if self.clock.on_gpu:
            torch.cuda.reset_peak_memory_stats()
        try:
            times, repeats = self.time(work, graph and self.clock.on_gpu, wall)
        except Exception as error:  # the others go on: a compiler has many ways to fail
            self.skip(label, variant, f"{type(error).__name__}: {error}")
            return False
        seconds, best = statistics.median(times) / units, min(times) / units
        record = {
            "side": "torch",
            "label": label,
            "variant": variant,
            "seconds": seconds,
            "best": best,
            "samples": self.samples,
            "repeats": repeats * units,
            "flops": flops,
            "bytes": traffic,
        }
        if self.clock.on_gpu:
            record["peak_memory"] = torch.cuda.max_memory_allocated()
        self.keep(record)
        line = f"{label:<44} {variant:<18} {seconds * 1e6:12.1f} us"
        if flops:
            line += f" {flops / seconds * 1e-12:8.2f} TFLOP/s"
        if traffic:
            line += f" {traffic / seconds * 1e-9:8.1f} GB/s"
        print(f"{line}   (best {best * 1e6:.1f} us)")
        sys.stdout.flush()
        return True

    def time(self, work, graph, wall):
        work()  # compiles, chooses algorithms
        self.clock.wait()
        once = self.clock.seconds(work, 2, wall)
        calls = 1
        if graph:
            calls = max(1, min(MOST_REPEATS, int(1e-3 / once)))
            work = captured(work, calls).replay
            once = self.clock.seconds(work, 2, wall)
        repeats = max(1, min(MOST_REPEATS, int(SAMPLE / once)))
        warm_up_end = time.perf_counter() + WARM_UP
        while time.perf_counter() < warm_up_end:
            self.clock.seconds(work, repeats, wall)
        times = [self.clock.seconds(work, repeats, wall) / calls for _ in range(self.samples)]
        return times, repeats * calls

    def compile(self, function, tuned=False):
        """`function` under torch.compile, without its own CUDA graphs: `measure` makes them. Tuned,
        it also tries its own products against cuBLAS's, which takes a minute."""
        # A function that was compiled too often, be it for other sizes, would run as it is.
        torch.compiler.reset()
        mode = "max-autotune-no-cudagraphs" if tuned else "default"
        return torch.compile(function, mode=mode, dynamic=False)


def dtype_of(name):
    return torch.bfloat16 if name == "bf16" else torch.float32


def use_tf32(on):
    torch.backends.cuda.matmul.allow_tf32 = on
    torch.backends.cudnn.allow_tf32 = on
