// A set of samples on its way: samples.npz.parts/ beside samples.npz, with
//
//   set.json                  what is made (facts.ts)
//   part-00000.safetensors    images 0 to 15, and so on:
//     images                  [n, height, width, channels] U8
//
// Who makes a part does not matter, and neither does when: all in it follows from set.json. So parts of
// several machines may be copied into one folder, two processes may make the same one, and nothing is
// locked. Each appears whole or not at all.

import { createHash } from 'node:crypto'
import { mkdir, open } from 'node:fs/promises'
import path from 'node:path'
import * as v from 'valibot'
import { badFormat, DiTError, fileError } from '../errors.js'
import { parseFile } from '../formats/dit_config.js'
import { exists, writeWhole } from '../formats/file.js'
import { parseJson, readJson } from '../formats/json.js'
import { readSafetensors, safetensorsLayout } from '../formats/safetensors.js'
import { elementCount, sameShape } from '../formats/tensor.js'
import type { TensorPart } from '../formats/types.js'
import { differences, factsSchema, type SampleSetFacts } from './facts.js'

/** Images of a part: so many at most of those that are finished are lost when a process is killed. */
const partImages = 16

const metadataKey = 'dit_native_samples'
const metadataSchema = v.strictObject({
  /** Of set.json. */
  fingerprint: v.string(),
  /** What it was made on. */
  machine: v.string(),
})

/** Images `begin` to `end` of a set. */
export interface PartRange {
  readonly part: number
  readonly begin: number
  readonly end: number
}

/** A part that is there. */
export interface Part extends PartRange {
  readonly images: TensorPart
  readonly machine: string
}

/** Those that share `i` of `n` has: every n-th, so that all shares grow alike. */
export function partRanges({ count }: SampleSetFacts, [i, n]: readonly [number, number]) {
  const ranges: PartRange[] = []
  for (let part = i - 1; part * partImages < count; part += n) {
    const begin = part * partImages
    ranges.push({ part, begin, end: Math.min(begin + partImages, count) })
  }
  return ranges
}

export function countImages(ranges: readonly PartRange[]): number {
  return ranges.reduce((sum, { begin, end }) => sum + end - begin, 0)
}

/** Throws ERR_DIT_OPTION that names what is different. */
export function checkSame(where: string, was: SampleSetFacts, is: SampleSetFacts): void {
  const changed = differences(was, is)
  if (changed.length === 0) return
  throw new DiTError(
    'ERR_DIT_OPTION',
    `${path.resolve(where)} is of another set of samples: ${changed.join(', ')}. Give what was given ` +
      'then, or another out',
  )
}

/** The folder of parts of a set. */
export class Parts {
  readonly folder: string
  readonly facts: SampleSetFacts
  readonly #fingerprint: string

  constructor(out: string, facts: SampleSetFacts) {
    this.folder = `${out}.parts`
    this.facts = facts
    this.#fingerprint = createHash('sha256').update(JSON.stringify(facts)).digest('hex')
  }

  /** Makes the folder, or checks that what it has is of this set. Throws ERR_DIT_FILE, ERR_DIT_OPTION. */
  async prepare(): Promise<void> {
    const file = path.join(this.folder, 'set.json')
    try {
      await mkdir(this.folder, { recursive: true })
    } catch (cause) {
      throw fileError(this.folder, 'write', cause)
    }
    const json = await readJson(file)
    if (json !== undefined) checkSame(this.folder, parseFile(factsSchema, json, file), this.facts)
    else await writeWhole(file, [Buffer.from(`${JSON.stringify(this.facts, null, 2)}\n`)])
  }

  /** Throws ERR_DIT_FORMAT when a part is damaged or of another set. */
  async find(ranges: readonly PartRange[]): Promise<{ there: Part[]; missing: PartRange[] }> {
    const there: Part[] = []
    const missing: PartRange[] = []
    for (const range of ranges) {
      const part = await this.#read(range)
      if (part) there.push(part)
      else missing.push(range)
    }
    return { there, missing }
  }

  async write(range: PartRange, machine: string, images: Uint8Array): Promise<void> {
    const metadata: v.InferOutput<typeof metadataSchema> = {
      fingerprint: this.#fingerprint,
      machine,
    }
    const shape = this.#shapeOf(range)
    const { header } = safetensorsLayout([{ name: 'images', dtype: 'U8', shape }], {
      [metadataKey]: JSON.stringify(metadata),
    })
    await writeWhole(this.#fileOf(range), [header, images])
  }

  async #read(range: PartRange): Promise<Part | undefined> {
    const file = this.#fileOf(range)
    if (!(await exists(file))) return undefined
    const { tensors, metadata } = await readSafetensors(file)
    const json = parseJson(Buffer.from(metadata.get(metadataKey) ?? '{}'), file, metadataKey)
    const { fingerprint, machine } = parseFile(metadataSchema, json, `${file}, metadata`)
    if (fingerprint !== this.#fingerprint) {
      throw badFormat(file, 'it is a part of another set of samples. Remove it')
    }
    const images = tensors.get('images')
    const shape = this.#shapeOf(range)
    if (images?.dtype === 'U8' && sameShape(images.shape, shape)) {
      return { ...range, images, machine }
    }
    throw badFormat(file, `expected images as U8 [${shape.join(', ')}]. Remove it`)
  }

  #shapeOf({ begin, end }: PartRange): number[] {
    return [end - begin, ...this.facts.shape]
  }

  #fileOf({ part }: PartRange): string {
    return path.join(this.folder, `part-${String(part).padStart(5, '0')}.safetensors`)
  }
}

const pieceBytes = 1 << 18

/** The bytes of a part's images, in pieces. */
export async function* partBytes({ images }: Part): AsyncGenerator<Uint8Array> {
  const { file, offset, shape } = images
  const end = offset + elementCount(shape)
  try {
    await using handle = await open(file)
    for (let at = offset; at < end; ) {
      const buffer = Buffer.allocUnsafe(Math.min(pieceBytes, end - at))
      const { bytesRead } = await handle.read(buffer, 0, buffer.length, at)
      if (bytesRead === 0) throw badFormat(file, `the file ended at byte ${at}`)
      yield buffer.subarray(0, bytesRead)
      at += bytesRead
    }
  } catch (cause) {
    throw fileError(file, 'read', cause)
  }
}
