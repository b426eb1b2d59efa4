// Tensors read into JavaScript, as only tests do.

import { readFileSync } from 'node:fs'
import { partsShape } from '../../lib/formats/tensor.js'
import {
  type DType,
  itemSize,
  type TensorPart,
  type TensorSource,
} from '../../lib/formats/types.js'

export interface Values {
  shape: number[]
  data: Float32Array
}

/** The value of a bfloat16 or float16 from its bits. */
export function bfloat16(bits: number): number {
  return new Float32Array(new Uint32Array([bits << 16]).buffer)[0] ?? Number.NaN
}

export function float16(bits: number): number {
  const sign = bits & 0x8000 ? -1 : 1
  const exponent = (bits >> 10) & 31
  const fraction = bits & 1023
  if (exponent === 31) return fraction ? Number.NaN : sign * Number.POSITIVE_INFINITY
  return exponent === 0
    ? sign * fraction * 2 ** -24
    : sign * (1024 + fraction) * 2 ** (exponent - 25)
}

const readers: Partial<Record<DType, (view: DataView, at: number) => number>> = {
  F64: (view, at) => view.getFloat64(at, true),
  F32: (view, at) => view.getFloat32(at, true),
  F16: (view, at) => float16(view.getUint16(at, true)),
  BF16: (view, at) => bfloat16(view.getUint16(at, true)),
  I64: (view, at) => Number(view.getBigInt64(at, true)),
  I32: (view, at) => view.getInt32(at, true),
  I16: (view, at) => view.getInt16(at, true),
  I8: (view, at) => view.getInt8(at),
  U8: (view, at) => view.getUint8(at),
  BOOL: (view, at) => view.getUint8(at),
}

const files = new Map<string, DataView>()

function viewOf(file: string): DataView {
  const known = files.get(file)
  if (known !== undefined) return known
  const bytes = readFileSync(file)
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength)
  files.set(file, view)
  return view
}

/** The elements of one stored tensor in row-major order. */
export function readPart(part: TensorPart): number[] {
  const { dtype, shape, strides } = part
  const read = readers[dtype]
  if (read === undefined) throw new Error(`no reader of ${dtype}`)
  const view = viewOf(part.file)
  const values: number[] = []
  const walk = (dimension: number, element: number) => {
    const size = shape[dimension]
    if (size === undefined) {
      values.push(read(view, part.offset + element * itemSize[dtype]))
      return
    }
    for (let i = 0; i < size; ++i) walk(dimension + 1, element + i * (strides[dimension] ?? 0))
  }
  walk(0, 0)
  return values
}

/** A tensor with its parts put together, in float32. */
export function materialise(source: Pick<TensorSource, 'parts'>): Values {
  return { shape: partsShape(source.parts), data: new Float32Array(source.parts.flatMap(readPart)) }
}
