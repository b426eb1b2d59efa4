import { DiTError, invalidOption } from './errors.js'
import { isFloat32Array } from './realms.js'

/**
 * Numbers with a shape, row-major: element (i, j, k) of shape [A, B, C] is data[(i * B + j) * C + k].
 * What is given to a call must not be changed before the call ends; what a call gives is the caller's.
 *
 * @example
 * const latents: Tensor = { data: new Float32Array(2 * 4 * 32 * 32), shape: [2, 4, 32, 32] }
 */
export interface Tensor {
  /** As many numbers as the product of `shape`. */
  data: Float32Array
  /** Sizes of the dimensions, the outermost first. */
  shape: number[]
}

/** A dimension that must have a size, or one that may have any, by its name. */
export type Dimension = number | string

/**
 * Checks that `value` is a tensor of the given shape. Dimensions with a name may have any size of at
 * least 1.
 *
 * Throws ERR_DIT_OPTION when it is no tensor, ERR_DIT_SHAPE when the shape is another or `data` has
 * not as many numbers as the shape says.
 *
 * @internal
 */
export function checkTensor(name: string, value: unknown, expected: readonly Dimension[]): Tensor {
  if (!isTensor(value)) throw invalidOption(name, 'a Tensor { data: Float32Array, shape }', value)
  const { data, shape } = value
  const fits =
    shape.length === expected.length &&
    shape.every((size, i) => {
      const want = expected[i]
      return Number.isSafeInteger(size) && (typeof want === 'number' ? size === want : size >= 1)
    })
  if (!fits) {
    throw new DiTError(
      'ERR_DIT_SHAPE',
      `Expected shape [${expected.join(', ')}] for ${name} but got [${shape.join(', ')}]`,
    )
  }
  const count = shape.reduce((product, size) => product * size, 1)
  if (data.length !== count) {
    throw new DiTError(
      'ERR_DIT_SHAPE',
      `${name}: shape [${shape.join(', ')}] needs ${count} numbers, but data has ${data.length}`,
    )
  }
  return value
}

/** @internal */
export function isTensor(value: unknown): value is Tensor {
  if (typeof value !== 'object' || value === null) return false
  const { data, shape } = value as Partial<Tensor>
  return isFloat32Array(data) && Array.isArray(shape)
}

/** Elements `begin` to `end` of dimension 0: the same memory. @internal */
export function slice({ data, shape }: Tensor, begin: number, end: number): Float32Array {
  const size = data.length / (shape[0] ?? 1)
  return data.subarray(begin * size, end * size)
}
