// An idx file, as of MNIST and Fashion-MNIST: 4 bytes of magic (0, 0, type, dimensions), each dimension as
// 4 bytes big-endian, then the numbers. Type 8 is unsigned bytes.

import { createHash } from 'node:crypto'
import { createReadStream } from 'node:fs'
import path from 'node:path'
import { pipeline } from 'node:stream/promises'
import { setImmediate } from 'node:timers/promises'
import { createGunzip } from 'node:zlib'
import { badFormat, DiTError, fileError } from '../errors.js'
import { exists } from '../formats/file.js'

const maxBytes = 2 ** 31 // unzipped; MNIST has 47 MB

/** The file, or the one with .gz. */
export async function findIdx(folder: string, name: string): Promise<string | undefined> {
  for (const end of ['', '.gz']) {
    const file = path.join(folder, name + end)
    if (await exists(file)) return file
  }
  return undefined
}

/** What an idx file has. */
export interface Idx {
  file: string
  shape: number[]
  bytes: Uint8Array
  /** SHA-256 of the file's content. */
  hash: string
}

/**
 * Reads an idx file of unsigned bytes, in pieces, so that the event loop goes on.
 *
 * Rejects with ERR_DIT_FILE when there is none, ERR_DIT_FORMAT when it is another kind of file, empty or
 * damaged.
 *
 * @example
 * const { shape, bytes } = await readIdx('fashion-mnist', 't10k-images-idx3-ubyte', 3)
 */
export async function readIdx(folder: string, name: string, dimensions: number): Promise<Idx> {
  const file = await findIdx(folder, name)
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
