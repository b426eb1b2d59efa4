// What tells two models apart, whatever their files are called: the cache key of images, and what the
// parts of a set of samples must have in common.

import { createHash, type Hash } from 'node:crypto'
import { mkdtemp, open, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import type { ModelSpec } from '../bindings.js'
import { badFormat, fileError } from './errors.js'
import { resolveSource } from './formats/source.js'
import { contiguousStrides, elementCount, partsShape } from './formats/tensor.js'
import { itemSize, type TensorPart, type TensorSource } from './formats/types.js'
import type { Engine } from './jobs.js'
import { type Saved, saveModel } from './save.js'

/** Read and hashed at once: less than 1 ms of the event loop. */
const chunkBytes = 1 << 18

/**
 * SHA-256, in hexadecimal, over the model's size, its diffusion process, and name, shape, type and
 * bytes of every tensor, those of the VAE, too. Tensors have their canonical names, so both namings
 * of the same weights have the same hash. Weights that are in no file are saved to a temporary one.
 *
 * @internal
 */
export async function hashWeights(engine: Engine, saved: Saved): Promise<string> {
  const { dit, vae, schedule } = saved.spec
  const hash = createHash('sha256')
  const sizes = { config: dit.config, schedule, vae: vae?.config ?? null }
  hash.update(JSON.stringify(sizes, sortKeys))
  await withFiles(engine, saved, (tensors) => hashTensors(hash, 'dit', tensors))
  if (vae) await hashTensors(hash, 'vae', vae.tensors)
  return hash.digest('hex')
}

/** Keys in one order, whichever way an object was put together. */
function sortKeys(_: string, value: unknown): unknown {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) return value
  return Object.fromEntries(Object.entries(value).sort(([a], [b]) => (a < b ? -1 : 1)))
}

/** With the transformer's tensors in files: those they were loaded from, where they are still the same. */
async function withFiles(
  engine: Engine,
  saved: Saved,
  use: (tensors: readonly TensorSource[]) => Promise<void>,
): Promise<void> {
  const { tensors }: ModelSpec['dit'] = saved.spec.dit
  if (tensors !== null && !saved.trained) return use(tensors)
  const folder = await mkdtemp(path.join(tmpdir(), 'dit-native-')).catch((cause) => {
    throw fileError(tmpdir(), 'write', cause)
  })
  try {
    const file = path.join(folder, 'model.safetensors')
    await saveModel(engine, saved, file, {})
    await use((await resolveSource(file)).dit.tensors)
  } finally {
    await rm(folder, { recursive: true, force: true })
  }
}

async function hashTensors(
  hash: Hash,
  component: string,
  tensors: readonly TensorSource[],
): Promise<void> {
  const sorted = tensors.toSorted((a, b) => (a.name < b.name ? -1 : 1))
  for (const { name, parts } of sorted) {
    const types = [...new Set(parts.map(({ dtype }) => dtype))]
    hash.update(`\n${JSON.stringify([component, name, types, partsShape(parts)])}\n`)
    for (const part of parts) await hashPart(hash, part)
  }
}

/** The bytes from a tensor's first element to its last; where they are not row by row, its strides, too. */
async function hashPart(hash: Hash, { file, offset, dtype, shape, strides }: TensorPart) {
  if (elementCount(shape) === 0) return
  const rowMajor = contiguousStrides(shape)
  const isRowMajor = shape.every((size, i) => size === 1 || strides[i] === rowMajor[i])
  if (!isRowMajor) hash.update(`${strides.join(',')}\n`)
  const span = 1 + shape.reduce((sum, size, i) => sum + (size - 1) * (strides[i] as number), 0)
  try {
    await using handle = await open(file)
    const buffer = Buffer.allocUnsafe(Math.min(chunkBytes, span * itemSize[dtype]))
    const end = offset + span * itemSize[dtype]
    for (let at = offset; at < end; ) {
      const { bytesRead } = await handle.read(buffer, 0, Math.min(buffer.length, end - at), at)
      if (bytesRead === 0) throw badFormat(file, `the file ended at byte ${at}`)
      hash.update(buffer.subarray(0, bytesRead))
      at += bytesRead
    }
  } catch (cause) {
    throw fileError(file, 'read', cause)
  }
}
