// timeout: 180s
import { copyFileSync } from 'node:fs'
import path from 'node:path'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { DiT, type ModelProgress, type Pixels, type Tensor } from '../lib/index.js'
import { difference, Expected } from './helpers/expected.js'
import { fixture, rejects, temporaryFolder } from './helpers/files.js'

const fp32 = { precision: 'fp32', threads: 1 } as const
const pipeline = fixture('diffusers_pipeline')
const models = ['a96h4', 'b144h2', 'micro24']

for (const name of models) {
  test(`denoise: ${name} agrees with the reference`, async () => {
    await using dit = await DiT.load(fixture('dit_tiny_forward', name, 'model.safetensors'), fp32)
    const expected = await Expected.read(`dit_tiny_forward/${name}/forward.safetensors`)
    const x = expected.get('x')
    const y = expected.numbers('y')
    expected.check('out', await dit.denoise({ x, t: expected.numbers('t'), y }))
    const fractional = expected.numbers('t_fractional')
    expected.check('out_t_fractional', await dit.denoise({ x, t: fractional, y }))
  })

  test(`denoise: ${name} with guidance agrees with the reference`, async () => {
    await using dit = await DiT.load(fixture('dit_tiny_forward', name, 'model.safetensors'), fp32)
    const expected = await Expected.read(`dit_tiny_forward/${name}/forward.safetensors`)
    // The reference doubles the batch: labels in the first half, null classes in the second.
    const n = expected.get('cfg.x').shape[0] as number
    const ys = expected.numbers('cfg.y')
    assert.ok(ys.slice(n / 2).every((label) => label === dit.config.numClasses))
    const request = {
      x: expected.first('cfg.x', n / 2),
      t: expected.numbers('cfg.t').slice(0, n / 2),
      y: ys.slice(0, n / 2),
    }
    expected.check('cfg.out_scale4', await dit.denoise({ ...request, guidance: 4 }))
    expected.check('cfg.out_scale1p5', await dit.denoise({ ...request, guidance: 1.5 }))
    const all = await dit.denoise({ ...request, guidance: 4, guidanceChannels: 'all' })
    expected.check('cfg_all.out_scale4', all)
  })

  test(`denoise: ${name} in bf16 is as near as a naive bf16 run, within a factor of 2`, async () => {
    const usable = (await DiT.devices()).flatMap((device) =>
      device.available ? device.precisions : [],
    )
    const file = fixture('dit_tiny_forward', name, 'model.safetensors')
    if (!usable.includes('bf16')) {
      await rejects(() => DiT.load(file, { precision: 'bf16' }), 'ERR_DIT_DEVICE', /has no bf16/)
      return
    }
    await using dit = await DiT.load(file, { precision: 'bf16' })
    const expected = await Expected.read(`dit_tiny_forward/${name}/forward.safetensors`)
    const out = await dit.denoise({
      x: expected.get('x'),
      t: expected.numbers('t'),
      y: expected.numbers('y'),
    })
    const naive = expected.tolerance('out').all_bf16_vs_f64?.rel_l2_err as number
    const { relL2 } = difference(out.data, expected.get('out_f64').data)
    if (process.env.DIT_TEST_FIGURES) console.log(`${name} bf16: ${relL2}, naive ${naive}`)
    assert.ok(relL2 <= 2 * naive, `rel L2 ${relL2}, a naive run has ${naive}`)
  })
}

test('denoise: the same model from five kinds of files gives the same bits', async () => {
  const expected = await Expected.read('diffusers_pipeline/expected.safetensors')
  const request = { x: expected.get('x'), t: expected.numbers('t'), y: expected.numbers('y') }
  const config = { latentSize: 8, heads: 2 }
  const sources: [string, object?][] = [
    [fixture('dit_tiny_forward/micro24/model.safetensors')],
    [fixture('pt_checkpoint/state_dict.pt'), { config }],
    [fixture('pt_checkpoint/train_checkpoint.pt'), { config }],
    [fixture('diffusers_pipeline/transformer/diffusion_pytorch_model.safetensors')],
    [pipeline],
  ]
  let first: Tensor | undefined
  for (const [source, options] of sources) {
    await using dit = await DiT.load(source, { ...fp32, ...options })
    const out = await dit.denoise(request)
    expected.check('out', out)
    first ??= out
    assert.equal(out, first, source)
  }
})

test('denoise: one timestep and one label serve all latents; a batch is its rows', async () => {
  await using dit = await DiT.load(fixture('dit_tiny_forward/a96h4/model.safetensors'), fp32)
  const expected = await Expected.read('dit_tiny_forward/a96h4/forward.safetensors')
  const x = expected.get('x')
  const both = await dit.denoise({ x, t: 500, y: 3 })
  assert.equal(await dit.denoise({ x, t: [500, 500], y: [3, 3] }), both)
  const first = await dit.denoise({ x: expected.first('x', 1), t: 500, y: 3 })
  assert.equal(first.data, both.data.slice(0, first.data.length))
})

test('denoise: an embedding takes the place of a class', async () => {
  await using dit = await DiT.load(fixture('dit_tiny_forward/a96h4/model.safetensors'), fp32)
  const weights = await Expected.read('dit_tiny_forward/a96h4/model.safetensors')
  const expected = await Expected.read('dit_tiny_forward/a96h4/forward.safetensors')
  const { hidden } = dit.config
  const rows = weights.get('y_embedder.embedding_table.weight').data
  const embedding = (label: number) => rows.slice(label * hidden, (label + 1) * hidden)
  const y = expected.numbers('y')
  const request = { x: expected.get('x'), t: expected.numbers('t') }
  const byClass = await dit.denoise({ ...request, y, guidance: 4 })
  assert.equal(await dit.denoise({ ...request, y: y.map(embedding), guidance: 4 }), byClass)
})

/** The tiny VAE with the present attention names: a folder with its config.json and weights. */
function modernVae(): string {
  const folder = temporaryFolder()
  copyFileSync(fixture('vae_tiny/config.json'), path.join(folder, 'config.json'))
  const weights = 'diffusion_pytorch_model.safetensors'
  copyFileSync(fixture('vae_tiny/modern', weights), path.join(folder, weights))
  return folder
}

const scalingFactor = 0.18215
const times = ({ data, shape }: Tensor, factor: number): Tensor => {
  return { data: data.map((value) => value * factor), shape }
}

for (const [names, options] of [
  ['legacy', {}],
  ['present', { vae: modernVae() }],
] as const) {
  test(`decode and encode with ${names} attention names agree with the reference`, async () => {
    await using dit = await DiT.load(pipeline, { ...fp32, ...options })
    const expected = await Expected.read('vae_tiny/io.safetensors')
    const images = await dit.decode(times(expected.get('z'), scalingFactor))
    assert.equal(
      images.map(({ width, height, channels }) => [width, height, channels]),
      [
        [16, 16, 3],
        [16, 16, 3],
      ],
    )
    const bytes = Buffer.concat(images.map((image) => image.data))
    const { maxAbs } = difference(bytes, expected.get('decoded_u8_nhwc').data)
    assert.ok(maxAbs <= 1, `bytes differ by ${maxAbs}`)
    const latents = await dit.encode(expected.get('x'))
    expected.check('mean', times(latents, 1 / scalingFactor))
  })
}

test('encode: pixels give what their numbers give; a seed draws from the posterior', async () => {
  await using dit = await DiT.load(pipeline, fp32)
  const images = Array.from({ length: 3 }, (_, i) => ({
    data: Uint8Array.from({ length: 24 * 16 * 3 }, (_, k) => (k * (i + 3) * 7) % 256),
    width: 24,
    height: 16,
    channels: 3,
  }))
  const numbers = new Float32Array(3 * 3 * 16 * 24)
  for (const [i, { data }] of images.entries()) {
    for (let k = 0; k < data.length; k++) {
      const [pixel, channel] = [Math.floor(k / 3), k % 3]
      numbers[(i * 3 + channel) * 16 * 24 + pixel] = (data[k] as number) / 127.5 - 1
    }
  }
  const latents = await dit.encode(images)
  assert.equal(latents.shape, [3, 4, 8, 12])
  assert.equal(await dit.encode({ data: numbers, shape: [3, 3, 16, 24] }), latents)
  const [, second] = images
  assert.equal((await dit.encode(second as Pixels)).data, latents.data.slice(384, 768))

  const drawn = await dit.encode(images, { sample: true, seed: 5 })
  assert.equal(await dit.encode(images, { sample: true, seed: 5n }), drawn)
  assert.not.equal(drawn, latents)
  const alone = await dit.encode(second as Pixels, { sample: true, seed: 6 })
  assert.equal(alone.data, drawn.data.slice(384, 768))
})

test('load: what was loaded, from where', async () => {
  await using dit = await DiT.load(pipeline, fp32)
  assert.equal(dit.config, {
    depth: 2,
    hidden: 24,
    heads: 2,
    patchSize: 2,
    latentSize: [8, 8],
    channels: 4,
    numClasses: 5,
    nullClass: true,
    learnSigma: true,
    mlpHidden: 96,
  })
  assert.is(dit.vae?.scalingFactor, scalingFactor)
  assert.is(dit.device, 'cpu')
  assert.is(dit.precision, 'fp32')
  assert.is(dit.source.kind, 'diffusers')
  assert.match(dit.source.description, /diffusers_pipeline/)
  assert.match(dit.source.vae ?? '', /diffusers_pipeline/)
  assert.is(dit.classNames[3], 'class number 3, label 3')
  assert.is(dit.schedule.steps, 1000)
  const memory = dit.memory()
  const parameters = 31160 // of micro24, its position table included
  assert.ok(memory.weights >= 4 * (parameters - 16 * 24), JSON.stringify(memory))
  assert.ok(memory.vae > 4 * 167959)
  assert.is(memory.total, memory.weights + memory.vae + memory.activations)
})

test('load: progress ends with all bytes; both weights of a training checkpoint', async () => {
  const file = fixture('pt_checkpoint/train_checkpoint.pt')
  const options = { ...fp32, config: { latentSize: 8, heads: 2 } }
  const progress: ModelProgress[] = []
  await using ema = await DiT.load(file, {
    ...options,
    onProgress: (event) => progress.push(event),
  })
  assert.is(ema.source.weights, 'ema')
  const last = progress.at(-1)
  assert.is(last?.phase, 'prepare')
  assert.is(last?.loaded, last?.total)
  assert.ok((last?.total ?? 0) > 0)
  await using model = await DiT.load(file, { ...options, weights: 'model' })
  assert.is(model.source.weights, 'model')
  const expected = await Expected.read('diffusers_pipeline/expected.safetensors')
  const request = { x: expected.get('x'), t: 100, y: 0 }
  assert.not.equal(await ema.denoise(request), await model.denoise(request))
})

test('load: another latent size computes the position embedding anew', async () => {
  const file = fixture('dit_tiny_forward/a96h4/model.safetensors')
  await using dit = await DiT.load(file, { ...fp32, latentSize: [4, 12] })
  assert.equal(dit.config.latentSize, [4, 12])
  const x = { data: new Float32Array(4 * 4 * 12).fill(0.5), shape: [1, 4, 4, 12] }
  const out = await dit.denoise({ x, t: 10, y: 1 })
  assert.equal(out.shape, [1, 8, 4, 12])
  assert.ok(out.data.every(Number.isFinite))
  // At the trained size, nothing changes; the stored table is the computed one.
  await using stored = await DiT.load(file, { ...fp32, latentSize: 8 })
  const pt = fixture('diffusers_pipeline') // without a table
  await using computed = await DiT.load(pt, { ...fp32, latentSize: 16 })
  assert.equal(stored.config.latentSize, [8, 8])
  assert.equal(computed.config.latentSize, [16, 16])
  const [image] = await computed.sample(0, { steps: 1 })
  assert.is(image?.width, 32)
})

test('create: a fresh model predicts zero and has its size; the seed makes it', async () => {
  const size = { depth: 2, hidden: 48, heads: 4, latentSize: [8, 4], numClasses: 3 } as const
  await using dit = await DiT.create({ ...size, channels: 2 }, { ...fp32, seed: 7 })
  assert.is(dit.config.mlpHidden, 192)
  assert.is(dit.source.kind, 'fresh')
  assert.match(dit.source.description, /seed 7/)
  const x = { data: new Float32Array(64).fill(1), shape: [1, 2, 8, 4] }
  const out = await dit.denoise({ x, t: 10, y: 1 })
  assert.equal(out, { data: new Float32Array(128), shape: [1, 4, 8, 4] })
  // sample() with a pixel model of three channels makes RGB; two channels have no picture.
  await rejects(() => dit.sample(0), 'ERR_DIT_OPTION', /latents of 2 channels.*option vae/)
  await rejects(() => dit.decode(x), 'ERR_DIT_OPTION', /decode needs a VAE/)
  await using rgb = await DiT.create({ ...size, channels: 3 }, fp32)
  const [image] = await rgb.sample(0, { steps: 2, seed: 1 })
  assert.equal([image?.width, image?.height, image?.channels], [4, 8, 3])
})

test('create: presets, with a VAE', async () => {
  await using dit = await DiT.create(
    { depth: 1, hidden: 24, heads: 2, latentSize: 4 },
    { ...fp32, vae: pipeline, id2label: { 0: 'zero' }, schedule: { kind: 'cosine', steps: 100 } },
  )
  assert.equal(dit.schedule, { kind: 'cosine', steps: 100, betaStart: 1e-4, betaEnd: 0.02 })
  const [image] = await dit.sample('zero', { steps: 3 })
  assert.equal([image?.width, image?.height, image?.channels], [8, 8, 3])
  await using small = await DiT.create('DiT-S/8', fp32)
  assert.is(small.config.hidden, 384)
  assert.is(small.config.patchSize, 8)
})

test("load: 'demo' works offline", async () => {
  await using dit = await DiT.load('demo', { threads: 1 })
  const { config, classNames } = dit
  assert.equal([config.latentSize, config.channels, config.numClasses], [[32, 32], 1, 10])
  assert.is(Object.keys(classNames).length, 10)
  const [image] = await dit.sample(['Sneaker'], { steps: 2, seed: 1 })
  assert.equal([image?.label, image?.width, image?.height, image?.channels], [7, 32, 32, 1])
})

test('load: failures are DiTErrors', async () => {
  await rejects(() => DiT.load('/nowhere/model'), 'ERR_DIT_FILE', /no file or folder/)
  await rejects(() => DiT.load(fixture('bad_inputs/eval.pt')), 'ERR_DIT_FORMAT', /eval/)
  const file = fixture('dit_tiny_forward/a96h4/model.safetensors')
  await rejects(() => DiT.load(file, { latentSize: 7 }), 'ERR_DIT_OPTION', /multiples of.* 2,/)
})

test.run()
