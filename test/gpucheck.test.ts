// scripts/gpu-check, where there is no GPU: with programs that crash, hang, fail and time in place of
// ours, since a GPU minute is too dear to find out what a script does then.
import { spawnSync } from 'node:child_process'
import { chmodSync, cpSync, mkdirSync, readFileSync, symlinkSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { packageRoot } from '../lib/root.cjs'
import { temporaryFolder } from './helpers/files.js'

const hasPython = spawnSync('python3', ['--version']).status === 0

/** Cases by name; what one does when it runs. */
const program = `#!/usr/bin/env node
const { appendFileSync } = require('node:fs')
const args = process.argv.slice(2)
const value = (name) => args[args.indexOf(name) + 1]
const names = ['a/good', 'b/crashes', 'c/fails', 'd/fails beside others', 'e/good', 'f/good']
const wanted = args.filter((arg) => arg.startsWith('=')).map((arg) => arg.slice(1))
if (args.includes('--bench')) {
  if (wanted[0] === 'variants/xl/linear.qkv-512') {
    const times = { production: 4e-6, 'linear=a': 2e-6, 'linear=b': 5e-6, again: 4.2e-6 }
    for (const [variant, seconds] of Object.entries(times)) {
      const label = 'linear.qkv 8x8x8 bf16'
      const record = { label, case: wanted[0] + '/' + variant, seconds, best: seconds, flops: 4e6 }
      appendFileSync(value('--json'), JSON.stringify(record) + '\\n')
    }
  }
  if (wanted[0] === 'ops/xl/attention/bf16') process.exit(3)
  if (wanted[0] !== 'ops/xl/linear/bf16') process.exit(0)
  const line = { side: 'dit-native', label: 'op 8x8 bf16', seconds: 2e-6, flops: 4e6 }
  appendFileSync(value('--json'), JSON.stringify(line) + '\\n{"half a li')
  process.exit(0)
}
if (args.includes('--list')) {
  console.log(names.join('\\n'))
  process.exit(0)
}
let failed = 0
for (const name of names.filter((name) => wanted.includes(name))) {
  if (args.includes('--trace')) console.log('run  ' + name)
  if (name === 'b/crashes') {
    process.kill(process.pid, 'SIGSEGV')
    Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 10000)
  }
  const fails = name === 'c/fails' || (name === 'd/fails beside others' && wanted.length > 1)
  if (fails) console.log('/some/where.cc:12: ' + name + ': rel L2 0.5 > 0.1')
  if (args.includes('--trace')) console.log((fails ? 'FAIL ' : 'ok   ') + name + ' 0.010 s')
  failed += fails
}
process.exit(failed === 0 ? 0 : 1)
`

const peer = `
import json, sys
if "check" in sys.argv:
    print("PyTorch 9\\n12 passed, 0 failed")
else:
    with open(sys.argv[sys.argv.index("--json") + 1], "w") as file:
        for label, variant, seconds in (
            ("ceiling.product 8x8x8 bf16", "cuBLAS", 1e-6),
            ("op 8x8 bf16", "eager", 5e-6),
            ("op 8x8 bf16", "compiled", 3e-6),
            ("other 1 bf16", "eager", 1e-6),
        ):
            json.dump({"label": label, "variant": variant, "seconds": seconds, "flops": 4e6}, file)
            file.write("\\n")
        json.dump({"label": "op 8x8 bf16", "variant": "none", "skipped": "refuses"}, file)
`

/** An unpacked payload with those programs. */
function payload(): string {
  const folder = temporaryFolder()
  for (const part of ['gpu/bin', 'build/Release', 'bench/peers', 'scripts']) {
    mkdirSync(path.join(folder, part), { recursive: true })
  }
  cpSync(path.join(packageRoot, 'scripts/gpu'), path.join(folder, 'scripts/gpu'), {
    recursive: true,
  })
  cpSync(path.join(packageRoot, 'scripts/gpu-check'), path.join(folder, 'scripts/gpu-check'))
  symlinkSync(process.execPath, path.join(folder, 'gpu/bin/node'))
  writeFileSync(path.join(folder, 'gpu/payload.json'), '{ "commit": "0123456" }')
  const predictions = { 'linear.qkv 8x8x8 bf16': { production: 3e-6, 'linear=a': 1.5e-6 } }
  writeFileSync(path.join(folder, 'gpu/predictions.json'), JSON.stringify(predictions))
  writeFileSync(path.join(folder, 'bench/peers/torch_dit.py'), peer)
  const test = path.join(folder, 'build/Release/dit_native_test')
  writeFileSync(test, program)
  chmodSync(test, 0o755)
  return folder
}

/** Runs it there, and reads what it leaves. */
function gpuCheck(folder: string, name: string, ...args: string[]) {
  const left = args.includes('--variants') ? 'variants' : name
  const out = path.join(folder, 'out')
  const { status, stdout, stderr } = spawnSync(
    path.join(folder, 'scripts/gpu-check'),
    [name, '--device', 'cpu', ...args],
    { encoding: 'utf8', env: { ...process.env, OUT: out, PYTHONDONTWRITEBYTECODE: '1' } },
  )
  if (!hasPython) {
    assert.is.not(status, 0)
    assert.match(stderr, /python3/)
    return undefined
  }
  const results = JSON.parse(readFileSync(path.join(out, `${left}.json`), 'utf8'))
  return { status, stdout, results, table: readFileSync(path.join(out, `${left}.md`), 'utf8') }
}

test('correct: a crash costs one case, a failure is tried again alone', () => {
  const run = gpuCheck(payload(), 'correct', '--parts', 'native,peer')
  if (run === undefined) return
  assert.is(run.status, 1)
  assert.is(run.stdout.trimEnd().split('\n').at(-1), '15 passed, 3 failed')
  const problems = run.results.problems.join('\n')
  assert.match(problems, /b\/crashes: alone, too: killed by SIGSEGV/)
  assert.match(problems, /c\/fails: alone, too: rel L2 0.5 > 0.1/)
  assert.match(problems, /d\/fails beside others: rel L2 0.5 > 0.1 \(alone it passes\)/)
  assert.match(run.table, /commit 0123456, device cpu/)
  assert.match(run.table, /native cases, cpu +\| FAILED +\| 3 /)
})

test('correct: what cannot be run here is said, and is no success', () => {
  const run = gpuCheck(payload(), 'correct', '--parts', 'full')
  if (run === undefined) return
  assert.is(run.status, 1)
  assert.match(run.table, /full-size networks +\| not run /)
  assert.match(run.stdout, /\n0 passed, 0 failed\n$/)
})

test('bench: joins by label, takes the fastest way of the peer', () => {
  const run = gpuCheck(payload(), 'bench', '--parts', 'ceilings,ops')
  if (run === undefined) return
  // One of our cases ended badly: that is said, and the others are there.
  assert.is(run.status, 1)
  assert.match(run.table, /=ops\/xl\/attention\/bf16 ended with status 3, 1 lines/)
  // 2 µs against 3: a half more; 2 of the ceiling's 4 TFLOP/s.
  assert.match(run.table, /op 8x8 bf16 \| 2.0 µs .* 50 % .* 3.0 µs .* compiled \| 1.50 /)
  assert.match(run.table, /Not measured on our side: other 1 bf16\./)
  assert.match(run.table, /none +\| not run +\| refuses/)
  assert.is(run.results.ours.length, 1)
})

test('bench: variants beside production and what was predicted', () => {
  const run = gpuCheck(payload(), 'bench', '--variants')
  if (run === undefined) return
  assert.is(run.status, 0)
  const row = run.table.split('\n').find((line) => line.startsWith('| linear.qkv 8x8x8'))
  const cells = row?.split('|').map((cell) => cell.trim())
  const fastest = ['linear=a', '2.0 µs', '1.5 µs', '2.000', '2']
  assert.equal(cells?.slice(2, 5), ['4.0 µs', '3.0 µs', '+5.0 %'])
  assert.equal(cells?.slice(6, 11), fastest)
  assert.match(run.table, /linear=b +\| 5.0 µs +\| 5.0 µs +\| +\| +\|/)
  assert.is(run.results.variants.length, 4)
})

test('bench: what no time is left for is said', () => {
  const run = gpuCheck(payload(), 'bench', '--variants', '--only', 'linear.qkv', '--limit', '1')
  if (run === undefined) return
  assert.is(run.status, 1)
  assert.match(run.table, /few rows +\| 0 s +\| =variants\/xl\/linear.qkv-512: no time was left/)
  assert.not.match(run.table, /linear.proj|variants, steps/)
})

test('no command, or an unknown one, gets the usage', () => {
  for (const args of [[], ['corect']]) {
    const script = path.join(packageRoot, 'scripts/gpu-check')
    const { status, stderr } = spawnSync(script, args, { encoding: 'utf8' })
    assert.is(status, 2)
    assert.match(stderr, /gpu-check pack/)
  }
})

test.run()
