// From a batch of data to the rows of a step.

import type { DataBatch, OpenData } from '../data/types.js'
import { DiTError } from '../errors.js'
import type { VaeConfig } from '../formats/types.js'
import type { Engine } from '../jobs.js'
import { jobRanges } from '../sampling.js'
import type { TrainingRows } from './trainer.js'

/**
 * Rows as the trainer takes them. Images go through the VAE's encoder, a few at a time, where the model
 * has one: the trainer then draws from their posteriors, as it does of features.
 *
 * @internal
 */
export async function toRows(
  batch: DataBatch,
  data: OpenData,
  vae: VaeConfig | undefined,
  engine: Engine,
  signal: AbortSignal,
): Promise<TrainingRows> {
  const rows = {
    n: batch.labels.length,
    x: batch.x,
    deviation: batch.deviation,
    scale: data.scale,
    shift: data.shift,
    labels: batch.labels,
    timesteps: null,
    noise: null,
    drop: null,
  }
  if (data.kind !== 'images' || vae === undefined) return rows
  const posterior = await posteriors(batch.x, rows.n, data.shape, engine, signal)
  return { ...rows, ...posterior, scale: vae.scalingFactor, shift: vae.shiftFactor }
}

/**
 * Means and deviations [n, C, h, w] of the posteriors of images [n, 3, H, W], in the VAE's own scale.
 *
 * @internal
 */
export async function posteriors(
  images: Float32Array,
  n: number,
  [channels, height, width]: OpenData['shape'],
  engine: Engine,
  signal: AbortSignal | undefined,
): Promise<{ x: Float32Array; deviation: Float32Array }> {
  const pixels = channels * height * width
  let means = new Float32Array(0)
  let deviations = new Float32Array(0)
  await engine.runAll(
    jobRanges(n, 4 * pixels).map(([begin, end]) => ({
      start(model) {
        return model.encode({
          n: end - begin,
          height,
          width,
          images: images.subarray(begin * pixels, end * pixels),
          seeds: null,
          moments: true,
        })
      },
      finish({ floats }) {
        if (floats === null) throw new DiTError('ERR_DIT_INTERNAL', 'the job gave no numbers')
        const size = floats.length / (end - begin) / 2
        if (means.length === 0) {
          means = new Float32Array(n * size)
          deviations = new Float32Array(n * size)
        }
        for (let i = begin; i < end; i++) {
          const at = (i - begin) * 2 * size
          means.set(floats.subarray(at, at + size), i * size)
          deviations.set(floats.subarray(at + size, at + 2 * size), i * size)
        }
      },
    })),
    signal,
  )
  return { x: means, deviation: deviations }
}
