// Runs every test of the project and ends with the line `N passed, N failed`.
//
//   tsx test/run.ts [--suite=fast|default|full] [--only=pattern]
//
//   types    tsc, over the sources and the tests
//   dist     the TypeScript build, which some tests load
//   native   the C++ tests, build/Release/dit_native_test (the full suite: with --full)
//   native-cuda-sm80, native-cuda-sm90a   the same on the emulated CUDA device, with the kernels for
//            Ampere and for Hopper (where the emulator was built)
//   files    test/**/*.test.ts, each in a process of its own, one at a time: native code uses all cores
//
// Suites: `default` runs all but *.full.test.ts and the C++ cases of full-size networks; `full` runs
// those too; `fast` leaves out the files that ask for more than the default time limit. A file asks
// with a comment among its first lines: `// timeout: 120s`. --only keeps the steps and files whose path matches the regular expression.
//
// uvu alone passes a file whose test.run() is forgotten, one whose `before` hook throws, one that
// throws something other than an Error, and waits for ever on a test that never ends. So a file
// passes only when its process ends by itself with status 0, in time, after one summary in which all
// tests passed, at least one, and none was skipped.
//
// DIT_TEST_PATIENCE=n in the environment multiplies all limits, for builds that are slow on purpose.
//
// --dir=folder and --native=executable replace what is run, without the first two steps; the tests
// of this file use them.
import { type ChildProcess, spawn } from 'node:child_process'
import { existsSync, readdirSync, readFileSync } from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'

const root = path.dirname(path.dirname(fileURLToPath(import.meta.url)))
const kFileLimit = 60 // seconds
const kNativeLimit = 900
const kFullNativeLimit = 5400
const kEmulatedLimit = 1200
const kScriptLimit = 300
const kGrace = 2 // seconds between the signal that can be caught and the one that cannot

const patience = Number(process.env.DIT_TEST_PATIENCE ?? 1)

interface Ended {
  output: string
  status: number | null
  signal: NodeJS.Signals | null
  timedOut: boolean
  limit: number // seconds
}

interface Result {
  passed: number
  failed: number
  /** Why the step failed, when it did. */
  problem?: string
}

interface Step {
  name: string
  limit: number
  command: string[]
  judge: (ended: Ended) => Result
}

let running: ChildProcess | undefined

function killGroup(child: ChildProcess, signal: NodeJS.Signals): void {
  if (child.pid === undefined) return
  try {
    process.kill(-child.pid, signal)
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ESRCH') throw error
  }
}

/** Runs a command in a process group of its own, of which nothing is left when this resolves. */
function runLimited(command: string[], usualLimit: number): Promise<Ended> {
  const limit = usualLimit * patience
  const [file, ...args] = command as [string, ...string[]]
  return new Promise((resolve) => {
    const child = spawn(file, args, {
      cwd: root,
      detached: true,
      stdio: ['ignore', 'pipe', 'pipe'],
      env: { ...process.env, NO_COLOR: '1', FORCE_COLOR: '0' },
    })
    running = child
    let output = ''
    let timedOut = false
    for (const stream of [child.stdout, child.stderr]) {
      stream.setEncoding('utf8').on('data', (text: string) => {
        output += text
      })
    }
    // First a signal that the child may catch, to end process groups of its own.
    const timers = [
      setTimeout(() => {
        timedOut = true
        killGroup(child, 'SIGTERM')
      }, limit * 1000),
      setTimeout(() => killGroup(child, 'SIGKILL'), (limit + kGrace) * 1000),
    ]
    child.on('error', (error) => {
      output += `${error.message}\n`
    })
    child.on('exit', () => killGroup(child, 'SIGKILL')) // what the test left running would hold the pipes open
    child.on('close', (status, signal) => {
      for (const timer of timers) clearTimeout(timer)
      running = undefined
      resolve({ output, status, signal, timedOut, limit })
    })
  })
}

/** What is wrong with how a process ended, whatever it printed. */
function badEnd({ status, signal, timedOut, limit }: Ended): string | undefined {
  if (timedOut) return `did not end within ${limit} s`
  if (signal !== null) return `killed by ${signal}`
  if (status !== 0) return `exit status ${status}`
  return undefined
}

function result(passed: number, failed: number, ...found: (string | undefined)[]): Result {
  const problems = found.filter((problem) => problem !== undefined)
  if (problems.length === 0) return { passed, failed }
  return { passed, failed: Math.max(failed, 1), problem: problems.join(', ') }
}

// ---- TypeScript files ----

/** Suites that a test file declares and never runs: uvu says nothing of them. */
function suitesNotRun(source: string): string[] {
  const names = [...source.matchAll(/\b(\w+)\s*=\s*suite\b/g)].map((match) => match[1])
  if (/(?<![.\w])test\(/.test(source)) names.push('test')
  return names.filter((name) => !new RegExp(`\\b${name}\\.run\\(`).test(source)) as string[]
}

function judgeFile(ended: Ended, source: string): Result {
  const summaries = [
    ...ended.output.matchAll(/^ +Total: +(\d+)\n +Passed: +(\d+)\n +Skipped: +(\d+)$/gm),
  ]
  const [total = 0, passed = 0, skipped = 0] = (summaries[0] ?? []).slice(1).map(Number)
  const forgotten = suitesNotRun(source)

  let problem: string | undefined
  if (forgotten.length > 0) problem = `${forgotten.join(', ')}.run() is missing`
  else if (summaries.length === 0) problem = 'no tests: no summary of uvu was printed'
  else if (summaries.length > 1) problem = 'run() was called after the first tests had run'
  else if (total === 0) problem = 'no tests ran'
  else if (skipped > 0) problem = `${skipped} skipped (test.skip, or test.only left behind)`
  else if (passed < total) problem = `${total - passed} of ${total} failed`
  return result(passed, total - passed, badEnd(ended), problem)
}

function fileStep(file: string): Step {
  const source = readFileSync(file, 'utf8')
  const head = source.split('\n', 10).join('\n')
  const limit = Number(/^\/\/ timeout: (\d+)s$/m.exec(head)?.[1] ?? kFileLimit)
  return {
    name: path.relative(root, file),
    limit,
    command: [process.execPath, '--import', import.meta.resolve('tsx'), file],
    judge: (ended) => judgeFile(ended, source),
  }
}

function testFiles(dir: string): string[] {
  return readdirSync(dir, { recursive: true, encoding: 'utf8' })
    .filter((name) => name.endsWith('.test.ts'))
    .sort()
    .map((name) => path.join(dir, name))
}

// ---- the other steps ----

function judgeNative(ended: Ended): Result {
  const match = /(\d+) passed, (\d+) failed\s*$/.exec(ended.output)
  const [passed, failed] = [Number(match?.[1] ?? 0), Number(match?.[2] ?? 0)]
  let problem: string | undefined
  if (match === null) problem = 'its last line is not "N passed, N failed"'
  else if (failed > 0) problem = `${failed} failed`
  else if (passed === 0) problem = 'no tests ran'
  return result(passed, failed, badEnd(ended), problem)
}

function nativeStep(name: string, command: string[], limit: number): Step {
  return { name, limit, command, judge: (ended) => judgeNative(ended) }
}

/** The C++ tests on the processor; and on the emulated CUDA device, with the kernels of each kind. */
function nativeSteps(executable: string, suite: string): Step[] {
  const full = suite === 'full'
  const command = full ? [executable, '--full'] : [executable]
  const steps = [nativeStep('native', command, full ? kFullNativeLimit : kNativeLimit)]
  if (!existsSync(path.join(path.dirname(executable), 'libdit_cuda_emulated.so'))) return steps
  for (const arch of ['sm_80', 'sm_90a']) {
    const onEmulator = ['env', `DIT_CUDA_ARCH=${arch}`, executable, '--device', 'cuda:emulated']
    const name = `native-cuda-${arch.replace('_', '')}`
    steps.push(nativeStep(name, onEmulator, kEmulatedLimit))
  }
  return steps
}

function scriptStep(name: string, ...args: string[]): Step {
  return {
    name,
    limit: kScriptLimit,
    command: [process.execPath, ...args],
    judge: (ended) => {
      const problem = badEnd(ended)
      return result(problem === undefined ? 1 : 0, 0, problem)
    },
  }
}

function steps(options: { suite: string; dir?: string; native?: string }): Step[] {
  const { suite, dir, native } = options
  const all: Step[] = []
  if (dir === undefined) {
    all.push(scriptStep('types', 'node_modules/typescript/bin/tsc', '--noEmit'))
    all.push(scriptStep('dist', 'scripts/build-ts.mjs'))
  }
  if (dir === undefined || native !== undefined) {
    all.push(...nativeSteps(native ?? path.join(root, 'build/Release/dit_native_test'), suite))
  }
  const files = testFiles(path.resolve(dir ?? path.join(root, 'test')))
    .filter((file) => suite === 'full' || !file.endsWith('.full.test.ts'))
    .map(fileStep)
    .filter((step) => suite !== 'fast' || step.limit <= kFileLimit)
  return [...all, ...files]
}

// ---- main ----

const { values } = parseArgs({
  options: {
    suite: { type: 'string', default: 'default' },
    only: { type: 'string', default: '' },
    dir: { type: 'string' },
    native: { type: 'string' },
  },
})
if (!['fast', 'default', 'full'].includes(values.suite)) {
  console.error(`--suite: expected fast, default or full, got ${values.suite}`)
  process.exit(2)
}
for (const signal of ['SIGINT', 'SIGTERM'] as const) {
  process.on(signal, () => {
    if (running) killGroup(running, 'SIGKILL')
    process.exit(130)
  })
}

const only = new RegExp(values.only)
let passed = 0
let failed = 0
for (const step of steps(values).filter((step) => only.test(step.name))) {
  const start = performance.now()
  const missing = step.name === 'native' && !existsSync(step.command[0] ?? '')
  const ended = missing
    ? { output: '', status: 1, signal: null, timedOut: false, limit: 0 }
    : await runLimited(step.command, step.limit)
  const outcome = missing
    ? { passed: 0, failed: 1, problem: `${step.command[0]} is not built` }
    : step.judge(ended)
  const seconds = ((performance.now() - start) / 1000).toFixed(1)
  passed += outcome.passed
  failed += outcome.failed
  const count = String(outcome.passed).padStart(4)
  if (outcome.problem === undefined) {
    console.log(`ok   ${count}  ${seconds.padStart(6)} s  ${step.name}`)
  } else {
    console.log(`FAIL ${count}  ${seconds.padStart(6)} s  ${step.name}: ${outcome.problem}`)
    console.log(ended.output.replace(/^/gm, '     | '))
  }
}
if (passed + failed === 0) {
  console.log('nothing to run')
  failed = 1
}
console.log(`${passed} passed, ${failed} failed`)
process.exitCode = failed > 0 ? 1 : 0
