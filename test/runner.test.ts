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

test('good files pass and are counted', () => {
  const two = `${head}const a = suite('a'), b = suite('b')
    a('x', () => {}); b('y', async () => {}); a.run(); b.run()\n`
  const outcome = run({ 'a.test.ts': `${good}test.run()\n`, 'b.test.ts': two })
  assert.is(outcome.status, 0, outcome.output)
  assert.is(outcome.last, '3 passed, 0 failed')
})

// Each of these files must fail, for the reason given, with so many tests counted as passed.
const sleepPid = path.join(tmpdir(), `dit-runner-${process.pid}`)
const bad: [file: string, text: string, passed: number, problem: string][] = [
  [
    'a failing test',
    `${good}test('bad', () => { throw new Error('ouch') })\ntest.run()\n`,
    1,
    'exit status 1, 1 of 2 failed',
  ],
  ['a forgotten test.run()', good, 0, 'test.run() is missing'],
  [
    'a test.run() not reached',
    `${good}if (Date.now() < 0) test.run()\n`,
    0,
    'no tests: no summary',
  ],
  [
    'one of two suites forgotten',
    `${head}const a = suite('a'), b = suite('b')
    a('x', () => {}); b('y', () => {}); test('z', () => {}); a.run(); test.run()\n`,
    2,
    'b.run() is missing',
  ],
  [
    'a late run()',
    `${good}test.run()\nsetTimeout(() => { test('z', () => {}); test.run() }, 100)\n`,
    1,
    'run() was called after',
  ],
  ['an empty file', '', 0, 'no tests: no summary'],
  ['a file without tests', `${head}test.run()\n`, 0, 'no tests ran'],
  // uvu passes the next two.
  [
    'a throwing hook',
    `${good}test.before(() => { throw new Error('hook') })\ntest.run()\n`,
    0,
    '1 of 1 failed',
  ],
  [
    'a thrown value that is no Error',
    `${head}test('x', () => { throw undefined })\ntest.run()\n`,
    0,
    '1 of 1 failed',
  ],
  ['a skipped test', `${good}test.skip('x', () => {})\ntest.run()\n`, 1, '1 skipped'],
  ['test.only', `${good}test.only('x', () => {})\ntest.run()\n`, 1, '1 skipped'],
  [
    'an endless test with a child',
    `// timeout: 5s\n${head}
    import { spawn } from 'node:child_process'
    import { writeFileSync } from 'node:fs'
    test('endless', () => {
      writeFileSync('${sleepPid}', String(spawn('sleep', ['600'], { stdio: 'inherit' }).pid))
      for (;;) {}
    })
    test.run()\n`,
    0,
    'did not end within 5 s',
  ],
  [
    'a process that stays open after its tests',
    `// timeout: 5s\n${good}setInterval(() => {}, 1000)\ntest.run()\n`,
    1,
    'did not end within 5 s',
  ],
  [
    'a test that ignores the signal to end',
    `// timeout: 3s\n${head}
    test('x', () => new Promise(() => setInterval(() => {}, 1000)))
    process.on('SIGTERM', () => {})
    test.run()\n`,
    0,
    'did not end within 3 s',
  ],
  [
    'a crash',
    `${head}test('x', () => { process.kill(process.pid, 'SIGSEGV') })\ntest.run()\n`,
    0,
    'killed by SIGSEGV',
  ],
  [
    'an early exit in a test',
    `${head}test('x', () => process.exit(0))\ntest.run()\n`,
    0,
    'exit status 1',
  ],
  ['an early exit', `${good}test.run()\nprocess.exit(0)\n`, 0, 'no tests: no summary'],
  ['a file that does not compile', 'const = 1\n', 0, 'exit status 1'],
  [
    'a failure after the tests',
    `${good}test.after(() => { Promise.reject(new Error('late')) })\ntest.run()\n`,
    1,
    'exit status 1',
  ],
]

test('what must fail does', async () => {
  const outcome = run(Object.fromEntries(bad.map(([file, text]) => [`${file}.test.ts`, text])))
  assert.is(outcome.status, 1)
  const passed = bad.reduce((sum, [, , passed]) => sum + passed, 0)
  assert.is(outcome.last, `${passed} passed, ${bad.length} failed`, outcome.output)
  const lines = outcome.output.split('\n').filter((line) => /^(ok|FAIL) /.test(line))
  for (const [file, , passed, problem] of bad) {
    const line = lines.find((line) => line.includes(`/${file}.test.ts: `)) ?? ''
    assert.ok(line.startsWith(`FAIL ${String(passed).padStart(4)} `), `${file}: ${line}`)
    assert.ok(line.includes(problem), `${file}: ${line}`)
  }
  assert.match(outcome.output, /ouch/)
  await gone(Number(readFileSync(sleepPid, 'utf8')))
  rmSync(sleepPid)
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
