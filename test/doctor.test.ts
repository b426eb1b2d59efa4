// `dit doctor`: this machine, and machines where something is missing.
// timeout: 120s
import { spawnSync } from 'node:child_process'
import { cpSync, mkdirSync, readdirSync, readFileSync, symlinkSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { report } from '../lib/cli/doctor.js'
import {
  type Diagnosis,
  diagnose,
  gpuProblems,
  memoryProblems,
  nodeProblems,
} from '../lib/doctor/doctor.js'
import { limitFacts, nvidiaFacts, usableProcessors } from '../lib/doctor/machine.js'
import { describeFresh } from '../lib/loading.js'
import { nativeFile } from '../lib/native.js'
import { dit } from './helpers/cli.js'
import { temporaryFolder } from './helpers/files.js'

const root = fileURLToPath(new URL('..', import.meta.url))
const { version } = JSON.parse(readFileSync(path.join(root, 'package.json'), 'utf8'))

/** A folder with these files in it. */
function folderWith(files: Record<string, string>): string {
  const folder = temporaryFolder()
  for (const [name, text] of Object.entries(files)) {
    mkdirSync(path.dirname(path.join(folder, name)), { recursive: true })
    writeFileSync(path.join(folder, name), text)
  }
  return `${folder}/`
}

// ---- this machine ----

test('here it works, and says what is here', async () => {
  const found = await diagnose()
  assert.ok(found.usable, JSON.stringify(found.problems))
  assert.equal(found.package, { version, folder: path.resolve(root) })
  assert.is(found.system.node, process.versions.node)
  assert.ok(found.system.libc === 'glibc' && /^2\.\d+$/.test(found.system.glibc ?? ''))
  assert.is(found.binary.file, nativeFile())
  assert.ok(found.binary.loads && found.binary.version === version)
  assert.ok(found.devices.some(({ device, available }) => device === 'cpu' && available))
  assert.ok(found.limits.processors >= 1 && found.limits.memoryAvailable <= found.limits.memory)
  assert.match(found.sharp ?? '', /^\d+\.\d+\.\d+/)
  assert.match(found.server.fastify ?? '', /^\d+\.\d+\.\d+/)
  const test = found.selfTest
  assert.ok(test?.passed && test.steps === 4 && test.sampleSeconds > 0 && test.loadSeconds > 0)
  const text = report(found)
  assert.ok(text.includes(nativeFile()) && text.includes('self-test'), text)
  assert.match(text, /\n\ndit-native works here/)
})

test('the command prints the same as JSON, and no secret', async () => {
  const home = temporaryFolder()
  mkdirSync(path.join(home, 'hub/models--a--b/blobs'), { recursive: true })
  writeFileSync(path.join(home, 'hub/models--a--b/blobs/0'), Buffer.alloc(1234))
  const env = {
    HF_HUB_CACHE: path.join(home, 'hub'),
    HF_TOKEN: 'hf_0123456789secret',
    HF_ENDPOINT: 'https://someone:secret@hub.example/x/',
    HF_HUB_OFFLINE: '1',
  }
  const { status, stdout, stderr } = await dit(['doctor', '--json'], { env })
  assert.is(status, 0, stderr)
  assert.not.match(stdout + stderr, /secret/)
  const { cache } = JSON.parse(stdout) as Diagnosis
  assert.ok((cache.freeBytes ?? 0) > 0)
  assert.equal(
    { ...cache, freeBytes: 0 },
    {
      folder: path.join(home, 'hub'),
      exists: true,
      writable: true,
      models: 1,
      bytes: 1234,
      freeBytes: 0,
      offline: true,
      token: true,
      endpoint: 'https://hub.example/x',
    },
  )
})

test('a cache that cannot be written and a token that is none are warnings', async () => {
  const file = path.join(folderWith({ file: '' }), 'file')
  const env = { HF_HUB_CACHE: path.join(file, 'hub'), HF_TOKEN: 'oh_secret' }
  const { status, stdout, stderr } = await dit(['doctor'], { env })
  assert.is(status, 0, stderr)
  assert.not.match(stdout, /oh_secret/)
  assert.match(
    stdout,
    /warning: The cache of Hugging Face models, .* cannot be written\n {2}→ Set HF_/,
  )
  assert.match(stdout, /warning: HF_TOKEN is no Hugging Face token/)
  assert.match(stdout, /works here, with what is said above\.\n$/)
})

// ---- binaries that do not load ----

/** What is wrong with this file as the native part. */
async function complaints(binary: string): Promise<string> {
  const found = await diagnose({ binary })
  assert.is(found.usable, false)
  assert.is(found.binary.loads, false)
  assert.equal([found.devices, found.selfTest], [[], null])
  const errors = found.problems.filter(({ severity }) => severity === 'error')
  assert.ok(errors.every(({ advice }) => advice.length > 10))
  assert.match(report(found), /\n\ndit-native does not work here: one error\.$/)
  return errors.map(({ problem, advice }) => `${problem}\n${advice}`).join('\n')
}

/**
 * A copy of the native part, or of a library in the same new folder, with one text of its tables
 * changed to another of the same length.
 */
function patched(from: string, to: string, original = nativeFile()): string {
  const bytes = readFileSync(original)
  assert.is(from.length, to.length)
  let found = 0
  for (let at = bytes.indexOf(`${from}\0`); at >= 0; at = bytes.indexOf(`${from}\0`, at + 1)) {
    bytes.write(to, at, 'latin1')
    found++
  }
  assert.ok(found > 0, `the binary does not mention ${from}`)
  const file = path.join(temporaryFolder(), path.basename(original))
  writeFileSync(file, bytes)
  return file
}

test('a library that is missing is named, with the package that has it', async () => {
  const text = await complaints(patched('libgomp.so.1', 'libgomp.so.9'))
  assert.match(text, /needs the library libgomp\.so\.9, which is not there/)
  assert.match(text, /apt-get install libgomp1/)
  assert.match(
    await complaints(patched('libgomp.so.1', 'libdit_mp.so')),
    /needs the library libdit_mp\.so, which is not there\nIt came with the package/,
  )
})

test('a glibc that is too old is told, with both versions', async () => {
  const text = await complaints(patched('GLIBC_2.34', 'GLIBC_9.34'))
  assert.match(text, /needs glibc 9\.34 or newer, this system has 2\.\d+\n/)
  assert.match(text, /Debian 12, Ubuntu 22\.04/)
})

test('a libstdc++ that is too old is told', async () => {
  // The binary has a libstdc++ in it; oneDNN asks for the system's.
  const listed = spawnSync('ldd', [nativeFile()], { encoding: 'utf8' }).stdout
  const oneDnn = /(\/\S+\/libdnnl\.so\.\d+)/.exec(listed)?.[1]
  const library = patched('GLIBCXX_3.4', 'GLIBCXX_9.4', oneDnn)
  const binary = path.join(path.dirname(library), 'dit_native.node')
  cpSync(nativeFile(), binary)
  const text = await complaints(binary)
  assert.match(text, /needs a newer libstdc\+\+ \(GLIBCXX_9\.4\)/)
})

test('a binary for another processor is told', async () => {
  const bytes = readFileSync(nativeFile())
  bytes.writeUInt16LE(183, 18) // e_machine: AArch64
  const file = path.join(temporaryFolder(), 'dit_native.node')
  writeFileSync(file, bytes)
  assert.match(
    await complaints(file),
    /is for linux-arm64, this is linux-x64\nWas node_modules copied/,
  )
})

test('a damaged file is told, and one that was cut short', async () => {
  const file = path.join(folderWith({ 'dit_native.node': 'not a binary' }), 'dit_native.node')
  assert.match(await complaints(file), /is damaged: it is no ELF file/)
  writeFileSync(file, readFileSync(nativeFile()).subarray(0, 10_000))
  assert.match(
    await complaints(file),
    /ended the process that loaded it, with SIGBUS\nInstall the package anew/,
  )
})

test('a binary that ends the process, and one of another version, are told', async () => {
  const crashing = folderWith({ 'native.cjs': "process.kill(process.pid, 'SIGILL')" })
  assert.match(
    await complaints(path.join(crashing, 'native.cjs')),
    /ended the process that loaded it, with SIGILL\nInstall the package anew. If/,
  )
  const other = folderWith({
    'native.cjs':
      "exports.version = '0.0.9'; exports.cpuDevice = () => ({}); exports.cudaObstacle = () => ''",
  })
  const text = await complaints(path.join(other, 'native.cjs'))
  assert.ok(text.startsWith(`The binary is of version 0.0.9, the package of ${version}\n`), text)
})

/** The package as it is installed, with a native part or without, and all other packages but some. */
function installed(without: readonly string[], native?: string): string {
  const folder = temporaryFolder()
  for (const name of ['dist', 'package.json']) {
    cpSync(path.join(root, name), path.join(folder, name), { recursive: true })
  }
  const modules = path.join(folder, 'node_modules')
  mkdirSync(modules)
  for (const name of readdirSync(path.join(root, 'node_modules'))) {
    if (without.includes(name)) continue
    symlinkSync(path.join(root, 'node_modules', name), path.join(modules, name))
  }
  if (native !== undefined) {
    const place = path.join(folder, path.relative(root, nativeFile()))
    mkdirSync(path.dirname(place), { recursive: true })
    symlinkSync(native, place)
  }
  return folder
}

function doctor(folder: string, ...flags: string[]) {
  const args = [path.join(folder, 'dist/cli/main.js'), 'doctor', ...flags]
  return spawnSync(process.execPath, args, { encoding: 'utf8' })
}

test('without a binary, the installed command says so and fails', () => {
  const { status, stdout, stderr } = doctor(installed([]))
  assert.is(status, 1, stderr)
  assert.match(stdout, /\nbinary +none for this machine\n/)
  assert.match(
    stdout,
    /\nerror: The package in .* has no binary, though .*\.\n {2}→ .*build:native/,
  )
})

test('with a binary that is broken, the installed command says so and fails', () => {
  const broken = path.join(folderWith({ 'dit_native.node': '?' }), 'dit_native.node')
  const { status, stdout, stderr } = doctor(installed([], broken))
  assert.is(status, 1, stderr)
  assert.match(stdout, /\nbinary .*\.node, .*, cannot be loaded\n/)
  assert.match(stdout, /\nerror: The binary .* is damaged/)
})

test('without sharp and without its demo model the package is of no use; without fastify it is', () => {
  const folder = installed(['sharp', 'fastify'], nativeFile())
  const { status, stdout, stderr } = doctor(folder, '--json')
  assert.is(status, 1, stderr)
  const { problems, selfTest, binary, sharp, server } = JSON.parse(stdout) as Diagnosis
  assert.ok(binary.loads && selfTest?.passed === false)
  assert.equal([sharp, server.fastify], [null, null])
  assert.equal(
    problems
      .filter(({ severity }) => severity === 'error')
      .map(({ problem }) => problem.slice(0, 30)),
    ['The demo model made no picture', 'Pictures cannot be written or '],
  )
  mkdirSync(path.join(folder, 'demo'))
  symlinkSync(
    path.join(root, 'demo/model.safetensors'),
    path.join(folder, 'demo/model.safetensors'),
  )
  symlinkSync(path.join(root, 'node_modules/sharp'), path.join(folder, 'node_modules/sharp'))
  const repaired = doctor(folder)
  assert.is(repaired.status, 0, repaired.stdout + repaired.stderr)
  assert.match(repaired.stdout, /\nserver +to use `dit serve`: npm install fastify\n/)
})

test('an older Node is told', () => {
  const engines = { node: '>=20.9' }
  assert.equal(nodeProblems({ node: '20.9.0' }, { engines }), [])
  assert.equal(nodeProblems({ node: '22.1.0' }, { engines }), [])
  assert.match(nodeProblems({ node: '20.8.1' }, { engines })[0]?.problem ?? '', /20\.8\.1 is older/)
  assert.match(nodeProblems({ node: '18.20.0' }, { engines })[0]?.advice ?? '', /newer/)
})

// ---- GPUs ----

test('a GPU that is not used is a problem only where there is one', () => {
  const missing = {
    device: 'cuda',
    available: false,
    reason: 'no NVIDIA driver was found',
  } as const
  const advice = (cards: number, driver: string | null, cudaLibrary: string | null = 'x.so') =>
    gpuProblems([missing], { cards, driver }, { cudaLibrary }).map((problem) => problem.advice)
  assert.equal(advice(0, null), [])
  assert.match(advice(1, null).join(), /Install NVIDIA's driver/)
  assert.match(advice(1, '580.1').join(), /docker run --gpus all/)
  assert.match(advice(0, '580.1').join(), /docker run --gpus all/)
  assert.match(advice(1, '580.1', null).join(), /where the CUDA toolkit/)
  const old = { device: 'cuda:1', available: false, reason: 'compute capability 7.0' } as const
  const [problem] = gpuProblems([old], { cards: 2, driver: '580.1' }, { cudaLibrary: 'x.so' })
  assert.is(problem?.problem, 'cuda:1 cannot be used: compute capability 7.0')
})

// ---- containers ----

test('the limits of a container are those of its control group and all around it', () => {
  const second = folderWith({
    'proc/self/cgroup': '0::/outer/inner\n',
    'proc/meminfo': 'MemTotal: 9 kB\nMemAvailable:     2048 kB\n',
    'sys/fs/cgroup/outer/cpu.max': '150000 100000\n',
    'sys/fs/cgroup/outer/inner/cpu.max': 'max 100000\n',
    'sys/fs/cgroup/outer/memory.max': 'max\n',
    'sys/fs/cgroup/memory.max': '4000000000\n',
  })
  const limits = limitFacts(second)
  assert.equal(
    [limits.cpuLimit, limits.memoryLimit, limits.memoryAvailable],
    [1.5, 4_000_000_000, 2 ** 21],
  )
  const first = folderWith({
    'proc/self/cgroup': '5:cpu,cpuacct:/docker/x\n4:memory:/docker/x\n',
    'sys/fs/cgroup/cpu/cpu.cfs_quota_us': '50000\n',
    'sys/fs/cgroup/cpu/cpu.cfs_period_us': '100000\n',
    'sys/fs/cgroup/memory/memory.limit_in_bytes': '9223372036854771712\n',
  })
  assert.equal([limitFacts(first).cpuLimit, limitFacts(first).memoryLimit], [0.5, null])
  const none = limitFacts(folderWith({}))
  assert.equal([none.cpuLimit, none.memoryLimit], [null, null])

  assert.equal(
    memoryProblems({ ...limits, memory: 64e9, memoryLimit: 1e9 }).map(({ advice }) => advice),
    ['Smaller models fit. Give the container or the machine more for larger ones'],
  )
  assert.equal(memoryProblems({ ...none, memory: 64e9 }), [])
})

test('a model has no more threads than its container may use processors', async () => {
  const threads = (processors: number, cpuLimit: number | null) =>
    usableProcessors({ ...limitFacts(), processors, cpuLimit })
  assert.equal([threads(8, null), threads(8, 2.5), threads(2, 8), threads(8, 0.5)], [8, 2, 2, 1])
  const { spec } = await describeFresh('DiT-S/8', { device: 'cpu' })
  assert.is(spec.threads, usableProcessors())
  assert.is((await describeFresh('DiT-S/8', { device: 'cpu', threads: 5 })).spec.threads, 5)
})

test('NVIDIA cards and drivers are seen without asking the driver', () => {
  const machine = folderWith({
    'proc/driver/nvidia/version':
      'NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build\n',
    'sys/bus/pci/devices/0000:01:00.0/vendor': '0x10de\n',
    'sys/bus/pci/devices/0000:01:00.0/class': '0x030200\n',
    'sys/bus/pci/devices/0000:01:00.1/vendor': '0x10de\n',
    'sys/bus/pci/devices/0000:01:00.1/class': '0x040300\n',
    'sys/bus/pci/devices/0000:02:00.0/vendor': '0x1002\n',
    'sys/bus/pci/devices/0000:02:00.0/class': '0x030000\n',
  })
  assert.equal(nvidiaFacts(machine), { cards: 1, driver: '580.65.06' })
  assert.equal(nvidiaFacts(folderWith({})), { cards: 0, driver: null })
})

test.run()
