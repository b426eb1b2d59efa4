// From what is asked for to images: those that are remembered, the others from the model.

import { setImmediate } from 'node:timers/promises'
import type { Timings } from '../events.js'
import type { RawImage } from '../image.js'
import type { SampleOptions, Seed } from '../options.js'
import { seedsFrom } from '../sampling.js'
import type { ImageCache } from './cache.js'
import { dataUrl, type EncodedImage, encodeImage, type ImageFormat } from './encode.js'
import type { Job } from './jobs.js'
import type { Served } from './models.js'

/** What an image depends on, beside label and seed. */
type Look = Pick<SampleOptions, 'sampler' | 'steps' | 'guidance' | 'eta' | 'guidanceInterval'>

/** A request, checked. @internal */
export interface Order {
  readonly served: Served
  readonly labels: readonly number[]
  /** One per label; undefined: random ones, whose images nobody can ask for again. */
  readonly seeds: readonly Seed[] | undefined
  readonly look: Look
  readonly how: Pick<SampleOptions, 'priority' | 'deadline' | 'caller'>
  readonly preview: number | undefined
  readonly format: ImageFormat
}

/** An image of a request. @internal */
export interface MadeImage extends EncodedImage {
  readonly index: number
  readonly label: number
  readonly className: string | undefined
  readonly seed: Seed
}

/** @internal */
export interface Made {
  readonly images: MadeImage[]
  /** Those that were remembered. */
  readonly cached: number
  readonly timings: Timings & { totalSeconds: number }
}

/**
 * Makes what a job is to make, and tells of it. Rejects with the library's errors, or with the reason of
 * the job's signal. `onAdmitted` is called when the model has not refused the work.
 *
 * @internal
 */
export async function make(
  order: Order,
  job: Job,
  cache: ImageCache,
  onAdmitted: () => void = () => {},
): Promise<Made> {
  const begin = performance.now()
  const { served, labels, format } = order
  const keys = await keysOf(order, cache)
  const encoded = keys.map((key) => (key === undefined ? undefined : cache.get(key)))
  const missing = labels.flatMap((_, i) => (encoded[i] === undefined ? [i] : []))
  const seeds = (order.seeds ?? seedsFrom(undefined, labels.length)).map(shortSeed)
  let timings: Timings = { queueSeconds: 0, sampleSeconds: 0, decodeSeconds: 0 }
  if (missing.length > 0) {
    const { images, ...times } = await sample(order, job, missing, seeds, onAdmitted)
    timings = times
    await Promise.all(
      missing.map(async (index, i) => {
        const image = await encodeImage(images[i] as RawImage, format)
        encoded[index] = image
        const key = keys[index]
        if (key !== undefined) cache.set(key, image)
      }),
    )
  }
  return {
    images: encoded.map((image, index) => ({
      ...(image as EncodedImage),
      index,
      label: labels[index] as number,
      className: served.classes.nameOf(labels[index] as number),
      seed: seeds[index] as Seed,
    })),
    cached: labels.length - missing.length,
    timings: { ...timings, totalSeconds: (performance.now() - begin) / 1000 },
  }
}

async function sample(
  { served, labels, look, how, preview, format }: Order,
  job: Job,
  missing: readonly number[],
  seeds: readonly Seed[],
  onAdmitted: () => void,
) {
  const events = served.dit.stream(
    missing.map((index) => labels[index] as number),
    {
      ...look,
      ...how,
      seeds: missing.map((index) => seeds[index] as Seed),
      ...(preview !== undefined && { preview }),
      signal: job.signal,
    },
  )
  try {
    const first = events.next()
    await Promise.race([first, setImmediate()]) // a refusal comes at once
    onAdmitted()
    for (let next = await first; !next.done; next = await events.next()) {
      const event = next.value
      if (event.type === 'images') return event
      if (event.type === 'progress') {
        job.emit({ event: 'progress', data: { step: event.step, steps: event.steps } })
      }
      if (event.type === 'preview' && job.listeners > 0) {
        const image = dataUrl(await encodeImage(event.image, previewFormat(event.image, format)))
        const index = missing[event.index] as number
        job.emit({ event: 'preview', data: { index, step: event.step, steps: event.steps, image } })
      }
    }
    throw new Error('the stream ended without images')
  } finally {
    await events.return()
  }
}

/** Small ones stay exact: they are shown enlarged, and PNGs of them are small. */
function previewFormat({ width, height }: RawImage, format: ImageFormat): ImageFormat {
  return width * height <= 128 * 128 ? 'png' : format === 'png' ? 'webp' : format
}

/** What the images are remembered by; undefined where that makes no sense. */
async function keysOf(order: Order, cache: ImageCache): Promise<(string | undefined)[]> {
  const { served, labels, seeds, look, format } = order
  if (seeds === undefined || !cache.enabled) return labels.map(() => undefined)
  const weights = await served.identity()
  if (weights === undefined) return labels.map(() => undefined)
  const rest = JSON.stringify([format, look.sampler, look.steps, look.guidance, look.eta ?? 0])
  const interval = JSON.stringify(look.guidanceInterval ?? [0, 1])
  return labels.map((label, i) => [weights, label, seeds[i], rest, interval].join(' '))
}

function shortSeed(seed: Seed): Seed {
  return seed <= BigInt(Number.MAX_SAFE_INTEGER) ? Number(seed) : seed
}
