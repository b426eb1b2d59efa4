// The safetensors format: a u64 with the header's length, a JSON header, the tensors' bytes.
//   {"name": {"dtype": "F32", "shape": [2, 3], "data_offsets": [begin, end]}, "__metadata__": {…}}
// Offsets count from the end of the header; everything is little-endian and row-major; the tensors
// fill the rest of the file without overlap and without holes.

import type { FileHandle } from 'node:fs/promises'
import * as v from 'valibot'
import { badFormat, fileError, invalidOption, show } from '../errors.js'
import { checkNotPointer, readFully, withFile } from './file.js'
import { parseJson } from './json.js'
import { contiguousStrides, elementCount, isDType, type TensorMap } from './tensor.js'
import { type DType, itemSize } from './types.js'

/** Largest header that is read, in bytes: some 100 000 tensors. A DiT-XL/2 has 42 kB. */
const maxHeaderBytes = 16 * 1024 * 1024

export interface SafetensorsFile {
  readonly tensors: TensorMap
  /** The strings of `__metadata__`. */
  readonly metadata: ReadonlyMap<string, string>
}

const size = v.pipe(v.number(), v.safeInteger(), v.minValue(0))
const entrySchema = v.strictObject({
  dtype: v.string(),
  shape: v.array(size),
  data_offsets: v.strictTuple([size, size]),
})
const metadataSchema = v.record(v.string(), v.string())

/**
 * Reads and checks the header of a safetensors file. No tensor is read.
 *
 * Throws ERR_DIT_FILE when the file cannot be read, ERR_DIT_FORMAT when it breaks the format.
 *
 * @example
 * const { tensors } = await readSafetensors('model.safetensors')
 * for (const [name, { dtype, shape }] of tensors) console.log(name, dtype, shape)
 */
export async function readSafetensors(file: string): Promise<SafetensorsFile> {
  try {
    return await withFile(file, (handle) => readOpen(file, handle))
  } catch (cause) {
    throw fileError(file, 'read', cause)
  }
}

async function readOpen(file: string, handle: FileHandle): Promise<SafetensorsFile> {
  const fileBytes = (await handle.stat()).size
  const start = await readFully(handle, file, 0, Math.min(8, fileBytes))
  if (start.length < 8) {
    throw badFormat(file, `a safetensors file starts with 8 bytes of length, this has ${fileBytes}`)
  }
  checkNotPointer(start, file)
  const headerBytes = start.readBigUInt64LE()
  if (headerBytes > maxHeaderBytes || Number(headerBytes) + 8 > fileBytes) {
    throw badFormat(
      file,
      `the safetensors header is said to have ${headerBytes} bytes; the file has ${fileBytes} and ` +
        `at most ${maxHeaderBytes} are read. The file is cut off or is no safetensors file`,
    )
  }
  const header = await readFully(handle, file, 8, Number(headerBytes))
  return parseHeader(file, header, fileBytes)
}

function parseHeader(file: string, header: Buffer, fileBytes: number): SafetensorsFile {
  const json = parseJson(header, file, 'the safetensors header', 4)
  if (typeof json !== 'object' || json === null || Array.isArray(json)) {
    throw badFormat(file, 'the safetensors header is not a JSON object')
  }
  const dataStart = 8 + header.length
  const dataBytes = fileBytes - dataStart
  const tensors: TensorMap = new Map()
  const metadata = new Map<string, string>()
  const ranges: { name: string; begin: number; end: number }[] = []
  for (const [name, value] of Object.entries(json)) {
    if (name === '__metadata__') {
      const parsed = v.safeParse(metadataSchema, value)
      if (!parsed.success) throw badFormat(file, '__metadata__ is not an object of strings')
      for (const [key, text] of Object.entries(parsed.output)) metadata.set(key, text)
      continue
    }
    const problem = (text: string) => badFormat(file, `tensor ${show(name)}: ${text}`)
    const parsed = v.safeParse(entrySchema, value)
    if (!parsed.success) {
      const issue = parsed.issues[0]
      throw problem(`bad ${v.getDotPath(issue) ?? 'entry'} in the header: ${issue.message}`)
    }
    const {
      dtype,
      shape,
      data_offsets: [begin, end],
    } = parsed.output
    if (!isDType(dtype)) throw problem(`unknown dtype ${show(dtype)}`)
    const needed = elementCount(shape) * itemSize[dtype]
    if (!Number.isSafeInteger(needed)) throw problem(`the shape [${shape}] is too large`)
    if (end - begin !== needed) {
      throw problem(
        `${dtype} [${shape}] needs ${needed} bytes but data_offsets [${begin}, ${end}] say ${end - begin}`,
      )
    }
    if (end > dataBytes) {
      throw problem(
        `data_offsets [${begin}, ${end}] reach beyond the ${dataBytes} bytes of data. The file is cut off`,
      )
    }
    ranges.push({ name, begin, end })
    tensors.set(name, {
      file,
      offset: dataStart + begin,
      dtype,
      shape,
      strides: contiguousStrides(shape),
    })
  }
  checkRanges(file, ranges, dataBytes)
  return { tensors, metadata }
}

/** Refuses tensors that share bytes, and bytes that belong to no tensor. */
function checkRanges(
  file: string,
  ranges: { name: string; begin: number; end: number }[],
  dataBytes: number,
): void {
  ranges.sort((a, b) => a.begin - b.begin || a.end - b.end)
  let end = 0
  let last = ''
  for (const range of ranges) {
    if (range.begin < end) {
      throw badFormat(file, `the tensors ${show(last)} and ${show(range.name)} overlap`)
    }
    if (range.begin > end) {
      throw badFormat(file, `the data bytes ${end} to ${range.begin} belong to no tensor`)
    }
    end = range.end
    last = range.name
  }
  if (end !== dataBytes) {
    throw badFormat(file, `the last ${dataBytes - end} bytes of data belong to no tensor`)
  }
}

export interface SafetensorsLayout {
  /** The file's first bytes: length and JSON. */
  readonly header: Buffer
  /** Bytes of the whole file. */
  readonly fileBytes: number
  /** Where each tensor goes, in bytes from the start of the file; in the order given. */
  readonly tensors: { name: string; offset: number; bytes: number }[]
}

/**
 * The first bytes of a safetensors file and the place of each tensor in it. The tensors follow the
 * header in the order given, which should be by descending item size so that all are aligned; the
 * header is padded with spaces to a multiple of 8 bytes.
 *
 * Throws ERR_DIT_OPTION when a name comes twice.
 *
 * @example
 * const layout = safetensorsLayout([{ name: 'w', dtype: 'F32', shape: [2, 3] }], { format: 'pt' })
 * await writeFile('w.safetensors', Buffer.concat([layout.header, Buffer.alloc(24)]))
 */
export function safetensorsLayout(
  tensors: Iterable<{ name: string; dtype: DType; shape: readonly number[] }>,
  metadata: Record<string, string> = {},
): SafetensorsLayout {
  const entries = new Map<string, unknown>()
  if (Object.keys(metadata).length > 0) entries.set('__metadata__', metadata)
  const placed: { name: string; offset: number; bytes: number }[] = []
  let end = 0
  for (const { name, dtype, shape } of tensors) {
    if (entries.has(name)) throw invalidOption('tensors', 'distinct names', name)
    const bytes = elementCount(shape) * itemSize[dtype]
    entries.set(name, { dtype, shape, data_offsets: [end, end + bytes] })
    placed.push({ name, offset: end, bytes })
    end += bytes
  }
  const json = `{${[...entries].map(([key, value]) => `${JSON.stringify(key)}:${JSON.stringify(value)}`)}}`
  const jsonBytes = Buffer.byteLength(json)
  const header = Buffer.alloc(8 + Math.ceil(jsonBytes / 8) * 8, ' ')
  header.writeBigUInt64LE(BigInt(header.length - 8))
  header.write(json, 8)
  for (const tensor of placed) tensor.offset += header.length
  return { header, fileBytes: header.length + end, tensors: placed }
}
