// Compiles every CUDA kernel once more and prints, as a Markdown table, what ptxas says of each:
// registers and bytes of spills and of local memory. Exits 1 where there are any of the latter.
//
//   node scripts/cuda-resources.mjs [--build=build] [--only=pattern]
//
// Beside it the dynamic shared memory, and the warps that fit on a multiprocessor with all of it, for
// kernels that a run of dit_native_test on the emulator launches (DIT_SIMT_TRACE); '-' for others.
import { execFile } from 'node:child_process'
import { existsSync, readFileSync, statSync } from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { parseArgs, promisify } from 'node:util'
import { demangle } from './cuda/sass.mjs'

const root = fileURLToPath(new URL('..', import.meta.url)).replace(/\/$/, '')
const { values } = parseArgs({
  options: { build: { type: 'string', default: 'build' }, only: { type: 'string', default: '' } },
})
const build = path.resolve(root, values.build)
const only = new RegExp(values.only)
const run = promisify(execFile)

// Per multiprocessor: registers (of 32 bits), bytes of shared memory with 1 KB a block for the
// system, warps. CUDA C++ Programming Guide, table of technical specifications.
const limits = {
  sm_80: { registers: 65536, shared: 164 << 10, warps: 64 },
  sm_90: { registers: 65536, shared: 228 << 10, warps: 64 },
  sm_90a: { registers: 65536, shared: 228 << 10, warps: 64 },
}

/** What ptxas says of the kernels of a source: { name, arch, registers, stack, spills }. */
async function compile({ command, directory }) {
  const words = command.split(' ').map((word) => word.replaceAll('\\"', '"'))
  const object = words.indexOf('-o') + 1
  words[object] = '/dev/null'
  const dependencies = words.indexOf('-MD')
  if (dependencies >= 0) words.splice(dependencies, 1)
  for (const flag of ['-MF', '-MT']) {
    const at = words.indexOf(flag)
    if (at >= 0) words.splice(at, 2)
  }
  const { stderr } = await run(words[0], [...words.slice(1), '-Xptxas=-v'], {
    cwd: directory,
    maxBuffer: 1 << 28,
  })
  const kernels = []
  let kernel
  for (const line of stderr.split('\n')) {
    const [, symbol, arch] = /Compiling entry function '(\S+)' for '(\S+)'/.exec(line) ?? []
    if (symbol) {
      kernel = { symbol, arch, registers: 0, stack: 0, spills: 0 }
      kernels.push(kernel)
    }
    const [, stack, stores, loads] =
      /(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads/.exec(line) ?? []
    if (stack && kernel) Object.assign(kernel, { stack: +stack, spills: +stores + +loads })
    const [, registers] = /Used (\d+) registers/.exec(line) ?? []
    if (registers && kernel) kernel.registers = +registers
  }
  const names = demangle(kernels.map(({ symbol }) => symbol))
  return kernels.map((each, i) => ({ ...each, name: names[i] }))
}

/** Of each kernel that the native cases launch: threads of a block, the most shared memory. */
async function launches() {
  const program = path.join(build, 'Release/dit_native_test')
  const seen = new Map()
  if (!existsSync(program)) return seen
  const runs = ['sm_80', 'sm_90a'].map((arch) =>
    run(program, ['--device', 'cuda:emulated'], {
      maxBuffer: 2 ** 31 - 1,
      env: { ...process.env, DIT_SIMT_TRACE: '1', DIT_CUDA_ARCH: arch },
    }),
  )
  for (const { stderr } of await Promise.all(runs)) {
    for (const [, name, threads, shared] of stderr.matchAll(
      /^simt: launch (.*), \d+ blocks of (\d+) threads, (\d+) bytes shared$/gm,
    )) {
      const known = seen.get(name)
      if (!known || known.shared < +shared) seen.set(name, { threads: +threads, shared: +shared })
    }
  }
  return seen
}

/** Warps of a multiprocessor that are busy with a kernel; registers come in units of 256 a warp. */
function residentWarps({ registers, arch }, { threads, shared }) {
  const { registers: allRegisters, shared: allShared, warps: allWarps } = limits[arch]
  const warps = Math.ceil(threads / 32)
  const ofWarp = Math.ceil((registers * 32) / 256) * 256
  const blocks = Math.min(
    Math.floor(allRegisters / ofWarp / warps),
    Math.floor(allShared / (shared + 1024)),
    Math.floor(allWarps / warps),
    32,
  )
  return blocks * warps
}

const commands = JSON.parse(readFileSync(path.join(build, 'compile_commands.json'), 'utf8'))
const sources = commands.filter(
  ({ file, command }) => file.endsWith('.cu') && /nvcc/.test(command) && only.test(file),
)
const left = sources.map((source, i) => ({ source, i }))
const compiled = sources.map(() => [])
const compileAll = async () => {
  for (let next = left.shift(); next; next = left.shift()) {
    compiled[next.i] = await compile(next.source)
  }
}
await Promise.all(Array.from({ length: os.availableParallelism() }, compileAll))
const kernels = sources.flatMap((source, i) =>
  compiled[i].map((kernel) => ({ ...kernel, file: path.basename(source.file) })),
)
const launched = await launches()
console.log('| file | kernel | arch | registers | shared memory | warps | spills | local |')
console.log('|---|---|---|---:|---:|---:|---:|---:|')
for (const kernel of kernels) {
  const launch = launched.get(kernel.name)
  const shared = launch ? String(launch.shared) : '-'
  const warps = launch ? String(residentWarps(kernel, launch)) : '-'
  const { file, name, arch, registers, spills, stack } = kernel
  console.log(
    `| ${file} | \`${name}\` | ${arch} | ${registers} | ${shared} | ${warps} | ${spills} | ${stack} |`,
  )
}
const library = path.join(build, 'Release/libdit_cuda.so')
const size = existsSync(library)
  ? `${(statSync(library).size / 2 ** 20).toFixed(1)} MiB`
  : 'not built'
const bad = kernels.filter(({ spills, stack }) => spills > 0 || stack > 0).length
console.log(
  `\n${kernels.length} kernels, ${bad} with spills or local memory; libdit_cuda.so: ${size}`,
)
process.exitCode = bad > 0 ? 1 : 0
