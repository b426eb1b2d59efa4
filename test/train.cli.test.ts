// `dit train`: from a folder of images to a model, through the command line.
// timeout: 120s
import { existsSync, mkdirSync, readdirSync, readFileSync } from 'node:fs'
import path from 'node:path'
import sharp from 'sharp'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { type CliOptions, dit, ditJson } from './helpers/cli.js'
import { temporaryFolder } from './helpers/files.js'
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

const { numClasses: _, ...size } = tiny
const fresh = ['--config', JSON.stringify({ ...size, numClasses: 3 }), '--precision', 'fp32']
const quick = ['--batch-size', '4', '--lr', '1e-3', '--ema-decay', '0.9', '--seed', '7']
const common = (data: string, out: string) => ['train', '--data', data, '--out', out]

async function train(args: string[], options?: CliOptions) {
  const ended = await dit([...args, '--threads', '1'], options)
  assert.is(ended.status, 0, ended.stderr)
  return ended
}

test('dit train: a model from images, and one line about it', async () => {
  const data = await imageFolder()
  const out = path.join(temporaryFolder(), 'run')
  const flags = ['--steps', '8', '--save-every', '4', '--flip', '--schedule', 'cosine']
  const grid = ['--sample-every', '8', '--sample-steps', '2', '--sample-rows', '1']
  const { stdout, stderr } = await train([
    ...common(data, out),
    ...fresh,
    ...quick,
    ...flags,
    ...grid,
  ])
  assert.match(stdout, /run: step 8, loss \d.*, done\n$/)
  assert.match(stderr, /^step 0 of 8, 4 rows a step, 4 at once, .* seed 7\n/)
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
})

test('dit train: Ctrl-C saves and exits with 0; --resume ends as without it', async () => {
  const data = await imageFolder()
  const [whole, parted] = [temporaryFolder(), temporaryFolder()]
  const flags = [...fresh, ...quick, '--steps', '40', '--save-every', '1000', '--debug']
  await train([...common(data, whole), ...flags, '--quiet'])

  const { stdout } = await train([...common(data, parted), ...flags], { interruptAt: /seed 7/ })
  const step = Number(/step (\d+)/.exec(stdout)?.[1])
  if (step < 40) assert.match(stdout, /stopped, saved; go on with --resume/)
  const result = JSON.parse(
    (await train([...common(data, parted), '--resume', '--json', '--precision', 'fp32'])).stdout,
  )
  assert.equal([result.step, result.stopped], [40, false])
  const checkpoint = (out: string) => weights(path.join(out, 'checkpoints/latest'))
  assert.equal(checkpoint(parted), checkpoint(whole))
  const lines = (out: string) =>
    readFileSync(path.join(out, 'metrics.jsonl'), 'utf8')
      .trim()
      .split('\n')
      .map((line) => JSON.parse(line).loss)
  assert.equal(lines(parted), lines(whole))
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
  await refused([...fresh, '--lr', 'fast'], 2, /Expected a number/)
  await refused([...fresh, '--checkpointing', 'some'], 2, /checkpointing/)
  await refused([...fresh, '--config', 'none.json'], 2, /no such file/)
  await refused([...fresh, '--epochs', '1', '--save-every', '0'], 2, /--save-every.*at least 1/)
  const missing = await dit([...common('no-such-folder', out), ...fresh, '--steps', '1'])
  assert.is(missing.status, 1, missing.stderr)
  assert.match(missing.stderr, /no-such-folder/)
})

test.run()
