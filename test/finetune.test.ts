// Fine-tuning: a checkpoint's weights with other classes, at another size, with other patches.
// timeout: 120s
import { existsSync, mkdirSync } from 'node:fs'
import path from 'node:path'
import sharp from 'sharp'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { DiT, type LoadOptions, type Tensor } from '../lib/index.js'
import { dit, ditJson } from './helpers/cli.js'
import { fixture, rejects, temporaryFolder } from './helpers/files.js'
import { collect, item, ofType, quick, tiny, trainTiny } from './helpers/training.js'

const file = fixture('dit_tiny_forward/a96h4/model.safetensors') // 8×8, 4 channels, patches of 2
const fp32 = { precision: 'fp32', threads: 1 } as const

const load = (options: LoadOptions = {}) => DiT.load(file, { ...fp32, ...options })

function waves(...shape: number[]): Tensor {
  const data = new Float32Array(shape.reduce((product, size) => product * size, 1))
  return { data: data.map((_, i) => Math.sin(0.37 * i)), shape }
}

/** Every patch of 2×2 pixels becomes one of 4×4, by linear interpolation that ends at its border. */
function enlarge({ data, shape }: Tensor): Tensor {
  const [n = 0, channels = 0, height = 0, width = 0] = shape
  const weights = [
    [1, 0],
    [0.75, 0.25],
    [0.25, 0.75],
    [0, 1],
  ]
  const out = new Float32Array(4 * data.length)
  for (let plane = 0; plane < n * channels; plane++) {
    for (let y = 0; y < 2 * height; y++) {
      for (let x = 0; x < 2 * width; x++) {
        let sum = 0
        for (const [j, down] of (weights[y % 4] as number[]).entries()) {
          for (const [i, across] of (weights[x % 4] as number[]).entries()) {
            const row = plane * height + 2 * Math.floor(y / 4) + j
            sum += down * across * (data[row * width + 2 * Math.floor(x / 4) + i] as number)
          }
        }
        out[(plane * 2 * height + y) * 2 * width + x] = sum
      }
    }
  }
  return { data: out, shape: [n, channels, 2 * height, 2 * width] }
}

function relativeError(got: Tensor, want: Tensor): number {
  assert.equal(got.shape, want.shape)
  let error = 0
  let norm = 0
  for (const [i, value] of want.data.entries()) {
    error += ((got.data[i] as number) - value) ** 2
    norm += value ** 2
  }
  return Math.sqrt(error / norm)
}

test('twice the size with twice the patches: the model of enlarged patches is the enlarged model', async () => {
  await using before = await load()
  await using after = await load({ latentSize: 16, patchSize: 4 })
  assert.equal([after.config.latentSize, after.config.patchSize], [[16, 16], 4])
  assert.equal(after.source.notes, [
    'Patch embedding and last layer were resized from patches of 2 to 4.',
  ])
  const x = waves(3, 4, 8, 8)
  const rest = { t: [10, 500, 999], y: [0, 3, 5] }
  const want = enlarge(await before.denoise({ x, ...rest }))
  const error = relativeError(await after.denoise({ x: enlarge(x), ...rest }), want)
  assert.ok(error < 2e-6, `relative L2 error ${error}`)
})

test('twice the size with the same patches: other positions, the same weights', async () => {
  await using after = await load({ latentSize: 16 })
  assert.equal(after.source.notes, [
    'The position embedding was computed for 8×8 tokens (the weights have 4×4).',
  ])
  const out = await after.denoise({ x: waves(1, 4, 16, 16), t: 10, y: 1 })
  assert.ok(out.data.every(Number.isFinite))
})

test('larger patches at the same size', async () => {
  await using after = await load({ patchSize: 4 })
  assert.equal([after.config.latentSize, after.config.patchSize], [[8, 8], 4])
  assert.is(after.source.notes.length, 2)
  const out = await after.denoise({ x: waves(1, 4, 8, 8), t: 10, y: 1 })
  assert.ok(out.data.every(Number.isFinite))
})

test('other classes: the null class is as it was, the others begin near it', async () => {
  await using before = await load()
  const { numClasses } = before.config
  await using after = await load({ numClasses: 5 })
  assert.is(after.config.numClasses, 5)
  assert.equal(after.source.notes, [
    `The label table was made anew for 5 classes (the weights have ${numClasses}); the null class stays.`,
  ])
  assert.equal(after.classNames, {})
  const at = { x: waves(1, 4, 8, 8), t: 300 }
  const none = await before.denoise({ ...at, y: numClasses })
  assert.equal(await after.denoise({ ...at, y: 5 }), none)
  const first = await after.denoise({ ...at, y: 0 })
  const error = relativeError(first, none)
  assert.ok(error > 0 && error < 0.2, `${error}`)
  await using again = await load({ numClasses: 5 })
  assert.equal(await again.denoise({ ...at, y: 0 }), first, 'always the same')
  await rejects(() => after.denoise({ ...at, y: 6 }), 'ERR_DIT_OPTION', /from 0 to 4/)

  await using same = await load({ numClasses })
  assert.equal(same.source.notes, before.source.notes)
  assert.equal(await same.denoise({ ...at, y: 1 }), await before.denoise({ ...at, y: 1 }))
})

test('sizes that do not fit', async () => {
  await rejects(() => load({ patchSize: 3 }), 'ERR_DIT_OPTION', /divisor of the .* 8×8, for patch/)
  await rejects(
    () => load({ patchSize: 4, latentSize: 10 }),
    'ERR_DIT_OPTION',
    /multiples of the patch size, 4, for latentSize but got 10/,
  )
  await rejects(() => load({ numClasses: 0 }), 'ERR_DIT_OPTION', /numClasses but got 0/)
})

test('an adapted model is saved as what it is, and trained on', async () => {
  const folder = temporaryFolder()
  const target = path.join(folder, 'adapted.safetensors')
  await using adapted = await load({ numClasses: 3, latentSize: 16, patchSize: 4 })
  await adapted.save(target)
  await using stored = await DiT.load(target, fp32)
  assert.equal(stored.config, adapted.config)
  const at = { x: waves(2, 4, 16, 16), t: [20, 700], y: [0, 2] }
  assert.equal(await stored.denoise(at), await adapted.denoise(at))

  await using trainer = await adapted.trainer({ batchSize: 2, lr: 1e-3, loss: 'mse' })
  const rows = { x: at.x, y: at.y, noise: waves(2, 4, 16, 16), t: at.t, drop: [0, 0] }
  const losses = []
  for (let step = 0; step < 10; step++) losses.push((await trainer.step(rows)).loss)
  assert.ok((losses.at(-1) as number) < 0.8 * (losses[0] as number), losses.join())
})

test('what was learnt helps: another size and other classes start from a lower loss', async () => {
  const out = temporaryFolder()
  await trainTiny({ steps: 150, lr: 3e-3, out, saveEvery: 150 })
  const options = { ...quick, steps: 5, logEvery: 5, seed: 3 } as const
  const large = (i: number) => {
    const { image, label } = item(i)
    const x = { data: image as Float32Array, shape: [1, 1, 8, 8] }
    return { image: enlarge(x).data, label: (label as number) + 1 }
  }
  const data = Array.from({ length: 24 }, (_, i) => large(i))
  const source = path.join(out, 'model.safetensors')
  await using tuned = await DiT.load(source, {
    ...fp32,
    numClasses: 4,
    latentSize: 16,
    patchSize: 4,
  })
  const config = { ...tiny, numClasses: 4, latentSize: 16, patchSize: 4 }
  await using fresh = await DiT.create(config, { ...fp32, seed: 1 })
  const loss = async (dit: DiT) => {
    const [step] = ofType(await collect(dit.train(data, options)), 'step')
    return step?.loss as number
  }
  const [ours, theirs] = [await loss(tuned), await loss(fresh)]
  assert.ok(ours < 0.9 * theirs, `${ours} after what was learnt, ${theirs} afresh`)
})

test('dit train --model: other classes and another size; then --resume', async () => {
  const folder = temporaryFolder()
  const start = path.join(folder, 'start')
  await trainTiny({ steps: 2, out: start })
  const data = path.join(folder, 'data')
  for (const [i, name] of ['lying', 'standing', 'crossed', 'more'].entries()) {
    mkdirSync(path.join(data, name), { recursive: true })
    const bytes = Uint8Array.from(item(i).image as Float32Array, (value) => 127.5 * (value + 1))
    await sharp(bytes, { raw: { width: 8, height: 8, channels: 1 } })
      .png()
      .toFile(path.join(data, name, '0.png'))
  }
  const model = ['--model', path.join(start, 'model.safetensors')]
  const rest = ['--precision', 'fp32', '--threads', '1', '--batch-size', '4', '--seed', '1']
  const train = (out: string, ...flags: string[]) =>
    dit(['train', '--data', data, '--out', path.join(folder, out), ...rest, ...flags])

  const few = await train('few', ...model, '--steps', '2')
  assert.is(few.status, 2, few.stderr)
  assert.match(few.stderr, /has 4 classes, the model 3.* numClasses 4 or more.*--num-classes/)

  const adapt = ['--num-classes', '4', '--latent-size', '16', '--patch-size', '4']
  const { status, stderr } = await train('tuned', ...model, ...adapt, '--steps', '2')
  assert.is(status, 0, stderr)
  assert.match(stderr, /label table was made anew for 4 classes \(the weights have 3\)/)
  assert.match(stderr, /resized from patches of 2 to 4/)
  const { config, classNames } = (await ditJson('info', path.join(folder, 'tuned'))) as {
    config: DiT['config']
    classNames: object
  }
  assert.equal([config.numClasses, config.patchSize, config.latentSize], [4, 4, [16, 16]])
  assert.equal(Object.values(classNames), ['crossed', 'lying', 'more', 'standing'])

  const resumed = await train('tuned', '--resume', '--steps', '4')
  assert.is(resumed.status, 0, resumed.stderr)
  assert.ok(existsSync(path.join(folder, 'tuned/checkpoints/step-0000004')))

  const misplaced = await train(
    'x',
    '--config',
    JSON.stringify(tiny),
    '--num-classes',
    '4',
    '--steps',
    '1',
  )
  assert.is(misplaced.status, 2, misplaced.stderr)
  assert.match(misplaced.stderr, /nothing without --model.* for numClasses/)
})

test.run()
