// Features as training data. Of the shards, only the labels are held in memory: each item's numbers are
// read where they lie when its turn comes.

import { createHash } from 'node:crypto'
import { type FileHandle, open } from 'node:fs/promises'
import { DiTError, fileError } from '../errors.js'
import { readFully } from '../formats/file.js'
import {
  expectComplete,
  type FeatureIndex,
  type MomentName,
  readIndex,
  readShard,
  type Shard,
  shardCount,
} from './feature_files.js'
import { halfTable } from './half.js'
import { type IndexedItems, type LoadedItem, type Source, shuffledTurns } from './pipeline.js'
import { checkClassCount } from './target.js'
import type { OpenDataOptions } from './types.js'

/** Items that are read at once. */
const readsAhead = 64

/** A shard, open. */
interface OpenShard extends Shard {
  /** The number of its first row among all shards' rows. */
  readonly first: number
  readonly handle: FileHandle
  readonly labels: Int32Array
}

/** Rows of all shards, by number. */
class FeatureFolder implements IndexedItems {
  readonly #shards: OpenShard[] = []
  readonly #index: FeatureIndex
  readonly #half: Float32Array | undefined
  length = 0

  constructor(index: FeatureIndex) {
    this.#index = index
    if (index.made.dtype === 'fp16') this.#half = halfTable()
  }

  async open(folder: string): Promise<void> {
    for (let number = 0; number < shardCount(this.#index); number++) {
      const shard = await readShard(folder, this.#index, number)
      const handle = await open(shard.file).catch((cause) => {
        throw fileError(shard.file, 'read', cause)
      })
      const opened = { ...shard, first: this.length, handle, labels: new Int32Array(shard.rows) }
      this.#shards.push(opened)
      const bytes = await readFully(handle, shard.file, shard.label.offset, 4 * shard.rows)
      for (let row = 0; row < shard.rows; row++) opened.labels[row] = bytes.readInt32LE(4 * row)
      this.#checkLabels(opened)
      this.length += shard.rows
    }
  }

  name(item: number): string {
    const { file, first } = this.#shardOf(item)
    return `${file}, row ${item - first}`
  }

  async load(item: number, mirrored: boolean): Promise<LoadedItem> {
    const shard = this.#shardOf(item)
    const row = item - shard.first
    const end = mirrored && this.#index.made.flip ? '_flipped' : ''
    const [x, deviation] = await Promise.all([
      this.#read(shard, `mean${end}` as MomentName, row),
      this.#read(shard, `std${end}` as MomentName, row),
    ])
    return { x, deviation, label: shard.labels[row] as number }
  }

  async close(): Promise<void> {
    for (const { handle } of this.#shards) await handle.close()
  }

  /** The last shard that begins at or before the item; binary search. */
  #shardOf(item: number): OpenShard {
    let low = 0
    let high = this.#shards.length
    while (high - low > 1) {
      const middle = (low + high) >> 1
      if ((this.#shards[middle] as OpenShard).first <= item) low = middle
      else high = middle
    }
    return this.#shards[low] as OpenShard
  }

  async #read({ file, handle, moments }: OpenShard, name: MomentName, row: number) {
    const part = moments.get(name)
    if (part === undefined) throw new DiTError('ERR_DIT_INTERNAL', `${file} has no ${name}`)
    const [channels, height, width] = this.#index.shape
    const count = channels * height * width
    const bytes = count * (this.#half ? 2 : 4)
    try {
      const { buffer } = await readFully(handle, file, part.offset + row * bytes, bytes)
      if (this.#half === undefined) return new Float32Array(buffer, 0, count)
      const half = this.#half
      return Float32Array.from(new Uint16Array(buffer, 0, count), (bits) => half[bits] as number)
    } catch (cause) {
      throw fileError(file, 'read', cause)
    }
  }

  #checkLabels({ file, labels }: OpenShard): void {
    const { length } = this.#index.classNames
    const row = labels.findIndex((label) => label < 0 || label >= length)
    if (row < 0) return
    throw new DiTError(
      'ERR_DIT_FORMAT',
      `${file}: expected labels from 0 to ${length - 1} but row ${row} has ${labels[row]}`,
    )
  }
}

/** Opens features as training data. */
export async function openFeatures(folder: string, { model }: OpenDataOptions): Promise<Source> {
  const { index, text } = await readIndex(folder)
  expectComplete(folder, index)
  checkModel(folder, index, model)
  checkClassCount(folder, index.classNames.length, model)
  const items = new FeatureFolder(index)
  try {
    await items.open(folder)
    if (items.length === 0) throw new DiTError('ERR_DIT_FILE', `${folder} has no features`)
  } catch (error) {
    await items.close()
    throw error
  }
  const { length } = items
  return {
    kind: 'features',
    length,
    shape: index.shape,
    scale: index.made.vae.scalingFactor,
    shift: index.made.vae.shiftFactor,
    numClasses: index.classNames.length,
    classNames: index.classNames,
    fingerprint: {
      kind: 'features',
      length,
      classes: index.classNames.length,
      shape: index.shape.join('×'),
      index: createHash('sha256').update(text).digest('hex'),
    },
    ahead: readsAhead,
    turns: (options) => shuffledTurns(items, options),
    close: () => items.close(),
  }
}

/** Whether the features are latents of this model's size, and of its VAE. */
function checkModel(
  folder: string,
  { shape, made }: FeatureIndex,
  { channels, latentSize, vae }: OpenDataOptions['model'],
): void {
  const wanted = [channels, ...latentSize]
  if (shape.some((size, i) => size !== wanted[i])) {
    throw new DiTError(
      'ERR_DIT_SHAPE',
      `${folder} has features of [${shape.join(', ')}], but the model takes [${wanted.join(', ')}]`,
    )
  }
  const { scalingFactor, shiftFactor } = made.vae
  if (!vae || (vae.scalingFactor === scalingFactor && vae.shiftFactor === shiftFactor)) return
  throw new DiTError(
    'ERR_DIT_OPTION',
    `${folder} is of a VAE with scaling ${scalingFactor} and shift ${shiftFactor}, but the model's has ` +
      `${vae.scalingFactor} and ${vae.shiftFactor}: it would not decode what is learned from them`,
  )
}
