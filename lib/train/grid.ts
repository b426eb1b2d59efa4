import { invalidOption } from '../errors.js'
import type { DiTConfig } from '../formats/types.js'
import { imageGrid, type RawImage } from '../image.js'
import type { Label } from '../labels.js'
import type { SampleOptions } from '../options.js'
import type { SampleGridOptions } from './options.js'

/** Makes images, as `dit.sample` does. @internal */
export type Sample = (labels: readonly Label[], options: SampleOptions) => Promise<RawImage[]>

/** Black pixels between the images. */
const gap = 2

/**
 * A grid of images, a column for each label; always of the same seeds, so that the grids of a training
 * show how one image changes.
 *
 * @internal
 */
export async function sampleGrid(
  sample: Sample,
  config: DiTConfig,
  { labels, rows = 4, seed = 0, ...options }: SampleGridOptions,
  signal: AbortSignal,
): Promise<RawImage> {
  const classes = Array.from({ length: Math.min(10, config.numClasses) }, (_, i) => i)
  const columns = labels ?? classes
  const all = Array.from({ length: rows }, () => columns).flat()
  const guided = config.nullClass ? {} : { guidance: 1 }
  const images = await sample(all, { ...guided, ...options, seed, signal })
  return imageGrid(images, { columns: columns.length, gap })
}

/** Whether sample grids can be made: found out before the training, not at the first of them. @internal */
export function checkSampling(
  { channels }: DiTConfig,
  hasVae: boolean,
  sampleEvery: number | undefined,
): void {
  if (sampleEvery === undefined || hasVae || channels === 1 || channels === 3) return
  throw invalidOption(
    'sampleEvery',
    `nothing for a model that makes latents of ${channels} channels and has no VAE to decode them`,
    sampleEvery,
  )
}
