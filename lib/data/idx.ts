// The idx files of MNIST and Fashion-MNIST: 4 bytes of magic (0, 0, type, dimensions), each dimension as
// 4 bytes big-endian, then the numbers. Type 8 is unsigned bytes.

import { createHash } from 'node:crypto'
import { createReadStream } from 'node:fs'
import path from 'node:path'
import { pipeline } from 'node:stream/promises'
import { setImmediate } from 'node:timers/promises'
import { createGunzip } from 'node:zlib'
import { badFormat, DiTError, fileError } from '../errors.js'
import { exists } from '../formats/file.js'
import { mirror } from './crop.js'
import { type IndexedItems, type Source, shuffledTurns } from './pipeline.js'
import { checkClassCount, pictureShape, type Shape } from './target.js'
import type { OpenDataOptions } from './types.js'

const imagesFile = 'train-images-idx3-ubyte'
const labelsFile = 'train-labels-idx1-ubyte'
const maxBytes = 2 ** 31 // unzipped; MNIST has 47 MB

/** Whether a folder has idx files. */
export async function isIdxFolder(folder: string): Promise<boolean> {
  return (await find(folder, imagesFile)) !== undefined
}

/** The file, or the one with .gz. */
async function find(folder: string, name: string): Promise<string | undefined> {
  for (const end of ['', '.gz']) {
    const file = path.join(folder, name + end)
    if (await exists(file)) return file
  }
  return undefined
}

interface Idx {
  file: string
  shape: number[]
  bytes: Uint8Array
  /** SHA-256 of the file's content. */
  hash: string
}

async function readIdx(folder: string, name: string, dimensions: number): Promise<Idx> {
  const file = await find(folder, name)
  if (file === undefined) {
    throw new DiTError('ERR_DIT_FILE', `${path.resolve(folder)} has no ${name} or ${name}.gz`)
  }
  const { chunks, length, hash } = await readChunks(file)
  const headerBytes = 4 + 4 * dimensions
  const header = Buffer.alloc(headerBytes)
  await copyChunks(chunks, header, 0)
  if (length < headerBytes || header.readUInt32BE(0) !== 0x800 + dimensions) {
    throw badFormat(file, `this is no idx file of unsigned bytes with ${dimensions} dimensions`)
  }
  const shape = Array.from({ length: dimensions }, (_, i) => header.readUInt32BE(4 + 4 * i))
  const count = shape.reduce((product, size) => product * size, 1)
  if (count === 0) throw badFormat(file, `it is empty: its shape is ${shape.join('×')}`)
  if (length !== headerBytes + count) {
    throw badFormat(
      file,
      `expected ${headerBytes + count} bytes for ${shape.join('×')} but got ${length}. The file is ` +
        'cut off or damaged',
    )
  }
  const bytes = new Uint8Array(count)
  await copyChunks(chunks, bytes, headerBytes)
  return { file, shape, bytes, hash }
}

const chunkBytes = 1 << 18 // what the event loop waits for

/** A file's content, unzipped where its name says so. */
async function readChunks(file: string) {
  const chunks: Buffer[] = []
  const hash = createHash('sha256')
  let length = 0
  const collect = async (source: AsyncIterable<Buffer>) => {
    for await (const chunk of source) {
      length += chunk.length
      if (length > maxBytes) throw badFormat(file, `it has more than ${maxBytes} bytes`)
      hash.update(chunk)
      chunks.push(chunk)
    }
  }
  const stored = createReadStream(file, { highWaterMark: chunkBytes })
  try {
    if (file.endsWith('.gz'))
      await pipeline(stored, createGunzip({ chunkSize: chunkBytes }), collect)
    else await pipeline(stored, collect)
  } catch (cause) {
    if (!String((cause as NodeJS.ErrnoException).code).startsWith('Z_')) {
      throw fileError(file, 'read', cause)
    }
    throw badFormat(file, `it cannot be unzipped: ${(cause as Error).message}`, cause)
  }
  return { chunks, length, hash: hash.digest('hex') }
}

/** What the chunks have from `begin` on, as far as there is room. */
async function copyChunks(
  chunks: readonly Buffer[],
  out: Uint8Array,
  begin: number,
): Promise<void> {
  let at = -begin
  for (const chunk of chunks) {
    const from = Math.max(0, -at)
    const room = out.length - Math.max(0, at)
    if (room <= 0) return
    if (from < chunk.length) out.set(chunk.subarray(from, from + room), Math.max(0, at))
    at += chunk.length
    await setImmediate()
  }
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
