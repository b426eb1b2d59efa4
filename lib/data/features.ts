// From a folder of pictures to a folder of features: a VAE's posteriors, computed once.

import { createHash } from 'node:crypto'
import { createReadStream } from 'node:fs'
import { mkdir, readdir, rm } from 'node:fs/promises'
import path from 'node:path'
import * as v from 'valibot'
import { DiTError, fileError, invalidOption, show } from '../errors.js'
import { exists, partEnd } from '../formats/file.js'
import type { TensorSource, VaeConfig } from '../formats/types.js'
import { describeVae, openEngine } from '../loading.js'
import * as options from '../options.js'
import { downscale } from '../sampling.js'
import { extractShards } from './extraction.js'
import {
  type FeatureIndex,
  isFeatureFolder,
  readIndex,
  readShard,
  shardCount,
  shardFile,
  writeIndex,
} from './feature_files.js'
import { ImageFolder } from './image_folder.js'
import { pictureShape, type Shape } from './target.js'
import type { SkippedItem } from './types.js'

/** Progress of `extractFeatures`: of loading the VAE, then of pictures. */
export type FeaturesProgress =
  | options.ModelProgress
  | { phase: 'encode'; done: number; total: number }

/**
 * Options of `extractFeatures`.
 *
 * @example
 * const options: FeaturesOptions = { vae: 'stabilityai/sd-vae-ft-ema', out: 'features', dtype: 'fp16' }
 * await extractFeatures('photos', options)
 */
export interface FeaturesOptions extends Omit<options.DeviceOptions, 'onProgress'> {
  /** The VAE: a folder (also that of a model with one), a file, or a Hugging Face id. */
  vae: string
  /** The folder for the features: a new or empty one, or one to go on with. */
  out: string
  /** Sides of the pictures in pixels, multiples of the VAE's factor. Default 256. */
  size?: number | readonly [height: number, width: number]
  /** Encodes the mirrored pictures, too. Default false. */
  flip?: boolean
  /** How the numbers are stored. Default `'fp32'`; `'fp16'` has half the size and 11 bits. */
  dtype?: 'fp32' | 'fp16'
  /** Pictures of one file. Default 1024, fewer where a file would have more than 128 MiB. */
  shardItems?: number
  /** Threads that decode pictures. Default: as many as there are processors, at most 8. */
  workers?: number
  /** What a damaged picture does: it is reported and passed over (the default), or ends the work. */
  onBadItem?: 'skip' | 'error'
  /** Called while the VAE is loaded, then after every few pictures. */
  onProgress?: (progress: FeaturesProgress) => void
}

/** What `extractFeatures` has made. */
export interface FeaturesResult {
  /** The folder. */
  out: string
  /** Pictures in it. */
  items: number
  /** Pictures encoded by this call: fewer, when it went on with what was there. */
  encoded: number
  /** Pictures that could not be used. */
  skipped: SkippedItem[]
  /** Files that hold the features. */
  shards: number
  /** [channels, height, width] of the latents. */
  shape: [channels: number, height: number, width: number]
  /** Names of the classes, by number: those of the subfolders. */
  classNames: string[]
  /** Where the VAE came from. */
  vae: string
}

const positive = (value: unknown) => options.isInteger(value, 1, 1 << 16)

const featuresSchema = v.strictObject({
  ...options.deviceEntries,
  vae: options.text,
  out: options.text,
  size: v.optional(
    options.is<number | readonly [number, number]>(
      'a positive integer or [height, width]',
      (value) => positive(value) || options.isPair(value, positive),
    ),
  ),
  flip: v.optional(options.flag),
  dtype: v.optional(options.oneOf('fp32', 'fp16')),
  shardItems: v.optional(options.integer(1, 1 << 20)),
  workers: v.optional(options.integer(0, 256)),
  onBadItem: v.optional(options.oneOf('skip', 'error')),
  onProgress: v.optional(options.callback<(progress: FeaturesProgress) => void>()),
})

/**
 * Encodes a folder of class folders by a VAE, once: means and deviations of the posteriors [C, h, w],
 * from which a training then draws anew in every epoch (DiT, Peebles & Xie 2022, trains on such draws).
 * Pictures are cut as for training. Files of `shardItems` pictures each appear whole or not at all;
 * called again after an interruption, it goes on at the first that is missing.
 *
 * Rejects with ERR_DIT_FILE when something cannot be read or written, ERR_DIT_FORMAT for a damaged VAE,
 * or picture with `onBadItem: 'error'`; ERR_DIT_OPTION for a wrong option, or when `out` holds something
 * else or features of another source or other options, which it names; ERR_DIT_NONFINITE when the VAE
 * makes no numbers of a picture; with `signal.reason` after an abort.
 *
 * @param folder As for `dit.train`: a subfolder for each class, JPEG, PNG and WebP files in them.
 *
 * @example
 * const { items, shape } = await extractFeatures('imagenet/train', {
 *   vae: 'stabilityai/sd-vae-ft-ema', size: 256, flip: true, out: 'imagenet-features',
 * })
 * console.log(items, shape)
 * for await (const event of dit.train('imagenet-features', { steps: 400_000 })) console.log(event)
 */
export async function extractFeatures(
  folder: string,
  featuresOptions: FeaturesOptions,
): Promise<FeaturesResult> {
  const given = options.check(featuresSchema, featuresOptions)
  if (typeof folder !== 'string' || folder === '') throw invalidOption('folder', 'a path', folder)
  const { signal, onProgress } = given
  signal?.throwIfAborted()
  const { spec, vae, description } = await describeVae(given.vae, given)
  const size = sizeOf(given.size, vae.config)
  const images = await ImageFolder.open(folder, given.workers)
  try {
    const factor = downscale(vae.config)
    const latentSize = [size[0] / factor, size[1] / factor] as const
    const channels = vae.config.latentChannels
    const shape: Shape = [channels, ...latentSize]
    const index: FeatureIndex = {
      format: 'dit-native features',
      version: 1,
      complete: false,
      made: {
        source: { items: images.length, names: images.hash },
        vae: {
          hash: await hashFiles(vae.tensors, signal),
          scalingFactor: vae.config.scalingFactor,
          shiftFactor: vae.config.shiftFactor,
        },
        size,
        flip: given.flip ?? false,
        dtype: given.dtype ?? 'fp32',
        precision: spec.precision,
        shardItems: given.shardItems ?? usualShardItems(shape, given),
      },
      shape: [...shape],
      classNames: [...images.classes],
      shards: [],
      skipped: [],
    }
    const pictures = pictureShape({
      channels,
      latentSize,
      vae: { ...vae.config, downscale: factor },
    })
    const missing = await prepare(given.out, index)
    let encoded = 0
    if (missing.length > 0) {
      const engine = await openEngine(spec, {
        ...(signal && { signal }),
        ...(onProgress && { onProgress }),
      })
      try {
        encoded = await extractShards(missing, { images, shape: pictures, index, engine, given })
      } finally {
        await engine.close()
      }
    }
    const whole = await complete(given.out, index)
    return {
      out: given.out,
      items: whole.shards.reduce((sum, rows) => sum + rows, 0),
      encoded,
      skipped: whole.skipped,
      shards: whole.shards.length,
      shape: whole.shape,
      classNames: whole.classNames,
      vae: description,
    }
  } finally {
    await images.close()
  }
}

const maxShardItems = 1024
const maxShardBytes = 128 << 20

/** Pictures of a file, where nothing says how many. */
function usualShardItems(
  [channels, height, width]: Shape,
  { flip, dtype }: Pick<FeaturesOptions, 'flip' | 'dtype'>,
): number {
  const numbers = channels * height * width * (flip ? 4 : 2)
  const bytes = numbers * (dtype === 'fp16' ? 2 : 4)
  return Math.max(1, Math.min(maxShardItems, Math.floor(maxShardBytes / bytes)))
}

function sizeOf(size: FeaturesOptions['size'] = 256, vae: VaeConfig): [number, number] {
  const [height, width] = typeof size === 'number' ? [size, size] : size
  const factor = downscale(vae)
  if (height % factor === 0 && width % factor === 0) return [height, width]
  throw invalidOption('size', `multiples of the VAE's factor, ${factor},`, size)
}

/** Of the files with the weights. */
async function hashFiles(
  tensors: readonly TensorSource[],
  signal: AbortSignal | undefined,
): Promise<string> {
  const files = new Set(tensors.flatMap(({ parts }) => parts.map(({ file }) => file)))
  const hash = createHash('sha256')
  for (const file of files) {
    try {
      for await (const chunk of createReadStream(file, { highWaterMark: 1 << 18 })) {
        signal?.throwIfAborted()
        hash.update(chunk)
      }
    } catch (cause) {
      throw fileError(file, 'read', cause)
    }
  }
  return hash.digest('hex')
}

/** Makes the folder, or checks that it was begun in the same way. Gives the shards that are missing. */
async function prepare(out: string, index: FeatureIndex): Promise<number[]> {
  let entries: string[]
  try {
    await mkdir(out, { recursive: true })
    entries = await readdir(out)
    for (const name of entries) if (name.endsWith(partEnd)) await rm(path.join(out, name))
  } catch (cause) {
    throw fileError(out, 'write', cause)
  }
  if (await isFeatureFolder(out)) checkSame(out, (await readIndex(out)).index, index)
  else {
    const others = entries.filter((name) => !name.endsWith(partEnd))
    if (others.length > 0) {
      throw new DiTError(
        'ERR_DIT_OPTION',
        `${path.resolve(out)} is not empty and holds no features (${others.slice(0, 3).join(', ')}). Give ` +
          'another out',
      )
    }
    await writeIndex(out, index)
  }
  const missing: number[] = []
  for (let shard = 0; shard < shardCount(index); shard++) {
    if (await exists(shardFile(out, shard))) await readShard(out, index, shard)
    else missing.push(shard)
  }
  return missing
}

/** Throws ERR_DIT_OPTION that names what has changed. */
function checkSame(out: string, was: FeatureIndex, is: FeatureIndex): void {
  const before = facts(was)
  const changed = [...facts(is)]
    .filter(([name, value]) => before.get(name) !== value)
    .map(([name, value]) => `${name} (was ${before.get(name)}, is ${value})`)
  if (changed.length === 0) return
  throw new DiTError(
    'ERR_DIT_OPTION',
    `${path.resolve(out)} was begun in another way: ${changed.join(', ')}. Give what was given then, or ` +
      'another out',
  )
}

/** What must not change, in words. */
function facts({ made, shape, classNames }: FeatureIndex): Map<string, string> {
  const { source, vae, ...rest } = made
  return new Map([
    ['the number of pictures', show(source.items)],
    ['the names of the files', source.names.slice(0, 12)],
    ['the classes', show(classNames)],
    ['the weights of the VAE', vae.hash.slice(0, 12)],
    ["the VAE's scaling", show(vae.scalingFactor)],
    ["the VAE's shift", show(vae.shiftFactor)],
    ['the shape of latents', show(shape)],
    ...Object.entries(rest).map(([name, value]): [string, string] => [name, show(value)]),
  ])
}

/** Writes down that all shards are there. */
async function complete(out: string, index: FeatureIndex): Promise<FeatureIndex> {
  const whole: FeatureIndex = { ...index, complete: true }
  for (let number = 0; number < shardCount(index); number++) {
    const shard = await readShard(out, index, number)
    whole.shards.push(shard.rows)
    whole.skipped.push(...shard.facts.skipped)
  }
  await writeIndex(out, whole)
  return whole
}
