// NumPy's .npz: a zip file of .npy files, here neither compressed nor ever whole in memory.
//   .npy: '\x93NUMPY', version 1 0, a u16 with the header's length, the header (a Python literal, padded
//   with spaces so that the data begins at a multiple of 64), the elements in C order, little-endian.
// numpy.lib.format describes it; ADM's evaluators read `arr_0` of it row by row.

import { Readable } from 'node:stream'
import { ZipFile } from 'yazl'
import { elementCount } from './tensor.js'

const dtypes = { uint8: { code: '|u1', bytes: 1 }, int64: { code: '<i8', bytes: 8 } } as const

export interface NpzArray {
  /** `arr_0` is what `numpy.savez` calls the first one without a name. */
  readonly name: string
  readonly dtype: keyof typeof dtypes
  readonly shape: readonly number[]
  /** All bytes, in pieces of any length. */
  readonly data: () => AsyncIterable<Uint8Array>
}

/** @internal */
export function npyHeader({ dtype, shape }: Pick<NpzArray, 'dtype' | 'shape'>): Buffer {
  const tuple = `(${shape.join(', ')}${shape.length === 1 ? ',' : ''})`
  const text = `{'descr': '${dtypes[dtype].code}', 'fortran_order': False, 'shape': ${tuple}, }`
  const prefix = 10
  const length = Math.ceil((prefix + text.length + 1) / 64) * 64
  const header = Buffer.alloc(length, ' ')
  header.write('\x93NUMPY\x01\x00', 'latin1')
  header.writeUInt16LE(length - prefix, 8)
  header.write(text, prefix, 'latin1')
  header.write('\n', length - 1, 'latin1')
  return header
}

/**
 * Midnight of 1980 in whatever time zone, which is what the file then says everywhere: a zip file's
 * times are local ones, and the same arrays are to be the same bytes.
 */
const noTime = new Date(1980, 0, 1)

/**
 * The bytes of an .npz file, which depend on the arrays alone. It has the 64-bit fields whatever its
 * size (as NumPy writes them, too), so a set of 10 GB takes no other path than one of 10 kB.
 *
 * @example
 * await writeWhole('zeros.npz', npzBytes([{ name: 'arr_0', dtype: 'uint8', shape: [2, 3], data: zeros }]))
 */
export async function* npzBytes(arrays: readonly NpzArray[]): AsyncGenerator<Uint8Array> {
  const zip = new ZipFile()
  const output = zip.outputStream as Readable
  zip.on('error', (error) => output.destroy(error as Error))
  const inputs: Readable[] = []
  for (const array of arrays) {
    const header = npyHeader(array)
    const options = {
      mtime: noTime,
      forceDosTimestamp: true,
      mode: 0o100644,
      compress: false,
      forceZip64Format: true,
      size: header.length + elementCount(array.shape) * dtypes[array.dtype].bytes,
    }
    zip.addReadStreamLazy(`${array.name}.npy`, options, (give) => {
      const input = Readable.from(withHeader(header, array.data()), { objectMode: false })
      input.on('error', (error) => output.destroy(error))
      inputs.push(input)
      give(null, input)
    })
  }
  zip.end({ forceZip64Format: true, comment: '' })
  try {
    yield* output
  } finally {
    for (const input of inputs) input.destroy() // a reader who leaves early: the files behind it close
  }
}

async function* withHeader(header: Uint8Array, data: AsyncIterable<Uint8Array>) {
  yield header
  yield* data
}
