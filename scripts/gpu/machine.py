"""What correct, bench and soak share: the unpacked payload, the machine's facts, parts of a run with
a time limit each, and the files that are left under $OUT.

A GPU machine returns few files: each command leaves a table (.md), results (.json) and a log.
"""

import hashlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tarfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
ARCHIVES = ("node.tar.xz", "libraries.tar.xz", "project.tar.xz")
ARCH = "DIT_CUDA_ARCH"  # the variable that chooses a family of kernels
FAMILIES = ("sm_90a", "sm_80")
# Of the process's own output, what the log keeps of one part.
LOG_LIMIT = 400_000


def out_folder():
    folder = os.environ.get("OUT") or "out"
    os.makedirs(folder, exist_ok=True)
    return os.path.abspath(folder)


class Payload:
    """The folder with the binaries: where this script lies in an unpacked payload, that; otherwise
    build/gpu-run, unpacked from build/gpu-payload."""

    def __init__(self):
        self.folder = ROOT
        if not os.path.exists(os.path.join(ROOT, "gpu/payload.json")):
            self.folder = os.path.join(ROOT, "build/gpu-run")
            self._unpack(os.path.join(ROOT, "build/gpu-payload"))
        with open(os.path.join(self.folder, "gpu/payload.json"), encoding="utf-8") as file:
            self.facts = json.load(file)
        # {label: {variant: seconds}}: what was expected of variants before they were timed.
        with open(os.path.join(self.folder, "gpu/predictions.json"), encoding="utf-8") as file:
            self.predictions = json.load(file)
        self.test = os.path.join(self.folder, "build/Release/dit_native_test")
        self.node = os.path.join(self.folder, "gpu/bin/node")
        self.fixtures = os.path.join(ROOT, "test/fixtures")
        self.peer = os.path.join(ROOT, "bench/peers/torch_dit.py")

    def _unpack(self, source):
        for name in ARCHIVES:
            archive, mark = os.path.join(source, name), os.path.join(self.folder, f".{name}")
            if not os.path.exists(archive):
                # Unpacked by an earlier call on this machine, or Node, which comes in a later one.
                if os.path.exists(mark) or name == "node.tar.xz":
                    continue
                sys.exit(f"gpu-check: there is no {archive}: run `scripts/gpu-check pack` first")
            with open(archive, "rb") as file:
                state = hashlib.sha256(file.read()).hexdigest()
            if os.path.exists(mark) and open(mark, encoding="utf-8").read() == state:
                continue
            os.makedirs(self.folder, exist_ok=True)
            begin = time.monotonic()
            with tarfile.open(archive) as tar:
                # Pythons without filters give no choice, and need none.
                tar.extractall(
                    self.folder, **({"filter": "tar"} if hasattr(tarfile, "tar_filter") else {})
                )
            with open(mark, "w", encoding="utf-8") as file:
                file.write(state)
            print(f"unpacked {name} in {time.monotonic() - begin:.1f} s", flush=True)

    def environment(self, **more):
        """For our programs alone: PyTorch has libraries of its own."""
        libraries = [os.path.join(self.folder, "gpu/lib"), os.environ.get("LD_LIBRARY_PATH", "")]
        return {
            **os.environ,
            "LD_LIBRARY_PATH": ":".join(part for part in libraries if part),
            "DIT_FIXTURES": self.fixtures,
            **more,
        }


class Ended:
    def __init__(self, status, output, seconds, stopped):
        self.status, self.output, self.seconds, self.stopped = status, output, seconds, stopped

    @property
    def how(self):
        if self.stopped:
            return f"stopped after {self.seconds:.0f} s ({self.stopped})"
        if self.status < 0:
            return f"killed by {signal.Signals(-self.status).name}"
        return f"ended with status {self.status}"


def run(command, limit, env=None, silence=None):
    """The command in a process group of its own, of which nothing is left afterwards. It is stopped
    at its limit, and when it prints nothing for `silence` seconds."""
    begin = heard = time.monotonic()
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=env,
        start_new_session=True,
    )
    output, stopped = bytearray(), ""
    pipe = process.stdout.fileno()
    try:
        while True:
            now = time.monotonic()
            waits = [limit - (now - begin), (silence or limit) - (now - heard)]
            if min(waits) <= 0:
                stopped = "its limit" if waits[0] <= 0 else "it hung"
                break
            if not select.select([pipe], [], [], min(waits))[0]:
                continue
            piece = os.read(pipe, 1 << 16)
            if not piece:
                break
            output += piece
            heard = time.monotonic()
        if not stopped:
            try:
                process.wait(max(1, limit - (time.monotonic() - begin)))
            except subprocess.TimeoutExpired:
                stopped = "its limit"
    finally:
        kill_group(process)
        process.wait()
        process.stdout.close()
    text = output.decode(errors="replace")
    return Ended(process.returncode, text, time.monotonic() - begin, stopped)


def kill_group(process):
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def quiet(*command, limit=20):
    """The output of a tool that may not be there, or ''."""
    if shutil.which(command[0]) is None:
        return ""
    ended = run(list(command), limit)
    return ended.output.strip() if ended.status == 0 else ""


def is_gpu(device):
    return device.startswith("cuda") and device != "cuda:emulated"


GPU_QUERY = "name,driver_version,memory.total,clocks.sm,clocks.max.sm,clocks.mem,power.limit"


def machine_facts(device):
    """Lines of what ran where."""
    facts = {}
    gpu = quiet("nvidia-smi", f"--query-gpu={GPU_QUERY}", "--format=csv,noheader")
    if gpu:
        facts["GPU"] = f"{gpu.splitlines()[0]} ({GPU_QUERY})"
    elif is_gpu(device):
        facts["GPU"] = "nvidia-smi tells nothing"
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        names = [line.split(": ", 1)[1].strip() for line in file if line.startswith("model name")]
    facts["processor"] = f"{names[0] if names else os.uname().machine}, {os.cpu_count()} threads"
    facts["kernel"] = os.uname().release
    return facts


class Log:
    """Everything that the parts printed, in one file."""

    def __init__(self, name):
        self.file = open(os.path.join(out_folder(), f"{name}.log"), "w", encoding="utf-8")

    def add(self, title, text):
        """From any thread: one write, and so in one piece."""
        if len(text) > LOG_LIMIT:
            text = f"{text[: LOG_LIMIT // 2]}\n[…]\n{text[-LOG_LIMIT // 2 :]}"
        self.file.write(f"\n======== {title}\n{text}\n")
        self.file.flush()


def table(columns, rows):
    """Markdown, which a terminal shows well enough."""
    rows = [[str(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in [columns, *rows]) for i in range(len(columns))]
    line = lambda cells: "| " + " | ".join(c.ljust(w) for c, w in zip(cells, widths)) + " |"  # noqa: E731
    return "\n".join([line(columns), line(["-" * w for w in widths]), *map(line, rows)])


def head(payload, device, facts):
    """The line above a table: when, where, what, how."""
    where = facts.get("GPU", facts["processor"]).split(" (")[0]
    command = " ".join(["scripts/gpu-check", *sys.argv_shown])
    day = time.strftime("%Y-%m-%d", time.gmtime())
    return f"{day}, commit {payload.facts['commit']}, device {device}, {where}, `{command}`."


def write_results(name, text, results, more=""):
    """`more` goes into the file alone: of what is printed, only the end comes back."""
    folder = out_folder()
    with open(os.path.join(folder, f"{name}.md"), "w", encoding="utf-8") as file:
        file.write("\n\n".join(part for part in (text, more) if part) + "\n")
    with open(os.path.join(folder, f"{name}.json"), "w", encoding="utf-8") as file:
        json.dump(results, file, indent=1)
    print(f"\n{text}\n\nwritten: {folder}/{name}.md, .json, .log", flush=True)


sys.argv_shown = [os.path.basename(sys.argv[0]).removesuffix(".py"), *sys.argv[1:]]
