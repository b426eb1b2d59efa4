// What a memory fault or undefined behaviour in native code is likeliest to show in, under
// AddressSanitizer, LeakSanitizer and UndefinedBehaviorSanitizer. `npm run test:sanitize` runs far more.
// Most of the time is the build.
// timeout: 1500s
import { spawnSync } from 'node:child_process'
import { fileURLToPath } from 'node:url'
import { test } from 'uvu'
import * as assert from 'uvu/assert'

test('the quick part of test:sanitize is clean', () => {
  const script = fileURLToPath(new URL('../scripts/sanitize.mjs', import.meta.url))
  const { status, stdout, stderr } = spawnSync(process.execPath, [script, '--quick'], {
    encoding: 'utf8',
    maxBuffer: 2 ** 30,
  })
  const [, passed, failed] = /(\d+) passed, (\d+) failed\s*$/.exec(stdout) ?? []
  assert.is(failed, '0', stdout + stderr)
  assert.ok(Number(passed) > 60, stdout)
  assert.is(status, 0)
})

test.run()
