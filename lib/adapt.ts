// Fine-tuning: a checkpoint's weights at another size of the latent or of its patches, or for other
// classes. What becomes of the numbers is in native/model/adapted_weights.h.

import { invalidOption } from './errors.js'
import type { DiTConfig, LoadedSource, TensorSource } from './formats/types.js'
import type { LoadOptions } from './options.js'

/** @internal */
export interface Adapted {
  /** The size of the model that is made. */
  config: DiTConfig
  tensors: TensorSource[]
  /** The size that the tensors have, where that is another. */
  stored: DiTConfig | null
  /** What was done, in sentences. */
  notes: string[]
}

/**
 * Throws ERR_DIT_OPTION for a latent that patches do not divide.
 *
 * @internal
 */
export function adapt(
  { config, tensors }: LoadedSource['dit'],
  { latentSize, patchSize = config.patchSize, numClasses = config.numClasses }: LoadOptions,
): Adapted {
  const [height, width] =
    typeof latentSize === 'number' ? [latentSize, latentSize] : (latentSize ?? config.latentSize)
  checkSizes(height, width, patchSize, latentSize)
  const wanted: DiTConfig = { ...config, latentSize: [height, width], patchSize, numClasses }
  const notes: string[] = []
  const [before, after] = [tokenGrid(config), tokenGrid(wanted)]
  const isSameGrid = before === after
  if (!isSameGrid) {
    notes.push(
      `The position embedding was computed for ${after} tokens (the weights have ${before}).`,
    )
  }
  if (patchSize !== config.patchSize) {
    notes.push(
      `Patch embedding and last layer were resized from patches of ${config.patchSize} to ${patchSize}.`,
    )
  }
  if (numClasses !== config.numClasses) {
    const none = config.nullClass ? '; the null class stays' : ''
    notes.push(
      `The label table was made anew for ${classes(numClasses)} (the weights have ` +
        `${config.numClasses})${none}.`,
    )
  }
  const changesTensors = patchSize !== config.patchSize || numClasses !== config.numClasses
  return {
    config: wanted,
    tensors: isSameGrid ? tensors : tensors.filter(({ name }) => name !== 'pos_embed'),
    stored: changesTensors ? config : null,
    notes,
  }
}

function checkSizes(
  height: number,
  width: number,
  patchSize: number,
  given: LoadOptions['latentSize'],
): void {
  if (height % patchSize === 0 && width % patchSize === 0) return
  if (given === undefined) {
    throw invalidOption(
      'patchSize',
      `a divisor of the latent's sides, ${height}×${width},`,
      patchSize,
    )
  }
  throw invalidOption('latentSize', `multiples of the patch size, ${patchSize},`, given)
}

function tokenGrid({ latentSize: [height, width], patchSize }: DiTConfig): string {
  return `${height / patchSize}×${width / patchSize}`
}

function classes(n: number): string {
  return n === 1 ? '1 class' : `${n} classes`
}
