// The images of a set of samples, part by part.

import { setTimeout as sleep } from 'node:timers/promises'
import { following } from '../aborts.js'
import type { DiT } from '../dit.js'
import { DiTError } from '../errors.js'
import { elementCount } from '../formats/tensor.js'
import { labelOf, type SampleSetFacts, seedOf } from './facts.js'
import type { PartRange, Parts } from './parts.js'

interface MakeOptions {
  /** What they are made on. */
  machine: string
  /** An image is finished. */
  onImage: () => void
  signal: AbortSignal | undefined
}

/** Makes the parts that are missing. When it ends, also by an error, nothing is under way any more. */
export async function makeParts(
  dit: DiT,
  parts: Parts,
  missing: readonly PartRange[],
  { machine, onImage, signal }: MakeOptions,
): Promise<void> {
  const turns = turnsOf(missing, parts.facts)
  // Those in the model's lanes, and as many that wait, so that no lane is idle.
  const imagesAtOnce = 2 * dit.stats().maxBatch
  const { controller, unfollow } = following(signal)
  const work = async () => {
    // One iterator for all of them: each takes the next image that nobody has taken.
    for (const { k, part } of turns) {
      part.add(k, await makeImage(dit, parts.facts, k, controller.signal))
      onImage()
      if (part.isFull) await parts.write(part.range, machine, part.images)
    }
  }
  const ends = await Promise.allSettled(
    Array.from({ length: imagesAtOnce }, () =>
      work().catch((error) => {
        controller.abort(error)
        throw error
      }),
    ),
  )
  unfollow()
  if (ends.some(({ status }) => status === 'rejected')) throw controller.signal.reason
}

function* turnsOf(ranges: readonly PartRange[], { shape }: SampleSetFacts) {
  for (const range of ranges) {
    const part = new OpenPart(range, elementCount(shape))
    for (let k = range.begin; k < range.end; k++) yield { k, part }
  }
}

/** A part in memory, while its images are being made. */
class OpenPart {
  readonly images: Uint8Array
  readonly range: PartRange
  readonly #imageBytes: number
  #missing: number

  constructor(range: PartRange, imageBytes: number) {
    this.range = range
    this.#imageBytes = imageBytes
    this.#missing = range.end - range.begin
    this.images = new Uint8Array(this.#missing * imageBytes)
  }

  add(k: number, image: Uint8Array): void {
    this.images.set(image, (k - this.range.begin) * this.#imageBytes)
    this.#missing--
  }

  get isFull(): boolean {
    return this.#missing === 0
  }
}

async function makeImage(
  dit: DiT,
  facts: SampleSetFacts,
  k: number,
  signal: AbortSignal,
): Promise<Uint8Array> {
  const { sampler, spacing, eta, clip, guidance, guidanceChannels, guidanceInterval } = facts
  const [image] = await whenThereIsRoom(signal, () =>
    dit.sample(labelOf(facts, k), {
      ...{ sampler, spacing, eta, clip, guidance, guidanceChannels, guidanceInterval },
      seed: seedOf(facts, k),
      caller: 'sampleSet', // one share among those that use the model, in the images' order
      signal,
    }),
  )
  if (image?.data.length === elementCount(facts.shape)) return image.data
  throw new DiTError('ERR_DIT_INTERNAL', `Expected an image of [${facts.shape.join(', ')}]`)
}

/** Other calls may fill the model's queue: a set of samples can wait. */
async function whenThereIsRoom<T>(signal: AbortSignal, work: () => Promise<T>): Promise<T> {
  for (;;) {
    try {
      return await work()
    } catch (error) {
      if (!(error instanceof DiTError && error.code === 'ERR_DIT_BUSY')) throw error
      const { retryAfter } = error
      if (retryAfter === undefined) throw error // it is no queue that is in the way
      await sleep(1000 * Math.min(retryAfter, 1), undefined, { signal }).catch(() => {
        throw signal.reason
      })
    }
  }
}
