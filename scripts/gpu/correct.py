"""scripts/gpu-check correct: is everything right on this machine? At most 4 minutes.

All native cases on the device, with every family of kernels; compute-sanitizer on small ones; the
way from DiT.load to a PNG, batch invariance and repeatable training in Node; the PyTorch peer
against the fixtures. The last line is `N passed, N failed`.
"""

import argparse
import json
import os
import shutil
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import machine
from machine import ARCH, FAMILIES, Log, Payload, is_gpu, run
from native_cases import Cases

# Seconds. The native cases keep all processors busy; the other parts run beside each other.
NATIVE_LIMIT = 110
FULL_LIMIT = 60
SANITIZER_LIMIT = 80
NODE_LIMIT = 90
PEER_LIMIT = 60

# Parts of the names of small cases that together launch every kind of kernel. racecheck reports
# false hazards on raw bulk copies, none on those through tensor maps.
SANITIZED = [
    "linear/BF16-BF16/gelu/",
    "linear/BF16-BF16/residual-in-place-gated-columns/",
    "linear/F32-F32/residual-shared-gated/",
    "linearBackward/BF16/dx-gelu/3",
    "linearBackward/BF16/dx-f32/1x1",
    "linearBackward/F32/dx-added/3",
    "candidates/linear/128x128x1s7g1t",
    "attention/bf16/d72/t300",
    "attention/bf16/d64/t256",
    "attention/bf16/d512/t64",
    "attention/f32/d72/t256",
    "attention-backward/bf16/d72/t300",
    "attention-backward/bf16/d64/t193",
    "layerNormModulate/bf16-bf16/c1152",
    "layerNormModulateBackward/bits",
    "groupNorm/bf16/silu/",
    "conv2d/BF16/plain-separate/2",
    "conv2d/BF16/upsample-prepared/2",
    "adamW/bits",
    "loss/bits",
    "solverUpdate",
    "=noise",
    "=patchify",
    "=guide",
    "squaredNorm",
    "dit/fixture/micro24",
    "trainer/fixture/gradients/",
    "vae/decode/fixture",
]
# Cases that start many different kernels after one another.
EARLY = ["dit/", "sampler/", "trainer/fixture", "vae/decode", "candidates/dependent", "linear/BF16"]
EARLY_LIMIT = 70
SANITIZERS = ("memcheck", "racecheck")


class Report:
    def __init__(self):
        self.rows, self.problems, self.passed, self.failed = [], [], 0, 0
        self.results = []

    def add(self, part, passed, failed, note="", seconds=0.0):
        self.passed += passed
        self.failed += failed
        verdict = "FAILED" if failed else ("passed" if passed else "not run")
        self.rows.append([part, verdict, passed, failed, f"{seconds:.0f} s", note])
        self.results.append(
            {"part": part, "passed": passed, "failed": failed, "note": note, "seconds": seconds}
        )
        print(f"{verdict:<8} {part}: {passed} passed, {failed} failed. {note}", flush=True)

    def merge(self, other):
        self.rows += other.rows
        self.problems += other.problems
        self.results += other.results
        self.passed += other.passed
        self.failed += other.failed

    def problem(self, where, text):
        self.problems.append(f"{where}: {' '.join(text.split())[:700]}")


def patience(device):
    """The emulator is slow."""
    return 1 if is_gpu(device) else 5


def families(device):
    return FAMILIES if device.startswith("cuda") else (None,)


def native(payload, device, report, log, args):
    """All cases, every family at once: the oracles on the CPU take most of the time."""
    chosen = families(device)
    processes = max(1, min(8, (os.cpu_count() or 2) // len(chosen)))
    limit = args.native_limit
    begin = time.monotonic()
    with ThreadPoolExecutor(len(chosen)) as pool:
        runs = [
            pool.submit(Cases(payload, device, family).run, args.only, processes, limit)
            for family in chosen
        ]
    for cases in (pending.result() for pending in runs):
        add_cases(cases, f"native cases, {cases.label}", report, log, time.monotonic() - begin)


def add_cases(cases, part, report, log, seconds):
    log.add(part, "\n".join(cases.log))
    failed = len(cases.failures) + len(cases.not_run)
    slowest = max(cases.times.items(), key=lambda item: item[1], default=("none", 0))
    note = f"of {len(cases.names)}; slowest {slowest[0]}, {slowest[1]:.1f} s"
    if cases.not_run:
        note = f"{len(cases.not_run)} not reached; {note}"
        report.problem(part, f"not reached: {', '.join(cases.not_run[:20])}")
    for name, message in cases.failures.items():
        report.problem(f"{part}, {name}", message)
    report.add(part, len(cases.passed - set(cases.failures)), failed, note, seconds)


def full_size(payload, device, report, log, args):
    """DiT-XL/2 and the VAE at their full sizes, against the reference."""
    if not is_gpu(device):
        report.add("full-size networks", 0, 0, "not run: they take minutes without a GPU")
        return
    for family in FAMILIES[:1]:
        begin = time.monotonic()
        cases = Cases(payload, device, family, full=True).run(["full/"], 5, FULL_LIMIT)
        part = f"full-size networks, {cases.label}"
        add_cases(cases, part, report, log, time.monotonic() - begin)


def dependent(payload, device, report, log, args):
    """Whole networks with kernels that start before those before them have ended. Nothing but their
    own wait keeps them from reading too early, here and in recorded rounds."""
    part = "kernels that start early"
    if not device.startswith("cuda"):
        report.add(part, 0, 0, f"not run: {device} has no kernels")
        return
    begin = time.monotonic()
    cases = Cases(payload, device, FAMILIES[0], more={"DIT_CUDA_TUNING": "launch=dependent"})
    cases.run(EARLY, 2, EARLY_LIMIT * patience(device))
    add_cases(cases, part, report, log, time.monotonic() - begin)


def sanitize(payload, device, report, log, args):
    for part in SANITIZED:
        listed = run([payload.test, "--isa", "generic", "--list", part], 20, payload.environment())
        if listed.status != 0:
            report.problem("compute-sanitizer", f"no case is called {part}")
            report.add(f"compute-sanitizer's case {part}", 0, 1)
    tool = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    why = ""
    if not is_gpu(device):
        why = f"{device} is no GPU"
    elif not os.path.exists(tool):
        why = "there is no compute-sanitizer"
    jobs = [(kind, family) for kind in SANITIZERS for family in families(device)]
    if why:
        report.add("compute-sanitizer memcheck, racecheck", 0, 0, f"not run: {why}")
        return

    def one(job):
        kind, family = job
        checks = ["--tool", kind, "--error-exitcode", "9", "--print-limit", "20"]
        if kind == "memcheck":
            checks += ["--leak-check", "no"]
        command = [tool, *checks, payload.test, "--device", device, "--trace", *SANITIZED]
        env = payload.environment(OMP_NUM_THREADS="2", **{ARCH: family})
        return job, run(command, SANITIZER_LIMIT, env)

    with ThreadPoolExecutor(len(jobs)) as pool:
        for (kind, family), ended in pool.map(one, jobs):
            part = f"compute-sanitizer {kind}, {family}"
            log.add(part, ended.output)
            cases = ended.output.count("\nok   ")
            clean = ended.status == 0 and cases > 0
            note = f"{cases} cases ran" if clean else f"{cases} cases ran; {ended.how}"
            if not clean:
                marked = [line for line in ended.output.split("\n") if "=========" in line]
                report.problem(part, "\n".join(marked[:12]) or ended.output[-500:])
            report.add(part, int(clean), int(not clean), note, ended.seconds)


def node(payload, device, report, log, args):
    """Its script prints a line for each check, the last line is a summary as JSON."""
    picture = os.path.join(machine.out_folder(), "sample.png")
    script = os.path.join(machine.ROOT, "scripts/gpu/node_path.cjs")
    if not os.path.exists(payload.node):
        report.add("Node: load to PNG", 0, 0, "not run: the payload has no node.tar.xz")
        return
    command = [payload.node, script, payload.folder, payload.fixtures, device, picture]
    ended = run(command, NODE_LIMIT * patience(device), payload.environment())
    log.add("Node", ended.output)
    lines = ended.output.strip().split("\n")
    try:
        summary = json.loads(lines[-1])
    except ValueError:
        report.problem("Node", f"{ended.how}: {ended.output[-600:]}")
        report.add("Node: load to PNG", 0, 1, ended.how, ended.seconds)
        return
    for failure in summary["failures"]:
        report.problem("Node", failure)
    failed = len(summary["failures"])
    if failed == 0 and ended.status != 0:
        failed = 1
        report.problem("Node", ended.how)
    report.add("Node: load to PNG", summary["passed"], failed, summary["note"], ended.seconds)


def peer(payload, device, report, log, args):
    where = "cuda" if is_gpu(device) else "cpu"
    command = [args.python, payload.peer, "check", "--device", where]
    env = {**os.environ, "DIT_FIXTURES": payload.fixtures, "PYTHONDONTWRITEBYTECODE": "1"}
    ended = run(command, PEER_LIMIT, env)
    log.add("PyTorch peer", ended.output)
    if "No module named 'torch'" in ended.output:
        report.add("PyTorch peer against the fixtures", 0, 0, "not run: there is no PyTorch")
        return
    lines = ended.output.strip().split("\n")
    counts = lines[-2 if ended.status else -1].replace(",", "").split()
    try:
        passed, failed = int(counts[0]), int(counts[2])
    except (ValueError, IndexError):
        passed, failed = 0, 1
        report.problem("PyTorch peer", f"{ended.how}: {ended.output[-500:]}")
    version = next((line for line in lines if line.startswith("PyTorch")), "")
    report.add("PyTorch peer against the fixtures", passed, failed, version, ended.seconds)


PARTS = {
    "native": native,
    "full": full_size,
    "dependent": dependent,
    "sanitize": sanitize,
    "node": node,
    "peer": peer,
}


def parse():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--device", default="cuda:0", help="cuda:0, cuda:emulated or cpu")
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--only", default="", help="native cases with these in their names: a,b")
    parser.add_argument("--native-limit", type=float, default=NATIVE_LIMIT, help="seconds")
    parser.add_argument("--python", default=sys.executable, help="one that has PyTorch")
    args = parser.parse_args()
    if unknown := set(args.parts.split(",")) - set(PARTS):
        parser.error(f"--parts: expected some of {', '.join(PARTS)}, got {', '.join(unknown)}")
    args.only = [part for part in args.only.split(",") if part]
    return args


def main():
    args = parse()
    begin = time.monotonic()
    payload, report, log = Payload(), Report(), Log("correct")
    facts = machine.machine_facts(args.device)
    log.add("machine", json.dumps({**facts, **payload.facts}, indent=1))
    log.add("nvidia-smi", machine.quiet("nvidia-smi") or "not there")
    for name, value in {**facts, **payload.facts}.items():
        print(f"{name}: {value}", flush=True)
    chosen = args.parts.split(",")
    if "native" in chosen:
        native(payload, args.device, report, log, args)

    def beside(name):
        own = Report()
        PARTS[name](payload, args.device, own, log, args)
        return own

    with ThreadPoolExecutor(len(PARTS)) as pool:
        for own in pool.map(beside, [name for name in PARTS if name in chosen and name != "native"]):
            report.merge(own)
    text = machine.head(payload, args.device, facts)
    columns = ["part", "result", "passed", "failed", "time", "note"]
    text += f" {time.monotonic() - begin:.0f} s in all.\n\n{machine.table(columns, report.rows)}"
    if report.problems:
        text += "\n\n" + "\n".join(f"- {problem}" for problem in report.problems[:60])
    results = {
        "facts": facts,
        "payload": payload.facts,
        "parts": report.results,
        "problems": report.problems,
    }
    machine.write_results("correct", text, results)
    print(f"{report.passed} passed, {report.failed} failed")
    return 0 if report.failed == 0 and report.passed > 0 else 1


if __name__ == "__main__":
    sys.exit(main())
