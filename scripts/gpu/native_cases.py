"""Runs cases of dit_native_test in parallel processes, and finds out about each of them: a case that
crashes or hangs costs only itself, and one that fails is tried again alone, since an error of CUDA
spoils the process for all that follow."""

import re
import time
from concurrent.futures import ThreadPoolExecutor

from machine import ARCH, run

MOST_RESTARTS = 25  # of one process's list
MOST_ALONE = 48  # failed cases that are tried again
ALONE_LIMIT = 40  # seconds
HUNG = {"cuda:emulated": 300}  # seconds of one case: no longer working, but hanging
HUNG_ELSEWHERE = 30


def last_line(output):
    """What a program said before it ended in another way than by itself."""
    lines = [line for line in output.strip().split("\n") if not line.startswith("run  ")]
    return lines[-1][:300] if lines else ""


class Cases:
    """The results of one device and family of kernels."""

    def __init__(self, payload, device, family=None, full=False, more=None):
        self.payload, self.device, self.family, self.full = payload, device, family, full
        self.more = more or {}  # of the environment
        self.passed, self.failures, self.not_run = set(), {}, []
        self.hung = set()
        self.log, self.times = [], {}
        self.names = []

    @property
    def env(self):
        chosen = {ARCH: self.family} if self.family else {}
        # The oracles are serial; many processes share the processor.
        return self.payload.environment(OMP_NUM_THREADS="2", **chosen, **self.more)

    def command(self, *args):
        full = ["--full"] if self.full else []
        return [self.payload.test, "--device", self.device, *full, *args]

    def run(self, filters, processes, limit):
        deadline = time.monotonic() + limit
        listed = run(self.command("--list", *filters), 20, self.env)
        if listed.status != 0:
            self.failures["--list"] = f"{listed.how}: {listed.output[-500:]}"
            return self
        self.names = listed.output.split("\n")[:-1]
        shares = [self.names[i::processes] for i in range(processes)]
        with ThreadPoolExecutor(processes) as pool:
            list(pool.map(lambda share: self._run_list(share, deadline), shares))
            suspects = [name for name in self.failures if name not in self.hung][:MOST_ALONE]
            list(pool.map(lambda name: self._try_alone(name, deadline), suspects))
        return self

    def _run_list(self, names, deadline):
        for _ in range(MOST_RESTARTS):
            if not names:
                return
            left = deadline - time.monotonic()
            if left < 1:
                break
            exact = [f"={name}" for name in names]
            silence = None if self.full else HUNG.get(self.device, HUNG_ELSEWHERE)
            ended = run(self.command("--trace", *exact), left, self.env, silence)
            self.log.append(ended.output)
            done, running = self._read(ended.output)
            names = [name for name in names if name not in done and name != running]
            if running is not None:
                if ended.stopped:
                    self.hung.add(running)
                self.failures[running] = f"{ended.how}: {last_line(ended.output)}"
            elif not done:
                break  # it does not get as far as the first case
        self.not_run += names

    def _read(self, output):
        """The cases that have ended, and the one that was running when the output ended."""
        done, running, messages = set(), None, {}
        for line in output.split("\n"):
            if line.startswith("run  "):
                running = line[5:]
            elif match := re.match(r"(ok  |FAIL) (.*) ([\d.]+) s$", line):
                name = match[2]
                done.add(name)
                self.times[name] = float(match[3])
                running = None
                if match[1] == "FAIL":
                    self.failures[name] = " / ".join(messages.get(name, ["no message"]))[:600]
                else:
                    self.passed.add(name)
            elif running is not None and f": {running}: " in line:
                messages.setdefault(running, []).append(line.split(f": {running}: ", 1)[1])
        return done, running

    def _try_alone(self, name, deadline):
        left = min(ALONE_LIMIT, deadline - time.monotonic())
        if left < 2:
            return
        ended = run(self.command(f"={name}"), left, self.env)
        self.log.append(f"alone: {name}\n{ended.output}")
        if ended.status == 0:
            self.failures[name] += " (alone it passes)"
        elif ended.status == 1:
            lines = [line for line in ended.output.split("\n") if f": {name}: " in line]
            alone = " / ".join(line.split(f": {name}: ", 1)[1] for line in lines)
            self.failures[name] = f"alone, too: {alone[:600]}"
        else:
            self.failures[name] = f"alone, too: {ended.how}: {last_line(ended.output)}"

    @property
    def label(self):
        return f"{self.device} {self.family}" if self.family else self.device
