// The folder of idx files of MNIST and Fashion-MNIST as training data.

import { badFormat, DiTError } from '../errors.js'
import { mirror } from './crop.js'
import { findIdx, readIdx } from './idx_file.js'
import { type IndexedItems, type Source, shuffledTurns } from './pipeline.js'
import { checkClassCount, pictureShape, type Shape } from './target.js'
import type { OpenDataOptions } from './types.js'

const imagesFile = 'train-images-idx3-ubyte'
const labelsFile = 'train-labels-idx1-ubyte'

/** Whether a folder has idx files. */
export async function isIdxFolder(folder: string): Promise<boolean> {
  return (await findIdx(folder, imagesFile)) !== undefined
}

/** Opens a folder of idx files as training data. */
export async function openIdx(folder: string, { model }: OpenDataOptions): Promise<Source> {
  const shape = pictureShape(model)
  const images = await readIdx(folder, imagesFile, 3)
  const labels = await readIdx(folder, labelsFile, 1)
  const [length, height, width] = images.shape as [number, number, number]
  if (labels.bytes.length !== length) {
    throw badFormat(labels.file, `it has ${labels.bytes.length} labels for ${length} images`)
  }
  const numClasses = labels.bytes.reduce((most, label) => Math.max(most, label), 0) + 1
  checkClassCount(folder, numClasses, model)
  if (height > shape[1] || width > shape[2]) {
    throw new DiTError(
      'ERR_DIT_SHAPE',
      `${images.file} has images of ${width}×${height}, larger than the ${shape[2]}×${shape[1]} that the ` +
        'model takes. Make the model with a larger latentSize',
    )
  }
  const items: IndexedItems = {
    length,
    name: (item) => `${images.file}, image ${item}`,
    load(item, mirrored) {
      const size = height * width
      const x = padded(images.bytes.subarray(item * size, (item + 1) * size), height, width, shape)
      if (mirrored) mirror(x, shape[2])
      return { x, deviation: null, label: labels.bytes[item] as number }
    },
  }
  return {
    kind: 'images',
    length,
    shape,
    scale: 1,
    shift: 0,
    numClasses,
    classNames: [],
    fingerprint: {
      kind: 'idx',
      length,
      classes: numClasses,
      shape: shape.join('×'),
      images: images.hash,
      labels: labels.hash,
    },
    ahead: 1, // nothing is waited for
    turns: (options) => shuffledTurns(items, options),
    close: async () => {},
  }
}

/** An image in the middle of a black one, the same in all channels: value / 127.5 - 1. */
function padded(pixels: Uint8Array, rows: number, columns: number, shape: Shape): Float32Array {
  const [channels, height, width] = shape
  const x = new Float32Array(channels * height * width).fill(-1)
  const top = Math.floor((height - rows) / 2)
  const left = Math.floor((width - columns) / 2)
  for (let c = 0; c < channels; c++) {
    for (let i = 0; i < rows; i++) {
      const begin = (c * height + top + i) * width + left
      for (let j = 0; j < columns; j++) {
        x[begin + j] = (pixels[i * columns + j] as number) / 127.5 - 1
      }
    }
  }
  return x
}
