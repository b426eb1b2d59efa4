// A reader of .npz files that shares nothing with their writer: yauzl's, and NumPy's format by hand.

import { type Entry, open, type ZipFile } from 'yauzl'

export interface NpyArray {
  dtype: string
  shape: number[]
  data: Buffer
}

/** The arrays of an .npz file by name, in their order; yauzl checks sizes, this the CRC-32 of each. */
export async function readNpz(file: string): Promise<Map<string, NpyArray>> {
  const zip = await new Promise<ZipFile>((resolve, reject) => {
    open(file, { lazyEntries: true, autoClose: true }, (error, opened) => {
      if (error) reject(error)
      else resolve(opened)
    })
  })
  const arrays = new Map<string, NpyArray>()
  await new Promise<void>((resolve, reject) => {
    zip.on('error', reject).on('end', resolve)
    zip.on('entry', (entry: Entry) => {
      readEntry(zip, entry).then((bytes) => {
        if (crc32(bytes) !== entry.crc32) throw new Error(`${entry.fileName}: wrong CRC-32`)
        arrays.set(entry.fileName.replace(/\.npy$/, ''), parseNpy(bytes))
        zip.readEntry()
      }, reject)
    })
    zip.readEntry()
  })
  return arrays
}

function readEntry(zip: ZipFile, entry: Entry): Promise<Buffer> {
  return new Promise((resolve, reject) => {
    zip.openReadStream(entry, (error, stream) => {
      if (error) return reject(error)
      const pieces: Buffer[] = []
      stream.on('data', (piece: Buffer) => pieces.push(piece))
      stream.on('error', reject).on('end', () => resolve(Buffer.concat(pieces)))
    })
  })
}

function parseNpy(bytes: Buffer): NpyArray {
  if (bytes.toString('latin1', 0, 8) !== '\x93NUMPY\x01\x00')
    throw new Error('no .npy of version 1.0')
  const begin = 10 + bytes.readUInt16LE(8)
  if (begin % 64 !== 0) throw new Error(`the data begins at byte ${begin}`)
  const header = bytes.toString('latin1', 10, begin)
  const found = /^\{'descr': '(.+?)', 'fortran_order': False, 'shape': \((.+?)\), \} *\n$/.exec(
    header,
  )
  if (found === null) throw new Error(`an unknown header: ${header}`)
  const shape = (found[2] as string).split(',').filter((size) => size.trim() !== '')
  return { dtype: found[1] as string, shape: shape.map(Number), data: bytes.subarray(begin) }
}

/** By the definition: bit by bit, of the reversed polynomial. */
function crc32(bytes: Buffer): number {
  let crc = ~0
  for (const byte of bytes) {
    crc ^= byte
    for (let bit = 0; bit < 8; bit++) crc = (crc >>> 1) ^ (crc & 1 ? 0xedb88320 : 0)
  }
  return ~crc >>> 0
}
