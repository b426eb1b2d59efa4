// The work of `extractFeatures`: pictures through the encoder, shard by shard.

import { setImmediate } from 'node:timers/promises'
import { DiTError } from '../errors.js'
import type { Engine } from '../jobs.js'
import { posteriors } from '../train/rows.js'
import { mirror } from './crop.js'
import {
  type FeatureIndex,
  type MomentName,
  momentsOf,
  type ShardRows,
  shardFile,
  shardRange,
  writeShard,
} from './feature_files.js'
import type { FeaturesOptions } from './features.js'
import { toHalf } from './half.js'
import type { ImageFolder } from './image_folder.js'
import { BadItems, Lookahead, type Turn } from './pipeline.js'
import type { PictureShape } from './target.js'
import type { SkippedItem } from './types.js'

/** Pictures that are encoded at once, while the next are decoded. */
const groupItems = 16

/** What is to be encoded, by what, and where it goes. */
export interface Extraction {
  readonly images: ImageFolder
  /** [channels, height, width] of the pictures. */
  readonly shape: PictureShape
  readonly index: FeatureIndex
  readonly engine: Engine
  readonly given: Omit<FeaturesOptions, 'size'>
}

/** Writes the shards that are missing. Gives the number of pictures encoded. */
export async function extractShards(
  missing: readonly number[],
  extraction: Extraction,
): Promise<number> {
  const { images, index, given } = extraction
  const { signal, onBadItem = 'skip', onProgress } = given
  const badItems = new BadItems(onBadItem, images.length)
  const pictures = new Lookahead(turns(missing, extraction), images.ahead + groupItems)
  const total = images.length
  let done = total - missing.reduce((sum, shard) => sum + shardRange(index, shard).length, 0)
  let encoded = 0
  const rows = new Rows(index)
  const group = new Group(extraction, rows)
  for (const shard of missing) {
    rows.rows = 0
    const skipped: SkippedItem[] = []
    const { begin, end } = shardRange(index, shard)
    for (let item = begin; item < end; item++) {
      const next = await pictures.next()
      signal?.throwIfAborted()
      if (next === undefined) throw new DiTError('ERR_DIT_INTERNAL', 'a picture has no turn')
      const name = next.turn.name()
      if (typeof next.item === 'string') skipped.push(badItems.bad(name, next.item))
      else {
        badItems.good()
        group.add(name, next.item.x, next.item.label)
      }
      done++
      if (!group.isFull && item < end - 1) continue
      await group.encode()
      onProgress?.({ phase: 'encode', done, total })
    }
    await writeShard(shardFile(given.out, shard), index, { begin, end, skipped }, rows)
    encoded += rows.rows
  }
  return encoded
}

function* turns(
  missing: readonly number[],
  { images, index, shape }: Extraction,
): Generator<Turn, void, undefined> {
  for (const shard of missing) {
    const { begin, end } = shardRange(index, shard)
    for (let item = begin; item < end; item++) {
      yield { name: () => images.name(item), load: () => images.load(item, shape, false) }
    }
  }
}

/** The rows of a shard, as they are computed; the memory serves one shard after the other. */
class Rows implements ShardRows {
  rows = 0
  readonly labels: Int32Array
  readonly #stored = new Map<MomentName, Float32Array | Uint16Array>()
  readonly #size: number

  constructor(index: FeatureIndex) {
    const { dtype, shardItems, source } = index.made
    const capacity = Math.min(shardItems, source.items)
    this.#size = index.shape.reduce((product, size) => product * size, 1)
    this.labels = new Int32Array(capacity)
    for (const name of momentsOf(index)) {
      const count = capacity * this.#size
      this.#stored.set(name, dtype === 'fp16' ? new Uint16Array(count) : new Float32Array(count))
    }
  }

  /** Numbers [C, h, w] of a row. */
  set(name: MomentName, row: number, numbers: Float32Array): void {
    const stored = this.#stored.get(name)
    if (stored instanceof Float32Array) stored.set(numbers, row * this.#size)
    else if (stored) toHalf(numbers, stored.subarray(row * this.#size, (row + 1) * this.#size))
  }

  get moments(): Map<MomentName, Uint8Array> {
    return new Map(
      [...this.#stored].map(([name, { buffer, BYTES_PER_ELEMENT }]) => [
        name,
        new Uint8Array(buffer, 0, this.rows * this.#size * BYTES_PER_ELEMENT),
      ]),
    )
  }
}

/** A few pictures on their way to the encoder. */
class Group {
  #names: string[] = []
  readonly #pictures: Float32Array
  readonly #size: number

  constructor(
    private readonly extraction: Extraction,
    private readonly rows: Rows,
  ) {
    const [channels, height, width] = extraction.shape
    this.#size = channels * height * width
    this.#pictures = new Float32Array(groupItems * this.#size)
  }

  get isFull(): boolean {
    return this.#names.length === groupItems
  }

  add(name: string, picture: Float32Array, label: number): void {
    const { rows } = this
    rows.labels[rows.rows + this.#names.length] = label
    this.#pictures.set(picture, this.#names.length * this.#size)
    this.#names.push(name)
  }

  /** Empties the group into the rows. */
  async encode(): Promise<void> {
    const { rows } = this
    const n = this.#names.length
    if (n === 0) return
    const pictures = this.#pictures.subarray(0, n * this.#size)
    await this.#moments(pictures, 'mean', 'std')
    if (this.extraction.index.made.flip) {
      for (let i = 0; i < n; i++) {
        mirror(pictures.subarray(i * this.#size, (i + 1) * this.#size), this.extraction.shape[2])
        await setImmediate() // the event loop has its turn
      }
      await this.#moments(pictures, 'mean_flipped', 'std_flipped')
    }
    rows.rows += n
    this.#names = []
  }

  async #moments(pictures: Float32Array, mean: MomentName, std: MomentName): Promise<void> {
    const { engine, shape, given } = this.extraction
    const n = this.#names.length
    const { x, deviation } = await posteriors(pictures, n, shape, engine, given.signal)
    const size = x.length / n
    for (const [i, name] of this.#names.entries()) {
      const row = this.rows.rows + i
      for (const [moment, numbers] of [
        [mean, x],
        [std, deviation],
      ] as const) {
        const own = numbers.subarray(i * size, (i + 1) * size)
        if (!own.every(Number.isFinite)) {
          throw new DiTError(
            'ERR_DIT_NONFINITE',
            `The VAE makes NaN or infinity of ${name}. Remove it, or encode with precision fp32`,
          )
        }
        this.rows.set(moment, row, own)
      }
    }
  }
}
