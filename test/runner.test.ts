// timeout: 300s
// The test runner, on folders of small test files. Each kind of file that uvu would let pass, or
// would wait for, must fail.
import { spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { chmodSync, existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { test } from 'uvu'
import * as assert from 'uvu/assert'

const runner = fileURLToPath(new URL('run.ts', import.meta.url))
const tsx = import.meta.resolve('tsx')
const uvu = import.meta.resolve('uvu')
const head = `import { suite, test } from '${uvu}'\n`
const good = `${head}test('adds', () => { if (1 + 1 !== 2) throw new Error('no') })\n`

/** Runs the runner over `files`; the last line it printed is in `last`. */
function run(files: Record<string, string>, ...args: string[]) {
  const dir = mkdtempSync(path.join(tmpdir(), 'dit-runner-'))
  try {
    for (const [name, text] of Object.entries(files)) {
      writeFileSync(path.join(dir, name), text)
      chmodSync(path.join(dir, name), 0o755)
    }
    const native = 'native' in files ? [`--native=${path.join(dir, 'native')}`] : []
    const { status, stdout, stderr } = spawnSync(
      process.execPath,
      ['--import', tsx, runner, `--dir=${dir}`, ...native, ...args],
      { encoding: 'utf8' },
    )
    return { status, output: stdout + stderr, last: stdout.trimEnd().split('\n').at(-1) }
  } finally {
    rmSync(dir, { recursive: true })
  }
}

/** Resolves when the process runs no more, reaped or not: a container may have nobody who reaps. */
async function gone(pid: number): Promise<void> {
  assert.ok(pid > 0)
  const runs = () => {
    try {
      return !/^State:\s+Z/m.test(readFileSync(`/proc/${pid}/status`, 'utf8'))
    } catch (error) {
      assert.match(String((error as NodeJS.ErrnoException).code), /ENOENT|ESRCH/)
      return false
    }
  }
  for (let i = 0; runs() && i < 100; i++) await sleep(20)
  assert.not(runs())
}

function fails(text: string, problem: RegExp, last = '0 passed, 1 failed'): void {
  const outcome = run({ 'a.test.ts': text })
  assert.is(outcome.status, 1, outcome.output)
  assert.match(outcome.output, problem)
  assert.is(outcome.last, last)
}

test('good files pass and are counted', () => {
  const two = `${head}const a = suite('a'), b = suite('b')
    a('x', () => {}); b('y', async () => {}); a.run(); b.run()\n`
  const outcome = run({ 'a.test.ts': `${good}test.run()\n`, 'b.test.ts': two })
  assert.is(outcome.status, 0, outcome.output)
  assert.is(outcome.last, '3 passed, 0 failed')
})

test('a failing test', () => {
  const text = `${good}test('bad', () => { throw new Error('ouch') })\ntest.run()\n`
  fails(text, /1 of 2 failed[\s\S]*ouch/, '1 passed, 1 failed')
})

test('a forgotten test.run()', () => {
  fails(good, /test\.run\(\) is missing/)
  fails(`${good}if (Date.now() < 0) test.run()\n`, /no summary/)
})

test('one of two suites forgotten', () => {
  const text = `${head}const a = suite('a'), b = suite('b')
    a('x', () => {}); b('y', () => {}); test('z', () => {}); a.run(); test.run()\n`
  fails(text, /b\.run\(\) is missing/, '2 passed, 1 failed')
})

test('a file without tests', () => {
  fails('', /no summary/)
  fails(`${head}test.run()\n`, /no tests ran/)
})

test('what uvu swallows: a throwing hook, and a thrown value that is no Error', () => {
  fails(`${good}test.before(() => { throw new Error('hook') })\ntest.run()\n`, /1 of 1 failed/)
  fails(`${head}test('x', () => { throw undefined })\ntest.run()\n`, /1 of 1 failed/)
})

test('skipped tests', () => {
  fails(`${good}test.skip('x', () => {})\ntest.run()\n`, /1 skipped/, '1 passed, 1 failed')
  fails(`${good}test.only('x', () => {})\ntest.run()\n`, /1 skipped/, '1 passed, 1 failed')
})

test('an endless test is ended, with the processes it started', async () => {
  const dir = mkdtempSync(path.join(tmpdir(), 'dit-runner-'))
  const pidFile = path.join(dir, 'pid')
  const text = `// timeout: 8s\n${head}
    import { spawn } from 'node:child_process'
    import { writeFileSync } from 'node:fs'
    test('endless', () => {
      writeFileSync('${pidFile}', String(spawn('sleep', ['600'], { stdio: 'inherit' }).pid))
      for (;;) {}
    })
    test.run()\n`
  fails(text, /did not end within 8 s/)
  const pid = Number(readFileSync(pidFile, 'utf8'))
  rmSync(dir, { recursive: true })
  await gone(pid)
})

test('a process that stays open after its tests', () => {
  fails(
    `// timeout: 8s\n${good}setInterval(() => {}, 1000)\ntest.run()\n`,
    /within 8 s/,
    '1 passed, 1 failed',
  )
})

test('a test that ignores the signal to end', () => {
  const text = `// timeout: 3s\n${head}
    test('x', () => new Promise((resolve) => setInterval(() => {}, 1000)))
    process.on('SIGTERM', () => {})
    test.run()\n`
  fails(text, /within 3 s/)
})

test('a runner that is ended takes along what it runs', async () => {
  const dir = mkdtempSync(path.join(tmpdir(), 'dit-runner-'))
  const pidFile = path.join(dir, 'pid')
  const text = `import { renameSync, writeFileSync } from 'node:fs'
    writeFileSync('${pidFile}.new', String(process.pid))
    renameSync('${pidFile}.new', '${pidFile}')
    for (;;) {}\n`
  writeFileSync(path.join(dir, 'a.test.ts'), text)
  const child = spawn(process.execPath, ['--import', tsx, runner, `--dir=${dir}`])
  while (!existsSync(pidFile)) await sleep(20)
  child.kill('SIGTERM')
  assert.equal(await once(child, 'exit'), [130, null])
  await gone(Number(readFileSync(pidFile, 'utf8')))
  rmSync(dir, { recursive: true })
})

test('a crash', () => {
  const text = `${head}test('x', () => { process.kill(process.pid, 'SIGSEGV') })\ntest.run()\n`
  fails(text, /killed by SIGSEGV/)
})

test('an early exit', () => {
  fails(`${head}test('x', () => process.exit(0))\ntest.run()\n`, /exit status 1/)
  fails(`${good}test.run()\nprocess.exit(0)\n`, /no summary/)
})

test('a file that does not compile', () => {
  fails('const = 1\n', /exit status 1/)
})

test('a failure outside the tests', () => {
  const text = `${good}test.after(() => { Promise.reject(new Error('late')) })\ntest.run()\n`
  const outcome = run({ 'a.test.ts': text })
  assert.is(outcome.status, 1, outcome.output)
  assert.match(outcome.output, /late/)
})

test('nothing to run', () => {
  assert.is(run({}).last, '0 passed, 1 failed')
  assert.is(run({ 'a.test.ts': good }, '--only=b').last, '0 passed, 1 failed')
  assert.is(run({ 'a.test.ts': good }, '--suite=slow').status, 2)
})

test('suites and --only', () => {
  const text = `${good}test.run()\n`
  const files = {
    'a.test.ts': text,
    'b.full.test.ts': text,
    'c.test.ts': `// timeout: 90s\n${text}`,
  }
  assert.is(run(files).last, '2 passed, 0 failed')
  assert.is(run(files, '--suite=full').last, '3 passed, 0 failed')
  assert.is(run(files, '--suite=fast').last, '1 passed, 0 failed')
  assert.is(run(files, '--suite=full', '--only=full').last, '1 passed, 0 failed')
})

test('the native executable', () => {
  const native = (text: string, ...args: string[]) =>
    run({ native: `#!/bin/sh\n${text}\n` }, ...args)
  assert.is(native('echo $# passed, 0 failed', '--suite=full').last, '1 passed, 0 failed')
  assert.is(native('echo 7 passed, 0 failed').last, '7 passed, 0 failed')
  assert.is(native('echo 7 passed, 2 failed; exit 1').last, '7 passed, 2 failed')
  assert.is(native('echo 0 passed, 0 failed').last, '0 passed, 1 failed')
  assert.is(native('echo 7 passed, 0 failed; exit 3').last, '7 passed, 1 failed')
  assert.is(native('echo 7 passed, 0 failed; echo and more').last, '0 passed, 1 failed')
  const full = { native: '#!/bin/sh\ntest "$*" = --full && echo 7 passed, 0 failed\n' }
  assert.is(run(full, '--suite=full').last, '7 passed, 0 failed')
  assert.is(run(full).last, '0 passed, 1 failed')
  assert.match(native('kill -ABRT $$').output, /killed by SIGABRT/)
  assert.match(run({}, '--native=/nowhere').output, /\/nowhere is not built/)
})

test.run()
