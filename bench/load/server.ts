// The process that is under load: dit-native/server on loopback, told by messages what to measure.
//
//   { model, fifo, … }  starts it; it answers with { port }
//   'watch'             begins to measure the event loop's delay
//   'tell'              answers with what there was since: { p99, stats, memory }

import { type IntervalHistogram, monitorEventLoopDelay } from 'node:perf_hooks'
import Fastify from 'fastify'
import { DiT } from '../../lib/index.js'
import { ditServer } from '../../lib/server/index.js'

export interface ServerOptions {
  model: string
  /** One request at a time, in the order in which they came: how servers of images usually work. */
  fifo: boolean
  maxQueue?: number
  /** 0: as many as there are cores. */
  threads: number
}

export interface Told {
  /** Of the event loop's delay, milliseconds. */
  p99: number
  stats: ReturnType<DiT['stats']>
  /** Bytes that are resident. */
  memory: number
}

/** Pixels instead of latents, so that there is a picture without a VAE; the same 256 tokens. */
const small = { depth: 12, hidden: 384, heads: 6, patchSize: 2, latentSize: 32, channels: 3 }

function open({ model, maxQueue, threads }: ServerOptions): Promise<DiT> {
  const options = { device: 'cpu', threads, ...(maxQueue !== undefined && { maxQueue }) } as const
  return model === 'DiT-S/2'
    ? DiT.create({ ...small, numClasses: 1000 }, { ...options, seed: 1 })
    : DiT.load(model, options)
}

/** Lets one call of `dit.stream` at a time go on. */
function queueUp(dit: DiT): void {
  const stream = dit.stream.bind(dit)
  let last: Promise<unknown> = Promise.resolve()
  dit.stream = async function* (labels, options) {
    const before = last
    let end = () => {}
    last = new Promise<void>((resolve) => {
      end = resolve
    })
    try {
      await before
      options?.signal?.throwIfAborted()
      yield* stream(labels, options)
    } finally {
      before.then(end)
    }
  }
}

async function start(options: ServerOptions): Promise<number> {
  const dit = await open(options)
  if (options.fifo) queueUp(dit)
  const app = Fastify()
  await app.register(ditServer, { model: dit, cacheBytes: 0, limits: { inFlight: 4096 } })
  const address = await app.listen({ host: '127.0.0.1', port: 0 })
  let delay: IntervalHistogram
  process.on('message', (message) => {
    if (message === 'watch') {
      delay = monitorEventLoopDelay({ resolution: 1 })
      delay.enable()
    }
    if (message === 'tell') {
      delay.disable()
      const p99 = delay.percentile(99) / 1e6
      process.send?.({ p99, stats: dit.stats(), memory: process.memoryUsage.rss() } satisfies Told)
    }
  })
  return Number(new URL(address).port)
}

process.once('message', (message) => {
  start(message as ServerOptions).then(
    (port) => process.send?.({ port }),
    (error) => {
      console.error(error)
      process.exit(1)
    },
  )
})
