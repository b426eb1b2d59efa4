import { type DType, itemSize, type TensorPart } from './types.js'

/** Tensors of a file under the names that it gives them. */
export type TensorMap = Map<string, TensorPart>

export function isDType(name: string): name is DType {
  return Object.hasOwn(itemSize, name)
}

/** The product of the dimensions; 1 for a scalar. Not a safe integer where the shape is absurd. */
export function elementCount(shape: readonly number[]): number {
  return shape.reduce((count, size) => count * size, 1)
}

/** Row-major strides in elements. */
export function contiguousStrides(shape: readonly number[]): number[] {
  const strides: number[] = []
  let stride = 1
  for (const size of shape.toReversed()) {
    strides.unshift(stride)
    stride *= size
  }
  return strides
}

export function sameShape(a: readonly number[], b: readonly number[]): boolean {
  return a.length === b.length && a.every((size, i) => size === b[i])
}

/** The shape of parts that are concatenated along dimension 0. */
export function partsShape(parts: readonly TensorPart[]): number[] {
  const [first, ...rest] = parts
  if (first === undefined) return [0]
  if (rest.length === 0) return [...first.shape]
  const rows = parts.reduce((sum, part) => sum + (part.shape[0] ?? 0), 0)
  return [rows, ...first.shape.slice(1)]
}

/** Rows `begin` (inclusive) to `end` (exclusive) of a tensor, along dimension 0. */
export function sliceRows(parts: readonly TensorPart[], begin: number, end: number): TensorPart[] {
  const slices: TensorPart[] = []
  let start = 0
  for (const part of parts) {
    const rows = part.shape[0] ?? 0
    const from = Math.max(begin - start, 0)
    const to = Math.min(end - start, rows)
    if (from < to) {
      slices.push({
        ...part,
        offset: part.offset + from * (part.strides[0] ?? 0) * itemSize[part.dtype],
        shape: [to - from, ...part.shape.slice(1)],
      })
    }
    start += rows
  }
  return slices
}
