// timeout: 180s
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import {
  DiT,
  type RawImage,
  type SampleOptions,
  type StreamEvent,
  type Tensor,
} from '../lib/index.js'
import { difference, Expected } from './helpers/expected.js'
import { fixture } from './helpers/files.js'

const fp32 = { precision: 'fp32', threads: 1 } as const
const tiny = fixture('dit_tiny_forward/a96h4/model.safetensors')
const fashion = fixture('fashion_dit/fashion.pt')

/** [steps, rows, C, H, W] as recorded, to [n, steps, C, H, W] of the first n rows. */
function stepNoise(recorded: Tensor, n: number): Tensor {
  const [steps, rows, ...rest] = recorded.shape as [number, number, ...number[]]
  const size = rest.reduce((product, length) => product * length, 1)
  const data = new Float32Array(n * steps * size)
  for (let i = 0; i < n; i++) {
    for (let k = 0; k < steps; k++) {
      const from = (k * rows + i) * size
      data.set(recorded.data.subarray(from, from + size), (i * steps + k) * size)
    }
  }
  return { data, shape: [n, steps, ...rest] }
}

const trajectories: [name: string, options: SampleOptions<'latent'>][] = [
  ['a96h4_ddim_cfg4_eta0', { sampler: 'ddim', guidance: 4 }],
  ['a96h4_ddim_cfg4_eta1', { sampler: 'ddim', guidance: 4, eta: 1 }],
  ['a96h4_ddpm_cfg4', { sampler: 'ddpm', guidance: 4 }],
  ['a96h4_ddpm_cfg4_clip', { sampler: 'ddpm', guidance: 4, clip: true }],
  ['a96h4_ddpm_nocfg', { sampler: 'ddpm', guidance: 1 }],
]

for (const [name, options] of trajectories) {
  test(`sample: ${name} with the recorded noise ends where the reference ends`, async () => {
    await using dit = await DiT.load(tiny, fp32)
    const expected = await Expected.read(`sampling_trajectory/${name}.safetensors`)
    const n = expected.get('final').shape[0] as number
    const latents = await dit.sample(expected.numbers('y').slice(0, n), {
      ...options,
      steps: 10,
      noise: expected.first('x_init', n),
      stepNoise: stepNoise(expected.get('noise'), n),
      output: 'latent',
    })
    expected.check('final', { data: latents.data, shape: latents.shape })
  })
}

test('sample: the trained model gives the images of the reference', async () => {
  await using dit = await DiT.load(fashion, fp32)
  const expected = await Expected.read('fashion_dit/expected.safetensors')
  const noise = expected.get('noise')
  const latents = await dit.sample(expected.numbers('labels'), {
    sampler: 'ddim',
    spacing: 'ddim50',
    guidance: 3,
    noise,
    output: 'latent',
  })
  const want = expected.get('ddim50_guidance3').data
  let worst = 0
  for (let i = 0; i < want.length; i++) {
    worst = Math.max(worst, Math.abs((latents.data[i] as number) - (want[i] as number)))
  }
  if (process.env.DIT_TEST_FIGURES) console.log(`fashion ddim50: max abs ${worst}`)
  assert.ok(worst < 1e-4, `max abs ${worst}`)
})

// ---- the public form of sampling: events, sizes, guidance ----

test('stream: progress after every step, previews, last the images', async () => {
  await using dit = await DiT.load(fashion, fp32)
  const progress: number[] = []
  const previews: [index: number, step: number, steps: number][] = []
  let last: StreamEvent | undefined
  for await (const event of dit.stream([1, 2, 3], { steps: 6, seed: 3, preview: 2 })) {
    assert.is(last?.type === 'images', false, 'something after the images')
    last = event
    if (event.type === 'progress') {
      progress.push(event.step)
      assert.is(event.steps, 18)
    }
    if (event.type === 'preview') {
      previews.push([event.index, event.step, event.steps])
      assert.equal([event.image.width, event.image.height, event.image.channels], [16, 16, 1])
      assert.equal([event.image.seed, event.image.label], [3 + event.index, 1 + event.index])
    }
  }
  assert.equal(progress, [3, 6, 9, 12, 15, 18])
  assert.equal(
    previews.sort((a, b) => a[0] - b[0] || a[1] - b[1]),
    [0, 1, 2].flatMap((index) => [2, 4].map((step) => [index, step, 6])),
  )
  assert.is(last?.type, 'images')
  if (last?.type !== 'images') return
  assert.equal(last.images, await dit.sample([1, 2, 3], { steps: 6, seed: 3 }))
  assert.ok(last.sampleSeconds > 0 && last.decodeSeconds > 0)

  const steps: number[] = []
  const latents: StreamEvent[] = []
  const options = {
    steps: 2,
    output: 'latent',
    onProgress: ({ step }: { step: number }) => steps.push(step),
  } as const
  for await (const event of dit.stream(4, options)) latents.push(event)
  assert.equal(steps, [1, 2])
  assert.equal(
    latents.map((event) => event.type),
    ['progress', 'progress', 'latents'],
  )
})

test('sample: a preview near the end looks like the end', async () => {
  await using dit = await DiT.load(fashion, fp32)
  const seen: RawImage[] = []
  const [image] = await dit.sample(1, {
    steps: 30,
    seed: 1,
    preview: 29,
    onProgress: (event) => event.type === 'preview' && seen.push(event.image),
  })
  assert.is(seen.length, 1)
  const { maxAbs } = difference(seen[0]?.data as Uint8Array, image?.data as Uint8Array)
  assert.ok(maxAbs < 40 && maxAbs > 0, `${maxAbs}`)
})

test('sample: guidance', async () => {
  await using dit = await DiT.load(tiny, fp32)
  const base = { steps: 4, seed: 1, output: 'latent' } as const
  const run = async (options: SampleOptions<'latent'>) =>
    (await dit.sample(3, { ...base, ...options, output: 'latent' })).data
  // The default is 4, on the first three of four channels.
  const standard = await run({})
  assert.equal(await run({ guidance: 4, guidanceChannels: 3 }), standard)
  assert.equal(await run({ guidanceInterval: [0, 1] }), standard)
  const plain = await run({ guidance: 1 })
  for (const options of [
    { guidanceChannels: 'all' },
    { guidance: 3 },
    { guidance: 1 },
    { guidanceInterval: [0.3, 0.6] },
  ] as const) {
    assert.not.equal(await run(options), standard, JSON.stringify(options))
  }
  // No timestep of the plan lies between: every step has one evaluation.
  assert.equal(await run({ guidanceInterval: [0.9995, 1] }), plain)
  // Guidance 0 is the null class.
  const nothing = await dit.sample(10, { ...base, guidance: 1 })
  assert.equal(await run({ guidance: 0, guidanceChannels: 'all' }), nothing.data)
})

test('sample: seeds decide the start; noise replaces it', async () => {
  await using dit = await DiT.load(fashion, fp32)
  const base = { sampler: 'ddim', steps: 2, output: 'latent' } as const
  // With the noise given, a deterministic sampler has no use for the seed.
  const noise = {
    data: Float32Array.from({ length: 256 }, (_, i) => Math.sin(i * i)),
    shape: [1, 1, 16, 16],
  }
  const one = await dit.sample(1, { ...base, noise, seed: 1 })
  const two = await dit.sample(1, { ...base, noise, seed: 2 })
  assert.equal(two.data, one.data)
  assert.equal([one.seeds, two.seeds], [[1], [2]])
  const drawn = await dit.sample(1, { ...base, noise, seed: 2, eta: 1 })
  assert.not.equal(drawn.data, one.data)

  // One step goes to the predicted image itself, which clip keeps in its range.
  const many = Array.from({ length: 20 }, () => 0)
  const { data } = await dit.sample(many, {
    sampler: 'ddim',
    steps: 1,
    seed: 1,
    output: 'latent',
    clip: true,
  })
  assert.ok(data.every((value) => Math.abs(value) <= 1))
})

test('sample: a call of many images is cut into jobs, and comes back in order', async () => {
  const size = { depth: 1, hidden: 24, heads: 2, patchSize: 32, latentSize: 512, channels: 3 }
  await using dit = await DiT.create({ ...size, numClasses: 30 }, { ...fp32, seed: 1 })
  const labels = Array.from({ length: 14 }, (_, i) => i)
  let steps = 0
  const images = await dit.sample(labels, {
    steps: 1,
    seed: 100,
    onProgress: (event) => {
      assert.is(event.steps, 14)
      steps = event.step
    },
  })
  assert.is(steps, 14)
  assert.equal(
    images.map(({ seed, label }) => [seed, label]),
    labels.map((i) => [100 + i, i]),
  )
  const [alone] = await dit.sample(9, { steps: 1, seed: 109 })
  assert.equal(alone, images[9])
  assert.is(images[9]?.data.buffer.byteLength, 512 * 512 * 3, 'each image has memory of its own')
})

test.run()
