// The event loop goes on while a model works. How late it is depends on what else the machine does,
// so the delays are shown, not judged: on an otherwise idle machine the 99th percentile stays within
// 10 ms of an idle loop's.
// timeout: 240s
import { monitorEventLoopDelay } from 'node:perf_hooks'
import { setTimeout as sleep } from 'node:timers/promises'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { DiT, type RawImage } from '../lib/index.js'
import { fixture } from './helpers/files.js'

const kTurns = 50 // of the loop that any of these works, a second or more, must leave room for

interface Delay {
  /** Milliseconds. */
  p99: number
  max: number
  /** How often a timer of 1 ms had its turn. */
  turns: number
}

/** The event loop's delay while `work` is under way. */
async function delayDuring(work: () => Promise<unknown>): Promise<Delay> {
  const histogram = monitorEventLoopDelay({ resolution: 1 })
  let turns = 0
  const timer = setInterval(() => turns++, 1)
  histogram.enable()
  await work()
  histogram.disable()
  clearInterval(timer)
  return { p99: histogram.percentile(99) / 1e6, max: histogram.max / 1e6, turns }
}

async function compare(what: string, work: () => Promise<unknown>): Promise<void> {
  const idle = await delayDuring(() => sleep(1500))
  const busy = await delayDuring(work)
  const show = ({ p99, max }: Delay) => `p99 ${p99.toFixed(2)} ms, max ${max.toFixed(2)} ms`
  console.log(`${what}: idle ${show(idle)}; busy ${show(busy)}`)
  assert.ok(busy.turns >= kTurns, `${what}: the loop had ${busy.turns} turns`)
}

test('while a batch samples', async () => {
  await using dit = await DiT.create('DiT-S/2', { seed: 1 })
  await dit.sample([1, 2, 3, 4], { steps: 1, output: 'latent' })
  await compare('4 images of DiT-S/2', () => {
    return dit.sample([1, 2, 3, 4], { steps: 10, guidance: 4, output: 'latent' })
  })
})

test('while a model is loaded', async () => {
  await compare('DiT-B/2', async () => {
    const dit = await DiT.create('DiT-B/2', { seed: 1 })
    await dit.close()
  })
})

test('with many and large images in and out', async () => {
  const size = { depth: 1, hidden: 48, heads: 2, patchSize: 32, latentSize: 512, channels: 3 }
  await using pixels = await DiT.create({ ...size, numClasses: 10 })
  const labels = Array.from({ length: 48 }, (_, i) => i % 10)
  let images: RawImage[] = []
  await compare('48 images of 512×512 pixels', async () => {
    images = await pixels.sample(labels, { steps: 2, preview: 1, onProgress: () => {} })
  })
  assert.is(images.length, 48)

  await using dit = await DiT.load(fixture('diffusers_pipeline'))
  const some = images.slice(0, 12)
  await compare('12 of them through the VAE', async () => dit.decode(await dit.encode(some)))
})

test.run()
