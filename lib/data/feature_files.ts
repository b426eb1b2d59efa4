// What `dit features` writes: a folder with
//
//   features.json               what was encoded, how, and how far it is
//   features-00000.safetensors  of the first `shardItems` pictures, and so on:
//     mean, std                 [n, C, h, w] of the VAE's posterior, in its own scale; F32 or F16
//     mean_flipped, std_flipped the same of the mirrored pictures, where they were asked for
//     label                     [n] I32
//
// A shard has a row for each picture that could be used. Its metadata says which pictures it is of, and
// which of them were passed over.

import { readFile } from 'node:fs/promises'
import path from 'node:path'
import * as v from 'valibot'
import { badFormat, DiTError, fileError } from '../errors.js'
import { parseFile } from '../formats/dit_config.js'
import { exists, writeWhole } from '../formats/file.js'
import { parseJson } from '../formats/json.js'
import { readSafetensors, safetensorsLayout } from '../formats/safetensors.js'
import { sameShape } from '../formats/tensor.js'
import type { TensorPart } from '../formats/types.js'

const indexFile = 'features.json'
const metadataKey = 'dit_native_features'

const size = v.pipe(v.number(), v.safeInteger(), v.minValue(0))
const skippedSchema = v.array(v.strictObject({ item: v.string(), reason: v.string() }))

const indexSchema = v.strictObject({
  format: v.literal('dit-native features'),
  version: v.literal(1),
  /** Whether all shards are there. */
  complete: v.boolean(),
  /** How the features were made: a run that goes on must have the same. */
  made: v.strictObject({
    source: v.strictObject({ items: size, names: v.string() }),
    vae: v.strictObject({ hash: v.string(), scalingFactor: v.number(), shiftFactor: v.number() }),
    /** Height and width of the pictures, in pixels. */
    size: v.strictTuple([size, size]),
    flip: v.boolean(),
    dtype: v.picklist(['fp32', 'fp16']),
    precision: v.picklist(['fp32', 'tf32', 'bf16']),
    shardItems: v.pipe(size, v.minValue(1)),
  }),
  /** [channels, height, width] of the latents. */
  shape: v.strictTuple([size, size, size]),
  classNames: v.array(v.string()),
  /** Rows of each shard and what was passed over; empty until all is complete. */
  shards: v.array(size),
  skipped: skippedSchema,
})

/** features.json. */
export type FeatureIndex = v.InferOutput<typeof indexSchema>

/** The tensors of a shard that have a row per picture. */
export const momentNames = ['mean', 'std', 'mean_flipped', 'std_flipped'] as const
export type MomentName = (typeof momentNames)[number]

/** Those of `momentNames` that there are. */
export function momentsOf({ made }: FeatureIndex): MomentName[] {
  return made.flip ? [...momentNames] : ['mean', 'std']
}

export function isFeatureFolder(folder: string): Promise<boolean> {
  return exists(path.join(folder, indexFile))
}

/** Reads features.json; its text is what a training is resumed by. */
export async function readIndex(folder: string): Promise<{ index: FeatureIndex; text: Buffer }> {
  const file = path.join(folder, indexFile)
  const text = await readFile(file).catch((cause) => {
    throw fileError(file, 'read', cause)
  })
  return { index: parseFile(indexSchema, parseJson(text, file, 'the file'), file), text }
}

export function writeIndex(folder: string, index: FeatureIndex): Promise<void> {
  const text = `${JSON.stringify(index, null, 2)}\n`
  return writeWhole(path.join(folder, indexFile), [Buffer.from(text)])
}

/** Shards that so many items make. */
export function shardCount({ made }: FeatureIndex): number {
  return Math.ceil(made.source.items / made.shardItems)
}

/** The pictures of a shard, by their numbers in the source. */
export function shardRange({ made }: FeatureIndex, shard: number) {
  const begin = shard * made.shardItems
  const end = Math.min(begin + made.shardItems, made.source.items)
  return { begin, end, length: end - begin }
}

export function shardFile(folder: string, shard: number): string {
  return path.join(folder, `features-${String(shard).padStart(5, '0')}.safetensors`)
}

/** How the moments are stored. */
function storedType({ made }: FeatureIndex): 'F16' | 'F32' {
  return made.dtype === 'fp16' ? 'F16' : 'F32'
}

const shardSchema = v.strictObject({ begin: size, end: size, skipped: skippedSchema })

/** What a shard says of itself: the pictures `begin` to `end` of the source, and who is missing. */
export type ShardFacts = v.InferOutput<typeof shardSchema>

/** Rows as they are stored: bytes of each tensor. */
export interface ShardRows {
  readonly rows: number
  readonly labels: Int32Array
  readonly moments: ReadonlyMap<MomentName, Uint8Array>
}

export async function writeShard(
  file: string,
  index: FeatureIndex,
  facts: ShardFacts,
  { rows, labels, moments }: ShardRows,
): Promise<void> {
  const dtype = storedType(index)
  const { header } = safetensorsLayout(
    [
      { name: 'label', dtype: 'I32', shape: [rows] },
      ...[...moments.keys()].map(
        (name) => ({ name, dtype, shape: [rows, ...index.shape] }) as const,
      ),
    ],
    { [metadataKey]: JSON.stringify(facts) },
  )
  const labelBytes = new Uint8Array(labels.buffer, labels.byteOffset, 4 * rows)
  await writeWhole(file, [header, labelBytes, ...moments.values()])
}

/** A shard's header, checked. */
export interface Shard {
  readonly file: string
  readonly rows: number
  readonly facts: ShardFacts
  readonly label: TensorPart
  readonly moments: ReadonlyMap<MomentName, TensorPart>
}

/** Throws ERR_DIT_FILE when a shard is missing, ERR_DIT_FORMAT when it is not of this index. */
export async function readShard(
  folder: string,
  index: FeatureIndex,
  number: number,
): Promise<Shard> {
  const file = shardFile(folder, number)
  const { tensors, metadata } = await readSafetensors(file)
  const json = parseJson(Buffer.from(metadata.get(metadataKey) ?? '{}'), file, metadataKey)
  const facts = parseFile(shardSchema, json, `${file}, metadata`)
  const { begin, end, length } = shardRange(index, number)
  const rows = length - facts.skipped.length
  const get = (name: string, type: string, shape: readonly number[]) => {
    const part = tensors.get(name)
    if (part?.dtype === type && sameShape(part.shape, shape)) return part
    const got = part ? `${part.dtype} [${part.shape.join(', ')}]` : 'none'
    throw badFormat(file, `expected ${name} as ${type} [${shape.join(', ')}] but got ${got}`)
  }
  if (facts.begin !== begin || facts.end !== end) {
    throw badFormat(
      file,
      `expected items ${begin} to ${end} but got ${facts.begin} to ${facts.end}`,
    )
  }
  const type = storedType(index)
  return {
    file,
    rows,
    facts,
    label: get('label', 'I32', [rows]),
    moments: new Map(
      momentsOf(index).map((name) => [name, get(name, type, [rows, ...index.shape])]),
    ),
  }
}

/** Throws ERR_DIT_FILE for features that are not complete. */
export function expectComplete(folder: string, { complete }: FeatureIndex): void {
  if (complete) return
  throw new DiTError(
    'ERR_DIT_FILE',
    `${path.resolve(folder)} holds features that are not complete. Run dit features again, with the ` +
      'same options',
  )
}
