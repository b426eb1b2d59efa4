// Numbers about a model that is open.

import type { CallStats, ModelInfo } from '../bindings.js'

/** Memory of a model on its device, in bytes. */
export interface MemoryInfo {
  /** The transformer's weights, as they are used: packed, in the precision of the model. */
  weights: number
  /** The VAE's weights. */
  vae: number
  /** Work space of all images in the making. */
  activations: number
  /** Parameters, gradients, optimiser, EMA and activations of training. 0 for a model that is not in training. */
  training: number
  /** The sum of them. */
  total: number
}

/**
 * What `dit.stats()` gives.
 *
 * @example
 * const { lanes, maxBatch, waiting, imagesPerSecond }: ModelStats = dit.stats()
 */
export interface ModelStats {
  /** Images that can be in the making at once. */
  maxBatch: number
  /** How many are. */
  lanes: number
  /** Images of calls under way that are neither in the making nor finished. */
  waiting: number
  /** Those among them that were begun, and set aside for others. */
  suspended: number
  /** Images finished, in all. */
  images: number
  /** Evaluations of the model, each for all images in the making, in all. */
  rounds: number
  /** Seconds spent on them and on decoding, in all. */
  busySeconds: number
  /** Seconds of a round, with its previews and without what comes beside it, like decoding: a moving average. */
  roundSeconds: number
  /** Seconds of one of its rows, of which a guided image has two: a moving average. */
  rowSeconds: number
  /** Images finished in a second of work: a moving average. Absent before the first. */
  imagesPerSecond?: number
  /** Calls refused or given up, in all: because the queue was full, or for their deadlines. */
  refused: { busy: number; deadline: number }
  /** Calls cancelled, in all. */
  cancelled: number
}

/** @internal */
export function memoryOf({
  weightBytes: weights,
  vaeBytes: vae,
  activationBytes: activations,
  trainerBytes: training,
}: ModelInfo): MemoryInfo {
  const total = weights + vae + activations + training
  return { weights, vae, activations, training, total }
}

/** @internal */
export function statsOf({
  maxLanes: maxBatch,
  refusedBusy: busy,
  refusedDeadline: deadline,
  imagesPerSecond,
  ...rest
}: CallStats): ModelStats {
  return {
    maxBatch,
    ...rest,
    ...(imagesPerSecond !== null && { imagesPerSecond }),
    refused: { busy, deadline },
  }
}
