"""scripts/gpu-check bench: how fast is it, beside PyTorch on the same machine in the same run?

Ceilings first (a large product, a large copy), then single operations, then whole models. Our side
runs before and after PyTorch's, so that a drift of the machine shows. With --variants instead our
kernels in other shapes, and other ways to start them, beside production and beside what was
predicted. At most 8 minutes; each part has a limit of its own, what is measured by then counts, and
what was not reached is in the table.
"""

import argparse
import json
import os
import sys
import time

import machine
from machine import ARCH, Log, Payload, is_gpu, run
from report import comparison, details, variants, variant_details

SAMPLES, SAMPLES_AGAIN, SAMPLES_VARIANTS = 21, 7, 9
NO_PYTORCH = "No module named 'torch'"
CASE_LIMIT = 90  # seconds of one case of the variants


class Step:
    """One side of one part: the cases of dit_native_test, or the peer's parts."""

    def __init__(self, title, limit, cases=(), peer=(), again=False, variants=False):
        self.title, self.limit, self.cases, self.peer = title, limit, cases, peer
        self.again, self.variants = again, variants


def steps(args):
    """In the order of what matters most, should the time run out."""
    scale = args.scale
    kinds = ["bf16", *(["tf32"] if args.tf32 else [])]

    def cases(*names):
        found = [f"=ops/{scale}/{name}/{kind}" for name in names for kind in kinds]
        return found

    def models(name):
        return [f"=model/{scale}/{name}/{kind}" for kind in kinds]

    operations = [
        *cases("linear", "conv", "linearBackward"),
        *(f"=ops/{scale}/{name}/bf16" for name in ("attention", "norms")),
        f"=ops/{scale}/adamW/fp32",
    ]
    few, many = (512, 16384) if scale == "xl" else (32, 64)  # rows
    linears = [f"linear.{name}-{{}}" for name in ("proj", "fc2", "qkv", "fc1")]
    steps_of = ["step-1", "step-32" if scale == "xl" else "step-2"]

    def variant_cases(rows, names):
        return [f"=variants/{scale}/{name.format(rows)}" for name in names]

    plan = {
        "ceilings": [Step("ceilings", 60, peer=["ceilings"])],
        "ops": [
            Step("operations, ours", 100, cases=operations),
            Step("operations, PyTorch", 180, peer=["ops"]),
            Step("operations, ours again", 80, cases=operations, again=True),
        ],
        "models": [
            Step("sampling, ours", 60, cases=models("sampling")),
            Step("decode, ours", 40, cases=models("decode")),
            Step("sampling, PyTorch", args.compile_limit, peer=["forward"]),
            Step("decode, PyTorch", 120, peer=["decode"]),
            Step("sampling, ours again", 40, cases=models("sampling"), again=True),
        ],
        "training": [
            Step("training, ours", 120, cases=models("training")),
            Step("training, PyTorch", args.compile_limit, peer=["training"]),
        ],
        # One image first: what is decided by it is the largest part of the gap to the bar.
        "variants": [
            Step("variants, steps", 150, cases=variant_cases(few, steps_of), variants=True),
            Step("variants, few rows", 150, cases=variant_cases(few, linears), variants=True),
            Step("variants, many rows", 240, cases=variant_cases(many, linears), variants=True),
        ],
    }
    wanted = args.parts.split(",")
    chosen = [step for name, part in plan.items() if name in wanted for step in part]
    for step in chosen:
        step.cases = [case for case in step.cases if is_chosen(case, args.only)]
    return [step for step in chosen if step.cases or step.peer]


def is_chosen(case, only):
    """--only has parts of PyTorch's labels ("linear.qkv 16384"), which begin as our cases are called,
    or of these."""
    operation = case.split("/")[2]
    parts = [part for part in only.split(",") if part]
    return not parts or any(part in case or part.startswith(operation) for part in parts)


class Bench:
    def __init__(self, args, payload, log):
        self.args, self.payload, self.log = args, payload, log
        self.deadline = time.monotonic() + args.limit
        self.ours, self.again, self.peer, self.variants, self.timeline = [], [], [], [], []

    def run(self, step):
        """Each case of ours has a process of its own: one that fails costs no other."""
        begin = time.monotonic()
        end = min(begin + step.limit, self.deadline)
        target = self.peer if step.peer else (self.again if step.again else self.ours)
        target = self.variants if step.variants else target
        problems, lines = [], 0
        print(f"---- {step.title}", flush=True)
        for case in step.cases or [None]:
            left = end - time.monotonic()
            if left < 5:
                problems.append(f"{case or step.title}: no time was left")
                continue
            records = os.path.join(machine.out_folder(), ".records")
            if os.path.exists(records):
                os.remove(records)
            command, env = self.command(step, case, records)
            ended = run(command, min(left, CASE_LIMIT) if step.variants else left, env)
            self.log.add(f"{step.title} {case or ''}", ended.output)
            print("\n".join(ended.output.strip().split("\n")[-40:]), flush=True)
            found = read_records(records)
            if step.variants:
                for record in found:
                    record["variant"] = record["case"][len(case) :]  # "<case>/<variant>"
            target.extend(found)
            lines += len(found)
            if NO_PYTORCH in ended.output:
                problems.append("not run: there is no PyTorch")
            elif ended.status != 0:
                problems.append(f"{case or step.title} {ended.how}")
        state = "; ".join(problems) or "done"
        seconds = time.monotonic() - begin
        self.timeline.append([step.title, f"{seconds:.0f} s", f"{state}, {lines} lines"])

    def command(self, step, case, records):
        args, device = self.args, self.args.device
        samples = args.samples or (SAMPLES_AGAIN if step.again else SAMPLES)
        if step.variants:
            samples = args.samples or SAMPLES_VARIANTS
        if step.peer:
            where = "cuda" if is_gpu(device) else "cpu"
            command = [args.python, self.payload.peer, *step.peer, "--device", where]
            command += ["--json", records, "--scale", args.scale, "--samples", str(samples)]
            command += ["--dtypes", "bf16,tf32" if args.tf32 else "bf16"]
            command += ["--eager"] if args.eager else []
            command += ["--compiled-model"] if args.compiled_model else []
            command += ["--unchecked"] if args.unchecked else []
            command += ["--only", args.only] if args.only else []
            env = {
                **os.environ,
                "DIT_FIXTURES": self.payload.fixtures,
                "PYTHONDONTWRITEBYTECODE": "1",
                "PYTHONUNBUFFERED": "1",
            }
            return command, env
        command = [self.payload.test, "--bench", "--device", device, "--json", records]
        command += ["--samples", str(samples), case]
        chosen = {ARCH: args.arch} if args.arch else {}
        return command, self.payload.environment(**chosen)

    def profile(self):
        """What ncu says of some launches of each case, which it slows down a lot, and nsys of the
        gaps between the kernels of a step."""
        scale = self.args.scale
        sections = ["SpeedOfLight", "MemoryWorkloadAnalysis", "WarpStateStats", "Occupancy"]
        ncu = ["ncu", "--clock-control", "none", "--launch-skip", "40", "--launch-count", "12"]
        for section in [*sections, "LaunchStats", "ComputeWorkloadAnalysis"]:
            ncu += ["--section", section]
        trace = os.path.join(machine.out_folder(), "step")
        nsys = ["nsys", "profile", "--trace", "cuda", "--cuda-graph-trace", "node"]
        nsys += ["--stats", "true", "--force-overwrite", "true", "--output", trace]
        jobs = [(nsys, f"variants/{scale}/step-1")]
        for case in ("linear", "attention", "linearBackward", "norms"):
            jobs.append((ncu, f"ops/{scale}/{case}/bf16"))
        text = []
        for tool, name in jobs:
            left = self.deadline - time.monotonic()
            title = f"{tool[0]} {name}"
            if not is_chosen(f"={name}", self.args.only):
                continue
            if machine.shutil.which(tool[0]) is None:
                self.timeline.append([title, "not run", f"there is no {tool[0]}"])
                continue
            if left < 10:
                self.timeline.append([title, "not run", "no time was left"])
                continue
            command = [*tool, self.payload.test, "--bench", "--device", self.args.device]
            command += ["--samples", "1", f"={name}"]
            ended = run(command, min(60, left), self.payload.environment())
            text.append(f"==== {title}: {ended.how}\n{ended.output}")
            self.timeline.append([title, f"{ended.seconds:.0f} s", ended.how])
        if text:
            folder = machine.out_folder()
            with open(os.path.join(folder, "profile.txt"), "w", encoding="utf-8") as file:
                file.write("\n".join(text))


def read_records(path):
    if not os.path.exists(path):
        return []
    with open(path, encoding="utf-8") as file:
        lines = file.read().split("\n")
    os.remove(path)
    records = []
    for line in lines:
        try:
            records.append(json.loads(line))
        except ValueError:
            continue  # the last line of a program that was stopped
    return records


def parse():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--device", default="cuda:0", help="cuda:0, cuda:emulated or cpu")
    parser.add_argument("--parts", default="ceilings,ops,models", help="and training, variants")
    parser.add_argument("--scale", default="xl", choices=("xl", "tiny"), help="tiny: to try it")
    parser.add_argument("--training", action="store_true", help="the part training, too")
    parser.add_argument("--variants", action="store_true", help="the part variants alone")
    parser.add_argument("--tf32", action="store_true", help="beside bf16")
    parser.add_argument("--compiled-model", action="store_true", help="the whole model, too")
    parser.add_argument("--eager", action="store_true", help="without torch.compile")
    parser.add_argument("--ncu", action="store_true", help="profiles, in profile.txt")
    parser.add_argument("--arch", help="sm_90a or sm_80: this family of kernels")
    parser.add_argument("--unchecked", action="store_true", help="times a wrong peer, marked so")
    parser.add_argument("--only", default="", help="labels or cases with these parts, a,b")
    parser.add_argument("--samples", type=int, help=f"default {SAMPLES}")
    parser.add_argument("--limit", type=float, default=470, help="seconds for all parts")
    parser.add_argument("--compile-limit", type=float, default=240, help="of a compiled model")
    parser.add_argument("--python", default=sys.executable, help="one that has PyTorch")
    args = parser.parse_args()
    if args.training:
        args.parts += ",training"
    if args.variants:
        args.parts = "variants"
    known = {"ceilings", "ops", "models", "training", "variants"}
    if unknown := set(args.parts.split(",")) - known:
        parser.error(f"--parts: expected some of {sorted(known)}, got {sorted(unknown)}")
    return args


def measured(bench, payload):
    """The tables of what there is."""
    parts = [variants(bench.variants, payload.predictions)] if bench.variants else []
    if bench.variants and is_gpu(bench.args.device) and not payload.facts.get("candidates"):
        parts.append("The library was packed without candidates: only production was timed.")
    if bench.ours or bench.again or bench.peer or not parts:
        parts.append(comparison(bench.ours, bench.again, bench.peer))
    return parts


def main():
    args = parse()
    payload, log = Payload(), Log("variants" if args.variants else "bench")
    facts = machine.machine_facts(args.device)
    log.add("machine", json.dumps({**facts, **payload.facts}, indent=1))
    bench = Bench(args, payload, log)
    clocks = []
    for step in steps(args):
        bench.run(step)
        now = machine.quiet(
            "nvidia-smi",
            "--query-gpu=clocks.sm,power.draw,temperature.gpu,clocks_event_reasons.active",
            "--format=csv,noheader",
        )
        if now:
            clocks.append(f"after {step.title}: {now}")
    if args.ncu:
        bench.profile()
    text = "\n\n".join(
        [
            machine.head(payload, args.device, facts),
            machine.table(["part", "time", "how it went"], bench.timeline),
            *(["\n".join(f"- {line}" for line in clocks)] if clocks else []),
            *measured(bench, payload),
        ]
    )
    results = {
        "facts": facts,
        "payload": payload.facts,
        "ours": bench.ours,
        "again": bench.again,
        "peer": bench.peer,
        "variants": bench.variants,
        "timeline": bench.timeline,
        "clocks": clocks,
    }
    name = "variants" if args.variants else "bench"
    more = [details(bench.peer), variant_details(bench.variants, payload.predictions)]
    machine.write_results(name, text, results, "\n\n".join(part for part in more if part))
    complete = all(how.startswith(("done", "not run")) for _, _, how in bench.timeline[: len(steps(args))])
    return 0 if (bench.ours or bench.variants) and complete else 1


if __name__ == "__main__":
    sys.exit(main())
