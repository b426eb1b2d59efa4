// Many calls on one model: who goes first, who is refused, who is given up, and that none of it
// changes a bit of an image.
// timeout: 240s
import { setTimeout as sleep } from 'node:timers/promises'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { DiT, DiTError, type Precision, type SampleOptions } from '../lib/index.js'
import { sameBits } from './helpers/expected.js'
import { fixture, rejects } from './helpers/files.js'
import { until } from './helpers/waiting.js'

const fashion = fixture('fashion_dit/fashion.pt')
const pipeline = fixture('diffusers_pipeline')
const options = { precision: 'fp32', threads: 1 } as const

/** The error that a call rejects with; undefined when it does not. */
async function refusal(call: Promise<unknown>): Promise<DiTError | undefined> {
  try {
    await call
  } catch (error) {
    if (error instanceof DiTError) return error
    throw error
  }
  return undefined
}

/** A small source of random numbers, the same in every run. */
function randomNumbers(seed: number) {
  let state = seed
  return (below: number) => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0
    return Math.floor((state / 2 ** 32) * below)
  }
}

const watched: SampleOptions[] = [
  { seed: 11, steps: 100 },
  { seed: 11, steps: 100, sampler: 'ddim', eta: 0.7, clip: true },
  { seed: 11, steps: 100, sampler: 'ddpm', guidance: 2.5, guidanceInterval: [0.2, 0.8] },
]

async function precisions(): Promise<Precision[]> {
  const devices = await DiT.devices()
  return devices.flatMap((device) => (device.available ? device.precisions : []))
}

for (const precision of await precisions()) {
  for (const [name, source] of [
    ['pixels', fashion],
    ['latents and VAE', pipeline],
  ] as const) {
    test(`${name}, ${precision}: set aside at any round and resumed, an image keeps its bits`, async () => {
      await using dit = await DiT.load(source, { precision, threads: 2, maxBatch: 2 })
      const random = randomNumbers(7)
      const { channels, latentSize } = dit.config
      const size = channels * latentSize[0] * latentSize[1]
      const stepNoise = {
        data: Float32Array.from({ length: 40 * size }, () => random(2000) / 1000 - 1),
        shape: [1, 40, channels, ...latentSize],
      }
      const ownNoise: SampleOptions = { seed: 1, steps: 40, sampler: 'ddim', eta: 1, stepNoise }
      let suspended = 0
      const onProgress = () => {
        suspended += dit.stats().suspended
      }
      for (const given of [...watched, ownNoise]) {
        const [alone] = await dit.sample(3, given)
        const others: Promise<unknown>[] = []
        let steps = 0
        const interrupt = () => {
          if (++steps % 4 !== 0) return
          const other = { steps: 1 + random(6), seed: 5, guidance: 1 + random(2), onProgress }
          others.push(dit.sample([1, 2, 3].slice(random(3)), other))
        }
        const interrupted = dit.sample(3, { ...given, priority: -1, onProgress: interrupt })
        const [image] = await interrupted
        await Promise.all(others)
        assert.ok(sameBits(image?.data as Uint8Array, alone?.data as Uint8Array))
      }
      assert.ok(suspended > 0, 'it never was')
      assert.is(dit.stats().suspended, 0)
    })
  }
}

test('priority: a higher one takes the lane at the next round', async () => {
  await using dit = await DiT.load(fashion, { ...options, maxBatch: 1 })
  const order: string[] = []
  let steps = 0
  const call = (name: string, given: SampleOptions) =>
    dit.sample(1, given).then(() => order.push(name))
  const onProgress = () => steps++
  const calls = [call('low', { steps: 600, priority: -5, onProgress })]
  await until('four steps', () => steps > 3)
  calls.push(
    call('first', { steps: 60 }),
    call('second', { steps: 5 }),
    call('high', { steps: 400, priority: 1 }),
  )
  await until('an image set aside', () => dit.stats().suspended === 1)
  assert.is(dit.stats().lanes, 1)
  assert.is(dit.stats().waiting, 3)
  await Promise.all(calls)
  assert.is(order[0], 'high')
  assert.is(order.at(-1), 'low')
  const { lanes, waiting, suspended, images, rounds } = dit.stats()
  assert.equal(
    { lanes, waiting, suspended, images },
    { lanes: 0, waiting: 0, suspended: 0, images: 4 },
  )
  assert.is(rounds, 600 + 60 + 5 + 400, 'no step was done twice, none for nobody')
})

test('callers share the lanes, however many calls each makes', async () => {
  await using dit = await DiT.load(fashion, { ...options, maxBatch: 2 })
  let steps = 0
  const greedy = Array.from({ length: 6 }, (_, i) =>
    dit.sample([1, 2], { steps: 60, seed: i, caller: 'greedy', onProgress: () => steps++ }),
  )
  await until('four steps', () => steps > 3)
  let theirs = 0
  let before = 0
  let mine = 0
  const onProgress = () => {
    if (mine++ === 0) before = steps
    theirs = steps - before
  }
  await dit.sample(3, { steps: 50, caller: 'modest', onProgress })
  assert.is(mine, 50)
  // One step each in every round; an event of theirs may come late by a turn of the event loop.
  assert.ok(theirs <= 50 + 4, `${theirs} rounds of theirs beside 50 of mine`)
  await Promise.all(greedy)
})

test('maxQueue: a full queue refuses, and says when to come back', async () => {
  await using dit = await DiT.load(fashion, { ...options, maxBatch: 2, maxQueue: 3 })
  await dit.sample(1, { steps: 3 })
  const controller = new AbortController()
  const long = { steps: 900, signal: controller.signal }
  const calls = [dit.sample([1, 2], long), dit.sample([3], long), dit.sample([4, 5], long)]
  const settled = Promise.allSettled(calls)
  const refused = await refusal(dit.sample(1))
  assert.is(refused?.code, 'ERR_DIT_BUSY')
  assert.match(refused?.message as string, /3 images wait already, and maxQueue is 3/)
  assert.ok((refused?.retryAfter as number) > 0)
  // Neither has anything begun for it, nor is an important call refused, nor one after a cancellation.
  assert.is(dit.stats().refused.busy, 1)
  assert.is((await dit.sample(1, { steps: 2, priority: 1 })).length, 1)
  controller.abort()
  for (const { status } of await settled) assert.is(status, 'rejected')
  assert.is(dit.stats().waiting, 0)
  assert.is((await dit.sample(1, { steps: 2 })).length, 1)
  assert.is(dit.stats().cancelled, 3)

  await using none = await DiT.load(fashion, { ...options, maxBatch: 2, maxQueue: 0 })
  const both = none.sample([1, 2], { steps: 5 })
  assert.is((await refusal(none.sample(1)))?.code, 'ERR_DIT_BUSY')
  await both
})

test('maxQueue counts a call whose images come in many jobs as a whole', async () => {
  const size = { depth: 1, hidden: 48, heads: 2, patchSize: 64, latentSize: 512, channels: 3 }
  await using dit = await DiT.create({ ...size, numClasses: 10 }, { ...options, maxQueue: 90 })
  const labels = Array.from({ length: 100 }, (_, i) => i % 10)
  const controller = new AbortController()
  const call = refusal(dit.sample(labels, { steps: 3, signal: controller.signal, caller: 'one' }))
  call.catch(() => {})
  const { waiting, lanes } = dit.stats()
  assert.is(waiting + lanes, 100)
  assert.is((await refusal(dit.sample(1, { steps: 1 })))?.code, 'ERR_DIT_BUSY')
  controller.abort(new DiTError('ERR_DIT_OPTION', 'enough'))
  assert.is((await call)?.message, 'enough')
  assert.is(dit.stats().waiting, 0)
  assert.is((await dit.sample(1, { steps: 1 })).length, 1)
})

test('deadline: refused at once, given up on the way, met', async () => {
  await using dit = await DiT.load(fashion, { ...options, maxBatch: 1 })
  await dit.sample(1, { steps: 20 })
  const hopeless = await refusal(dit.sample(1, { steps: 900, deadline: 0.01 }))
  assert.is(hopeless?.code, 'ERR_DIT_DEADLINE')
  assert.match(hopeless?.message as string, /alone/)
  assert.is(hopeless?.retryAfter, undefined, 'waiting does not help')

  // Behind others, for whom it would have to wait.
  const controller = new AbortController()
  const others = refusal(
    dit.sample(1, { steps: 900, priority: 1, signal: controller.signal }),
  ).catch(() => {})
  const seconds = dit.stats().rowSeconds
  const late = await refusal(dit.sample(1, { steps: 2, deadline: 1000 * seconds * 100 }))
  assert.is(late?.code, 'ERR_DIT_DEADLINE')
  assert.ok((late?.retryAfter as number) > 0)
  const { rounds } = dit.stats()
  assert.is((await dit.sample(1, { steps: 2, priority: 2, deadline: 60_000 })).length, 1)
  assert.ok(dit.stats().rounds >= rounds)
  controller.abort()
  await others

  // Let in while nothing is measured, and given up as soon as something is.
  await using fresh = await DiT.load(fashion, { ...options, maxBatch: 1 })
  let steps = 0
  const onProgress = () => steps++
  await rejects(
    () => fresh.sample(1, { steps: 900, deadline: 5, onProgress }),
    'ERR_DIT_DEADLINE',
    /cannot be met any more/,
  )
  assert.ok(steps < 900)
  assert.is(fresh.stats().refused.deadline, 1)
  assert.is(fresh.stats().lanes, 0)
  await rejects(() => fresh.sample(1, { deadline: 0 }), 'ERR_DIT_OPTION', /deadline/)
  await rejects(() => fresh.sample(1, { priority: 0.5 }), 'ERR_DIT_OPTION', /priority/)
  await rejects(() => fresh.sample(1, { caller: '' }), 'ERR_DIT_OPTION', /caller/)
})

test('1000 requests, half of them cancelled at random moments', async () => {
  await using dit = await DiT.load(fashion, { ...options, maxBatch: 4 })
  const random = randomNumbers(3)
  const kinds: SampleOptions[] = [
    { steps: 4, seed: 1 },
    { steps: 3, seed: 2, sampler: 'ddim', eta: 0.5 },
    { steps: 6, seed: 3, sampler: 'ddpm', guidance: 1 },
    { steps: 40, seed: 4 },
  ]
  const alone = await Promise.all(kinds.map((given) => dit.sample(2, given)))
  const before = dit.stats()
  const reason = new Error('left')
  let correct = 0
  let cancelled = 0
  let memory = 0

  const one = async (i: number) => {
    const kind = random(40) === 0 ? 3 : random(3)
    const controller = new AbortController()
    const priority = random(3) - 1
    const call = dit.sample(2, { ...kinds[kind], priority, signal: controller.signal })
    if (i % 2) {
      // Before it begins, while it waits, while it is made, or when it is done.
      sleep(random(60)).then(() => controller.abort(reason))
    }
    try {
      const [image] = await call
      assert.ok(sameBits(image?.data as Uint8Array, alone[kind]?.[0]?.data as Uint8Array))
      correct++
    } catch (error) {
      if (error !== reason) throw error
      cancelled++
    }
  }
  for (let i = 0; i < 1000; i += 25) {
    await Promise.all(Array.from({ length: 25 }, (_, k) => one(i + k)))
    if (i === 250) memory = process.memoryUsage().rss
  }
  assert.is(correct + cancelled, 1000)
  assert.ok(correct >= 500 && cancelled > 50, `${correct} made, ${cancelled} cancelled`)
  const growth = process.memoryUsage().rss - memory
  assert.ok(growth < 64 << 20, `${growth >> 20} MiB more after 1000 requests than after 250`)
  // The last cancelled image leaves its lane with the round that was under way.
  await dit.sample(2, { steps: 1 })
  const { lanes, waiting, suspended, images, cancelled: counted } = dit.stats()
  assert.equal({ lanes, waiting, suspended }, { lanes: 0, waiting: 0, suspended: 0 })
  assert.ok(images - before.images >= correct + 1)
  // Some were finished when they were cancelled, but had not been told so.
  assert.ok(counted <= cancelled && counted + images - before.images >= 1000, `${counted} counted`)
})

test('stats of a closed model', async () => {
  const dit = await DiT.load(fashion, options)
  const { maxBatch, lanes, waiting, images, imagesPerSecond, refused } = dit.stats()
  assert.equal([maxBatch, lanes, waiting, images, imagesPerSecond], [4, 0, 0, 0, undefined])
  assert.equal(refused, { busy: 0, deadline: 0 })
  await dit.close()
  await rejects(async () => dit.stats(), 'ERR_DIT_CLOSED', /closed/)
})

test.run()
