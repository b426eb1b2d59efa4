// Builds the native code under AddressSanitizer (with LeakSanitizer) and UndefinedBehaviorSanitizer,
// in build-sanitize/, and runs the tests on it: the C++ ones, and those of test/ that use the addon
// most. Then the C++ tests of what has threads under ThreadSanitizer (build-sanitize-thread/).
//
//   node scripts/sanitize.mjs [--quick] [--only=pattern]
//
// --quick: the cases and files that a fault is likeliest to show in, without ThreadSanitizer.
// --only: the steps (native, thread, test/addon.test.ts …) that match. The last line is
// `N passed, N failed`. A report of a sanitizer ends its process with status 99, so it fails a test.
import { spawnSync } from 'node:child_process'
import { existsSync, readFileSync, writeFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import os from 'node:os'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'

const root = fileURLToPath(new URL('..', import.meta.url)).replace(/\/$/, '')
process.chdir(root)

const { values } = parseArgs({
  options: { quick: { type: 'boolean' }, only: { type: 'string', default: '' } },
})
const only = new RegExp(values.only)

const addressAndUndefined = 'address,undefined,float-cast-overflow'
const quickFiles = ['addon']
const files = [
  'abort',
  'addon',
  'addon.training',
  'api',
  'determinism',
  'exit',
  'fuzz',
  'loaders',
  'sampling',
  'save',
  'train.parts',
  'trainer',
  'workers',
]
// Kernels at -O1 with checks in them take ten to thirty times as long.
const patience = '10'
const faultStatus = 99

function fail(text) {
  console.error(`sanitize: ${text}`)
  process.exit(1)
}

function run(command, args, env = {}) {
  const { status, error } = spawnSync(command, args, {
    stdio: 'inherit',
    env: { ...process.env, ...env },
  })
  if (error) console.error(`${command}: ${error.message}`)
  return status === 0
}

/** Configures a build folder where that is not done, and builds. */
function build(folder, sanitizers, ...targets) {
  const cache = `${folder}/CMakeCache.txt`
  const isConfigured =
    existsSync(cache) && readFileSync(cache, 'utf8').includes(`:STRING=${sanitizers}\n`)
  const cmakeJs = createRequire(import.meta.url).resolve('cmake-js/bin/cmake-js')
  const option = `--CDDIT_SANITIZE=${sanitizers}`
  const configure = [cmakeJs, 'configure', '--log-level', 'warn', '--out', folder, option]
  if (!isConfigured && !run(process.execPath, configure)) fail('cmake-js could not configure')
  const jobs = String(os.availableParallelism())
  if (!run('cmake', ['--build', folder, '--parallel', jobs, '--target', ...targets])) {
    fail('the build failed')
  }
}

/** The path of a library of the compiler's. */
function library(name) {
  const { stdout } = spawnSync('g++', [`-print-file-name=${name}`], { encoding: 'utf8' })
  return stdout.trim()
}

const counts = { passed: 0, failed: 0 }

/** Runs a command whose last line is `N passed, N failed`. */
function count(name, command, args, env) {
  console.log(`\n${name}`)
  const { status, stdout } = spawnSync(command, args, {
    encoding: 'utf8',
    stdio: ['ignore', 'pipe', 'inherit'],
    maxBuffer: 2 ** 30,
    env: { ...process.env, ...env },
  })
  process.stdout.write(stdout)
  const [, passed = 0, failed = 0] = /(\d+) passed, (\d+) failed\s*$/.exec(stdout) ?? []
  counts.passed += Number(passed)
  counts.failed += Number(failed)
  if (status !== 0 && Number(failed) === 0) counts.failed++
}

build('build-sanitize', addressAndUndefined, 'dit_native', 'dit_native_test')

const options = {
  ASAN_OPTIONS: `exitcode=${faultStatus}:detect_leaks=1`,
  UBSAN_OPTIONS: `exitcode=${faultStatus}:print_stacktrace=1`,
  TSAN_OPTIONS: `exitcode=${faultStatus}:halt_on_error=1`,
}
const quickCases = [
  'adapted',
  'backend',
  'checks',
  'dit/',
  'runner',
  'sampler',
  'trainer',
  'weights',
]
const cases = values.quick ? quickCases : []
if (only.test('native')) {
  count('native', 'build-sanitize/Release/dit_native_test', cases, options)
}

// Node itself is not instrumented, so the runtimes come first in the process. process.exit() leaves
// what V8 has where it is, which LeakSanitizer reports: leaks are looked for in a process that comes
// to its end (`leakFree`), and the tests run without.
const underNode = {
  ...options,
  // Little of what was freed is kept, since test/workers.test.ts looks at the memory of the process.
  ASAN_OPTIONS: `exitcode=${faultStatus}:detect_leaks=0:quarantine_size_mb=16`,
  LD_PRELOAD: `${library('libasan.so')} ${library('libubsan.so')}`,
  NODE_OPTIONS: `--require=${root}/scripts/sanitize-hook.cjs`,
  DIT_SANITIZED: `${root}/build-sanitize/Release/dit_native.node`,
  DIT_TEST_PATIENCE: patience,
}

/** All that the addon does, two models of which one is closed; also in a worker. */
const leakFree = `
  const { DiT } = require('./dist/index.js')
  const { isMainThread, Worker } = require('node:worker_threads')
  const work = async () => {
    const dit = await DiT.load('test/fixtures/diffusers_pipeline')
    for await (const event of dit.stream([0, 1], { steps: 3, preview: 2 })) event.type
    await dit.decode(await dit.encode({ data: new Uint8Array(3 * 32 * 32), width: 32, height: 32, channels: 3 }))
    await dit.sample([0], { steps: 900, signal: AbortSignal.timeout(50) }).catch(() => {})
    await DiT.load('/nowhere').catch(() => {})
    const tiny = { depth: 2, hidden: 32, heads: 2, latentSize: 8, channels: 1, numClasses: 3 }
    const trained = await DiT.create(tiny)
    const items = function* () { for (;;) yield { image: new Float32Array(64), label: 1 } }
    for await (const event of trained.train(items, { batchSize: 2, steps: 3 })) event.type
    await trained.close()
  }
  if (isMainThread) new Worker(__filename)
  work().then(() => {
    const maps = require('node:fs').readFileSync('/proc/self/maps', 'utf8')
    if (!maps.includes(process.env.DIT_SANITIZED)) throw new Error('another binary was loaded')
    console.log('worked in', isMainThread ? 'the main thread' : 'a worker')
  })`

const names = (values.quick ? quickFiles : files).map((name) => `test/${name}.test.ts`)
const wanted = names.filter((name) => only.test(name))
if (wanted.length > 0) {
  if (!run(process.execPath, ['scripts/build-ts.mjs'])) fail('the TypeScript build failed')
  const file = `${root}/build-sanitize/leaks.cjs`
  writeFileSync(file, leakFree.replace('./dist/', `${root}/dist/`))
  console.log('\nleaks')
  const isClean = run(process.execPath, [file], {
    ...underNode,
    ASAN_OPTIONS: options.ASAN_OPTIONS,
  })
  counts[isClean ? 'passed' : 'failed']++
  const pattern = `^(${wanted.join('|')})$`
  const runner = ['--import', 'tsx', 'test/run.ts', `--only=${pattern}`]
  count('Node', process.execPath, runner, underNode)
}

if (!values.quick && only.test('thread')) {
  // GCC's libgomp is not instrumented: what its threads hand one another looks like races. So there is
  // one thread for each operation, and what is checked is the models' threads and their callers.
  build('build-sanitize-thread', 'thread', 'dit_native_test')
  const concurrent = ['backend', 'runner', 'sampler', 'trainer']
  const limited = { ...options, OMP_THREAD_LIMIT: '1' }
  count('thread', 'build-sanitize-thread/Release/dit_native_test', concurrent, limited)
}

console.log(`\n${counts.passed} passed, ${counts.failed} failed`)
process.exitCode = counts.failed > 0 || counts.passed === 0 ? 1 : 0
