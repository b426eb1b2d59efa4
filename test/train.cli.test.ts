// `dit train`: from a folder of images to a model, through the command line.
// timeout: 120s
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, mkdirSync, readdirSync, readFileSync } from 'node:fs'
import path from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import sharp from 'sharp'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { dit, ditJson } from './helpers/cli.js'
import { fixture, temporaryFolder } from './helpers/files.js'
import { item, tiny, weights } from './helpers/training.js'

const names = ['crossed', 'lying', 'standing']

/** Twelve PNGs in three folders. */
async function imageFolder(): Promise<string> {
  const folder = temporaryFolder()
  for (const name of names) mkdirSync(path.join(folder, name))
  for (let i = 0; i < 12; i++) {
    const { image, label } = item(i)
    const bytes = Uint8Array.from(image as Float32Array, (value) => 127.5 * (value + 1))
    const name = ['lying', 'standing', 'crossed'][label as number] as string
    await sharp(bytes, { raw: { width: 8, height: 8, channels: 1 } })
      .png()
      .toFile(path.join(folder, name, `${i}.png`))
  }
  return folder
}

const precise = ['--precision', 'fp32']
const fresh = ['--config', JSON.stringify(tiny), ...precise]
const quick = ['--batch-size', '4', '--lr', '1e-3', '--ema-decay', '0.9', '--seed', '7']
const common = (data: string, out: string) => ['train', '--data', data, '--out', out]

async function train(args: string[]) {
  const ended = await dit([...args, '--threads', '1'])
  assert.is(ended.status, 0, ended.stderr)
  return ended
}

test('dit train: a model from images, and one line about it', async () => {
  const data = await imageFolder()
  const out = path.join(temporaryFolder(), 'run')
  const flags = ['--steps', '8', '--save-every', '4', '--flip', '--schedule', 'cosine']
  flags.push('--class-names', 'a,b,standing')
  const grid = ['--sample-every', '8', '--sample-steps', '2', '--sample-rows', '1']
  const { stdout, stderr } = await train([
    ...common(data, out),
    ...fresh,
    ...quick,
    ...flags,
    ...grid,
  ])
  assert.match(stdout, /run: step 8, loss \d.*, done\n$/)
  assert.match(stderr, /^step 0 of 8, 4 rows a step, 4 at once, .* seed 7$/m)
  assert.equal(readdirSync(path.join(out, 'checkpoints')), [
    'latest',
    'step-0000004',
    'step-0000008',
  ])
  assert.ok(existsSync(path.join(out, 'samples/step-0000008.png')))

  const info = (await ditJson('info', out)) as { classes?: unknown }
  assert.ok(info)
  const image = path.join(out, 'image.png')
  const sampled = await dit(['sample', '--model', out, '--labels', 'standing', '--out', image])
  assert.is(sampled.status, 0, sampled.stderr)
  assert.match(sampled.stdout, /class 2 \(standing\)/)
  assert.match(stderr, /class 0 is 'a' for the model, 'crossed' in the data/)
})

/** Runs `dit`, which gets each signal as soon as `when` is true. */
async function interrupted(args: string[], signals: [NodeJS.Signals, when: () => boolean][]) {
  const main = path.join(path.dirname(fixture()), '../lib/cli/main.ts')
  const child = spawn(process.execPath, ['--import', import.meta.resolve('tsx'), main, ...args], {
    stdio: ['ignore', 'pipe', 'inherit'],
  })
  const ended = once(child, 'close')
  let stdout = ''
  child.stdout.setEncoding('utf8').on('data', (text: string) => {
    stdout += text
  })
  for (const [signal, when] of signals) {
    while (child.exitCode === null && !when()) await sleep(1)
    child.kill(signal)
  }
  const [status, signal] = (await ended) as [number | null, NodeJS.Signals | null]
  return { status, signal, stdout }
}

const lines = (out: string) => {
  const file = path.join(out, 'metrics.jsonl')
  return existsSync(file) ? readFileSync(file, 'utf8').trim().split('\n') : []
}

for (const signal of ['SIGINT', 'SIGTERM'] as const) {
  test(`dit train: ${signal} saves and exits with 0; --resume ends as without it`, async () => {
    const data = await imageFolder()
    const [whole, parted] = [temporaryFolder(), temporaryFolder()]
    const flags = [...fresh, ...quick, '--steps', '400', '--threads', '1', '--quiet']
    await train([...common(data, whole), ...flags])

    const ended = await interrupted(
      [...common(data, parted), ...flags, '--json'],
      [[signal, () => lines(parted).length > 20]],
    )
    assert.is(ended.status, 0)
    const { step, stopped } = JSON.parse(ended.stdout)
    assert.ok(stopped && step > 20 && step < 400, ended.stdout)
    const { stdout } = await train([...common(data, parted), '--resume', '--json', ...precise])
    assert.is(JSON.parse(stdout).step, 400)
    assert.is(JSON.parse(stdout).stopped, false)
    const checkpoint = (out: string) => weights(path.join(out, 'checkpoints/latest'))
    assert.equal(checkpoint(parted), checkpoint(whole))
    const losses = (out: string) => lines(out).map((line) => JSON.parse(line).loss)
    assert.equal(losses(parted), losses(whole))
  })
}

test('dit train: a second Ctrl-C does not wait for the save', async () => {
  const data = await imageFolder()
  const out = temporaryFolder()
  const large = JSON.stringify({ ...tiny, depth: 4, hidden: 256, heads: 4 })
  const saving = () => {
    const names = readdirSync(path.join(out, 'checkpoints'))
    return names.some((name) => name.endsWith('.tmp'))
  }
  const flags = ['--config', large, ...precise, ...quick, '--steps', '1000', '--quiet']
  const { signal, stdout } = await interrupted(
    [...common(data, out), ...flags],
    [
      ['SIGINT', () => lines(out).length > 0],
      ['SIGINT', saving],
    ],
  )
  assert.is(signal, 'SIGINT', 'which a shell tells as status 130')
  assert.is(stdout, '')
  assert.not.ok(existsSync(path.join(out, 'checkpoints/latest')))
})

test('dit train: wrong command lines', async () => {
  const data = await imageFolder()
  const out = path.join(temporaryFolder(), 'run')
  const refused = async (args: string[], status: number, message: RegExp) => {
    const ended = await dit([...common(data, out), ...args])
    assert.is(ended.status, status, ended.stderr)
    assert.match(ended.stderr, message)
  }
  await refused([...fresh], 2, /a number of steps, or --epochs, for --steps/)
  await refused(['--steps', '3'], 2, /preset or JSON, or a --model to train on, for --config/)
  await refused(['--resume'], 2, /there is no checkpoint in .* yet/)
  await refused([...fresh, '--lr', 'fast'], 2, /Expected a number/)
  await refused([...fresh, '--checkpointing', 'some'], 2, /checkpointing/)
  await refused([...fresh, '--config', 'none.json'], 2, /no such file/)
  await refused([...fresh, '--epochs', '1', '--save-every', '0'], 2, /--save-every.*at least 1/)
  const missing = await dit([...common('no-such-folder', out), ...fresh, '--steps', '1'])
  assert.is(missing.status, 1, missing.stderr)
  assert.match(missing.stderr, /no-such-folder/)
})

test.run()
