// The parts of a set of samples to the file that was asked for.
//
// Two processes that finish at the same time both join: they write the same bytes, each beside the file,
// and put them in its place. The parts go last, so whoever is interrupted before can join again.

import { createHash, randomBytes } from 'node:crypto'
import { rename, rm } from 'node:fs/promises'
import * as v from 'valibot'
import { DiTError, fileError } from '../errors.js'
import { parseFile } from '../formats/dit_config.js'
import { exists, writeWhole } from '../formats/file.js'
import { readJson } from '../formats/json.js'
import { type NpzArray, npzBytes } from '../formats/npz.js'
import { factsSchema, labelOf, type SampleSetFacts } from './facts.js'
import { checkSame, type Part, type Parts, partBytes } from './parts.js'

const sidecarSchema = v.strictObject({
  ...factsSchema.entries,
  /** Where the weights came from, for people. */
  source: v.string(),
  /** What the images were made on. Other processors and GPUs round differently. */
  machines: v.array(v.string()),
  /** Of the .npz file. */
  sha256: v.string(),
})

/** What tells how a set of samples was made. */
export function sidecarOf(out: string): string {
  return out.replace(/\.npz$/, '.json')
}

/**
 * Whether the set is complete. Throws ERR_DIT_OPTION when what is there is another set, ERR_DIT_FILE when
 * it is none, unless there are parts, which are checked elsewhere.
 */
export async function isJoined(out: string, parts: Parts): Promise<boolean> {
  const file = sidecarOf(out)
  const json = await readJson(file)
  if (json !== undefined) {
    const { source, machines, sha256, ...facts } = parseFile(sidecarSchema, json, file)
    checkSame(out, facts, parts.facts)
  }
  if (!(await exists(out))) return false
  if (json !== undefined) return true
  if (await exists(parts.folder)) return false // it was interrupted before the sidecar
  throw new DiTError(
    'ERR_DIT_FILE',
    `${out} is there, but no ${file} that tells how it was made: it is not overwritten. Give another out, ` +
      'or remove it',
  )
}

interface JoinOptions {
  /** Where the weights came from. */
  source: string
  onPart: (part: Part) => void
  signal: AbortSignal | undefined
}

/** `images` are all parts, in order. */
export async function join(
  out: string,
  parts: Parts,
  images: readonly Part[],
  { source, onPart, signal }: JoinOptions,
): Promise<void> {
  const { facts } = parts
  const hash = createHash('sha256')
  async function* hashed(bytes: AsyncIterable<Uint8Array>) {
    for await (const piece of bytes) {
      signal?.throwIfAborted()
      hash.update(piece)
      yield piece
    }
  }
  async function* pixels() {
    for (const part of images) {
      yield* partBytes(part)
      onPart(part)
    }
  }
  const arrays: NpzArray[] = [
    { name: 'arr_0', dtype: 'uint8', shape: [facts.count, ...facts.shape], data: pixels },
    { name: 'arr_1', dtype: 'int64', shape: [facts.count], data: () => labelBytes(facts) },
  ]
  // A process that is killed here leaves much behind: where it is removed in the end.
  await writeWhole(out, hashed(npzBytes(arrays)), parts.folder)
  const sidecar: v.InferOutput<typeof sidecarSchema> = {
    ...facts,
    source,
    machines: [...new Set(images.map(({ machine }) => machine))].sort(),
    sha256: hash.digest('hex'),
  }
  await writeWhole(sidecarOf(out), [Buffer.from(`${JSON.stringify(sidecar, null, 2)}\n`)])
  await removeParts(parts.folder)
}

const labelsAtOnce = 1 << 14

async function* labelBytes(facts: SampleSetFacts): AsyncGenerator<Uint8Array> {
  for (let begin = 0; begin < facts.count; begin += labelsAtOnce) {
    const n = Math.min(labelsAtOnce, facts.count - begin)
    const labels = BigInt64Array.from({ length: n }, (_, i) => BigInt(labelOf(facts, begin + i)))
    yield new Uint8Array(labels.buffer)
  }
}

/** Under another name first: nobody finds half of them there. */
async function removeParts(folder: string): Promise<void> {
  const removed = `${folder}.${process.pid}-${randomBytes(4).toString('hex')}.old`
  try {
    await rename(folder, removed)
    await rm(removed, { recursive: true })
  } catch (cause) {
    throw fileError(folder, 'write', cause)
  }
}
