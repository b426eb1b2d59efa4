// What a call shows on its way: linear and decoded previews, and consumers who are slow.
// timeout: 120s
import { setTimeout as sleep } from 'node:timers/promises'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { Channel } from '../lib/channel.js'
import {
  DiT,
  type PreviewEvent,
  type ProgressEvent,
  type SampleOptions,
  type StreamEvent,
} from '../lib/index.js'
import { runModule } from './helpers/child.js'
import { fixture } from './helpers/files.js'

const fp32 = { precision: 'fp32', threads: 1 } as const
const pipeline = fixture('diffusers_pipeline')
const fashion = fixture('fashion_dit/fashion.pt')

/** Far more work than a test lasts. */
const endless = new Array(50).fill(1)

async function previewsOf(dit: DiT, labels: number[], options: SampleOptions) {
  const previews: PreviewEvent[] = []
  const images = await dit.sample(labels, {
    ...options,
    onProgress: (event) => event.type === 'preview' && previews.push(event),
  })
  return { images, previews }
}

test('preview: linear ones have the size of the latent, decoded ones that of the image', async () => {
  await using dit = await DiT.load(pipeline, fp32)
  const base = { steps: 6, seed: 3 }
  const plain = await dit.sample([1, 2], base)
  const linear = await previewsOf(dit, [1, 2], { ...base, preview: 2 })
  const decoded = await previewsOf(dit, [1, 2], { ...base, preview: { every: 2, kind: 'decode' } })
  assert.equal(linear.images, plain, 'previews change no bit of an image')
  assert.equal(decoded.images, plain)
  for (const [{ previews }, size] of [
    [linear, 8],
    [decoded, 16],
  ] as const) {
    assert.equal(
      previews.map(({ index, step, steps }) => [index, step, steps]).sort(),
      [0, 1].flatMap((index) => [2, 4].map((step) => [index, step, 6])),
    )
    for (const { image, index } of previews) {
      assert.equal([image.width, image.height, image.channels], [size, size, 3])
      assert.equal([image.seed, image.label], [3 + index, 1 + index])
    }
  }
  const same = await previewsOf(dit, [1, 2], { ...base, preview: { every: 2, kind: 'linear' } })
  assert.equal(same.previews, linear.previews)
  // The approximation belongs to the weights: a second load of them has the same.
  await using second = await DiT.load(pipeline, fp32)
  assert.equal(
    (await previewsOf(second, [1, 2], { ...base, preview: 2 })).previews,
    linear.previews,
  )
  // Latents have previews, too; their images are not asked for.
  const seen: string[] = []
  await dit.sample(1, {
    ...base,
    output: 'latent',
    preview: 4,
    onProgress: ({ type }) => seen.push(type),
  })
  assert.is(seen.filter((type) => type === 'preview').length, 1)
})

test('preview: without a VAE both kinds are the pixels', async () => {
  await using dit = await DiT.load(fashion, fp32)
  const base = { steps: 4, seed: 1 }
  const linear = await previewsOf(dit, [1], { ...base, preview: 1 })
  const decoded = await previewsOf(dit, [1], { ...base, preview: { every: 1, kind: 'decode' } })
  assert.is(linear.previews.length, 3)
  assert.equal(decoded, linear)
})

test('preview: a call that is cancelled during the first one costs the next nothing', async () => {
  await using dit = await DiT.load(pipeline, fp32)
  for (let trial = 0; trial < 5; trial++) {
    const controller = new AbortController()
    const call = dit.sample(endless, {
      steps: 900,
      preview: 1,
      signal: controller.signal,
      onProgress: () => controller.abort('enough'),
    })
    setImmediate(() => controller.abort('enough'))
    await call.then(
      () => assert.unreachable(),
      (reason) => assert.is(reason, 'enough'),
    )
  }
  const options = { steps: 6, seed: 3, preview: 2 }
  const after = await previewsOf(dit, [1, 2], options)
  await using fresh = await DiT.load(pipeline, fp32)
  assert.equal(after, await previewsOf(fresh, [1, 2], options))
})

test('channel: news of one thing take the place of what still waits', async () => {
  const channel = new Channel<string>()
  channel.push('a1', 'a')
  channel.push('b1', 'b')
  channel.push('a2', 'a')
  channel.push('x')
  const seen: string[] = []
  for await (const value of channel) {
    seen.push(value)
    if (value === 'a2') channel.push('a3', 'a')
    if (value === 'b1') channel.push('b2', 'b')
    if (value === 'b2') {
      channel.push('a4', 'a')
      channel.push('last')
      channel.end()
    }
  }
  assert.equal(seen, ['a2', 'b1', 'x', 'a3', 'b2', 'a4', 'last'])
  const failing = new Channel<number>()
  failing.push(1)
  failing.fail('why')
  const iterator = failing[Symbol.asyncIterator]()
  assert.equal(await iterator.next(), { value: 1, done: false })
  await iterator.next().then(
    () => assert.unreachable(),
    (reason) => assert.is(reason, 'why'),
  )
})

test('stream: a slow consumer finds the latest, holds nobody up, and gets the images', async () => {
  await using dit = await DiT.load(pipeline, fp32)
  const options = { steps: 60, seed: 9, preview: 1 }
  const want = await dit.sample([0, 1, 2, 3, 4, 0], options)
  const events: StreamEvent[] = []
  for await (const event of dit.stream([0, 1, 2, 3, 4, 0], options)) {
    events.push(event)
    // Others are served, twice as many steps as this call has, while this consumer sleeps.
    if (events.length === 1) await dit.sample([1, 2, 3, 4], { steps: 120 })
    await sleep(20)
  }
  const previews = events.filter((event) => event.type === 'preview')
  // One that was read at once, one of each kind that waited then, and what came while they were read.
  assert.ok(events.length < 60, `${events.length} events`)
  assert.equal(new Set(previews.map(({ index }) => index)).size, 6, 'every image has a preview')
  for (const index of [0, 1, 2, 3, 4, 5]) {
    const steps = previews.filter((event) => event.index === index).map(({ step }) => step)
    assert.equal(
      steps,
      [...steps].sort((a, b) => a - b),
      'in order',
    )
    assert.is(steps.at(-1), 59, 'the latest')
  }
  const progress = events.filter((event): event is ProgressEvent => event.type === 'progress')
  assert.is(progress.at(-1)?.step, 360)
  const last = events.at(-1)
  assert.is(last?.type, 'images')
  if (last?.type === 'images') assert.equal(last.images, want)
})

test('stream: an error reaches a slow consumer; leaving the loop frees the lanes', async () => {
  await using dit = await DiT.load(fashion, fp32)
  const long = { steps: 900, output: 'latent' } as const
  const controller = new AbortController()
  const seen: StreamEvent[] = []
  try {
    for await (const event of dit.stream(endless, { ...long, signal: controller.signal })) {
      seen.push(event)
      controller.abort('over')
      await sleep(50)
    }
    assert.unreachable()
  } catch (reason) {
    assert.is(reason, 'over')
  }
  assert.ok(seen.length <= 2, `${seen.length} events after the abort`)
  for await (const event of dit.stream(endless, long)) {
    await sleep(50)
    assert.is(event.type, 'progress')
    break
  }
  const [image] = await dit.sample([5], { steps: 2 })
  assert.is(image?.label, 5)
})

test('stream: what onProgress throws ends it, and the loop throws it', async () => {
  await using dit = await DiT.load(fashion, fp32)
  const thrown = new RangeError('from onProgress')
  const onProgress = () => {
    throw thrown
  }
  const seen: StreamEvent[] = []
  try {
    for await (const event of dit.stream(endless, { steps: 900, onProgress })) seen.push(event)
    assert.unreachable()
  } catch (error) {
    assert.is(error, thrown)
  }
  assert.equal(seen, [])
})

// In a process of its own, whose memory is this call's alone. While its loop stands still for
// some 120 rounds, 1.4 GB of previews are made.
test('a blocked event loop holds nobody up, and what it misses does not pile up', async () => {
  const { status, stdout, stderr } = await runModule(`
    import { readFileSync } from 'node:fs'
    import { DiT } from './lib/index.ts'
    const size = { depth: 1, hidden: 24, heads: 2, patchSize: 64, latentSize: 512, channels: 3 }
    const dit = await DiT.create({ ...size, numClasses: 4 }, { threads: 1, seed: 1 })
    await dit.sample([0, 1, 2, 3], { steps: 2, guidance: 1, preview: 1, onProgress: () => {} })
    const pause = (ms) => Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, ms)
    // User time of the process, in ticks: its main thread sleeps, so that is the model's.
    const busy = () => Number(readFileSync('/proc/self/stat', 'utf8').split(' ')[13])
    let previews = 0
    let grown = 0
    let blocked = 0
    await dit.sample([0, 1, 2, 3], {
      steps: 120, guidance: 1, preview: 1,
      onProgress(event) {
        if (event.type === 'preview') previews++
        if (blocked++ > 0) return
        const before = process.memoryUsage.rss()
        for (let last = -1; last !== busy(); pause(1000)) {
          last = busy()
          grown = Math.max(grown, process.memoryUsage.rss() - before)
        }
      },
    })
    console.log(JSON.stringify({ previews, grown }))
    await dit.close()
  `)
  assert.is(status, 0, stderr)
  const { previews, grown } = JSON.parse(stdout)
  assert.ok(previews >= 4, 'every image has a preview')
  assert.ok(grown < 100e6, `${grown} bytes more`)
})

test.run()
