// Tensors of a file, under its names, matched with the tensors that a model has.

import { DiTError } from '../errors.js'
import { elementCount, sameShape, type TensorMap } from './tensor.js'
import type { TensorPart, TensorSource, TensorSpec } from './types.js'

/** How a file names the canonical tensors. */
export interface Naming {
  readonly kind: string
  /** The names of the parts of a canonical tensor, concatenated along dimension 0. */
  parts(name: string): readonly string[]
  /** Where the file has the tensor again. */
  copies?(name: string): readonly (readonly string[])[]
}

export interface Matched {
  readonly sources: TensorSource[]
  /** Pairs that the file's naming says are equal; only their shapes were compared. */
  readonly copies: { name: string; first: TensorPart; copy: TensorPart }[]
}

const maxListed = 12

/**
 * Picks the tensors of `specs` from a file, in that order.
 *
 * Throws one ERR_DIT_FORMAT that names every missing, extra and mis-shaped tensor by the file's own
 * names (a long list is cut), after `hints`.
 */
export function matchTensors(
  file: string,
  tensors: TensorMap,
  specs: readonly TensorSpec[],
  naming: Naming,
  ignored: readonly RegExp[],
  hints: readonly string[] = [],
): Matched {
  const extra = new Set(tensors.keys())
  const missing: string[] = []
  const misshaped: string[] = []
  const copies: Matched['copies'] = []
  const take = (name: string, shape: readonly number[]): TensorPart | undefined => {
    const part = tensors.get(name)
    extra.delete(name)
    if (part === undefined) return undefined
    if (!sameShape(part.shape, shape)) {
      misshaped.push(`${name} is [${part.shape.join(', ')}], expected [${shape.join(', ')}]`)
    } else if (!isFloat(part)) {
      misshaped.push(`${name} is ${part.dtype}, expected F64, F32, F16 or BF16`)
    }
    return part
  }
  const sources = specs.flatMap((spec): TensorSource[] => {
    const names = naming.parts(spec.name)
    const shape = partShape(spec, names.length)
    const parts = names.flatMap((name): TensorPart[] => {
      const part = take(name, shape)
      if (part === undefined && spec.optional !== true) missing.push(name)
      return part === undefined ? [] : [part]
    })
    for (const others of naming.copies?.(spec.name) ?? []) {
      others.forEach((name, i) => {
        const copy = take(name, shape)
        const first = parts[i]
        if (copy === undefined) missing.push(name)
        else if (first !== undefined) copies.push({ name, first, copy })
      })
    }
    return parts.length === 0 ? [] : [{ name: spec.name, parts }]
  })
  const unknown = [...extra].filter((name) => !ignored.some((pattern) => pattern.test(name)))
  const problems = [
    ...list('missing', missing),
    ...list('not part of the model', unknown),
    ...list('of the wrong shape or type', misshaped),
  ]
  if (problems.length > 0) {
    const text = [
      `the tensors are not those of the model (${naming.kind} names)`,
      ...hints,
      ...problems,
    ]
    throw new DiTError('ERR_DIT_FORMAT', `${file}: ${text.join('\n  ')}`)
  }
  return { sources, copies }
}

function isFloat({ dtype }: TensorPart): boolean {
  return dtype === 'F64' || dtype === 'F32' || dtype === 'F16' || dtype === 'BF16'
}

function partShape(spec: TensorSpec, parts: number): readonly number[] {
  const [rows, ...rest] = spec.shape
  return parts === 1 || rows === undefined ? spec.shape : [rows / parts, ...rest]
}

/** `12 missing: a, b, … and 3 more`, or nothing. */
function list(what: string, names: readonly string[]): string[] {
  if (names.length === 0) return []
  const shown = names.slice(0, maxListed).map((name) => name.slice(0, 150))
  const rest = names.length - shown.length
  return [`${names.length} ${what}: ${shown.join('; ')}${rest > 0 ? `; and ${rest} more` : ''}`]
}

/** A tensor of a file to be written: rows `rows[0]` to `rows[1]` of the canonical tensor `from`. */
export interface SavedTensor {
  readonly name: string
  readonly shape: readonly number[]
  readonly from: string
  /** Along dimension 0, the end exclusive; the whole tensor where a tensor is not divided. */
  readonly rows: readonly [begin: number, end: number]
}

/** Every tensor of a file in the given naming, copies included: the reverse of `matchTensors`. */
export function layoutTensors(specs: readonly TensorSpec[], naming: Naming): SavedTensor[] {
  return specs.flatMap((spec) => {
    const all = [naming.parts(spec.name), ...(naming.copies?.(spec.name) ?? [])]
    return all.flatMap((names) => {
      const shape = partShape(spec, names.length)
      const rows = shape[0] ?? 1
      return names.map((name, i): SavedTensor => {
        return { name, shape, from: spec.name, rows: [i * rows, (i + 1) * rows] }
      })
    })
  })
}

/** The number of values of all tensors. */
export function countParameters(specs: readonly TensorSpec[]): number {
  return specs.reduce((sum, { shape }) => sum + elementCount(shape), 0)
}

/** One more than the largest N in names that start with `prefix` and `N.`; 0 when there is none. */
export function countNumbered(names: Iterable<string>, prefix: string): number {
  let count = 0
  for (const name of names) {
    if (!name.startsWith(prefix)) continue
    const digits = /^(\d{1,6})\./.exec(name.slice(prefix.length))?.[1]
    if (digits !== undefined) count = Math.max(count, Number(digits) + 1)
  }
  return count
}
