// Expected results of the fixtures, and how near to them a result must be.

import { readFileSync } from 'node:fs'
import * as assert from 'uvu/assert'
import { readSafetensors } from '../../lib/formats/safetensors.js'
import type { Tensor } from '../../lib/index.js'
import { fixture } from './files.js'
import { readPart } from './tensors.js'

interface Tolerance {
  tol_rel_l2: number
  tol_max_abs: number
  all_bf16_vs_f64?: { rel_l2_err: number }
}

type Manifest = Record<string, { tensors: Record<string, Tolerance> }>
const manifest = JSON.parse(readFileSync(fixture('manifest.json'), 'utf8')) as Manifest

/** A fixture's file of inputs and expected results, with the tolerances of manifest.json. */
export class Expected {
  private constructor(
    readonly file: string,
    private readonly tensors: ReadonlyMap<string, Tensor>,
  ) {}

  static async read(file: string): Promise<Expected> {
    const { tensors } = await readSafetensors(fixture(file))
    const values = [...tensors].map(([name, part]) => {
      const tensor: Tensor = { data: Float32Array.from(readPart(part)), shape: [...part.shape] }
      return [name, tensor] as const
    })
    return new Expected(file, new Map(values))
  }

  /** The names that start with a prefix. */
  names(prefix: string): string[] {
    return [...this.tensors.keys()].filter((name) => name.startsWith(prefix))
  }

  get(name: string): Tensor {
    const tensor = this.tensors.get(name)
    if (tensor === undefined) throw new Error(`${this.file} has no ${name}`)
    return tensor
  }

  /** The first n along dimension 0. */
  first(name: string, n: number): Tensor {
    const { data, shape } = this.get(name)
    const size = data.length / (shape[0] ?? 1)
    return { data: data.slice(0, n * size), shape: [n, ...shape.slice(1)] }
  }

  numbers(name: string): number[] {
    return [...this.get(name).data]
  }

  tolerance(name: string): Tolerance {
    const found = manifest[this.file]?.tensors[name]
    if (found === undefined) throw new Error(`manifest.json has no tolerance for ${name}`)
    return found
  }

  /** Fails unless `got` is the expected tensor (or its first part) within the stated tolerance. */
  check(name: string, got: Tensor): void {
    const want = this.first(name, got.shape[0] ?? 1)
    assert.equal(got.shape, want.shape, name)
    const { tol_rel_l2, tol_max_abs } = this.tolerance(name)
    const { relL2, maxAbs } = difference(got.data, want.data)
    const what = `${this.file} ${name}: rel L2 ${relL2.toExponential(2)} (${tol_rel_l2}), max abs ${maxAbs.toExponential(2)} (${tol_max_abs})`
    assert.ok(relL2 <= tol_rel_l2 && maxAbs <= tol_max_abs, what)
    if (process.env.DIT_TEST_FIGURES) console.log(what)
  }
}

/** ||got - want|| / ||want|| in float64, and the largest absolute difference. NaN never passes. */
export function difference(got: ArrayLike<number>, want: ArrayLike<number>) {
  assert.is(got.length, want.length)
  let error = 0
  let norm = 0
  let maxAbs = 0
  for (let i = 0; i < want.length; i++) {
    const distance = Math.abs((got[i] as number) - (want[i] as number))
    error += distance ** 2
    norm += (want[i] as number) ** 2
    maxAbs = Number.isNaN(distance) ? Number.NaN : Math.max(maxAbs, distance)
  }
  return { relL2: Math.sqrt(error / norm), maxAbs }
}

/** Whether two arrays have the same bits. */
export function sameBits(a: Float32Array | Uint8Array, b: Float32Array | Uint8Array): boolean {
  const bytes = (array: typeof a) => Buffer.from(array.buffer, array.byteOffset, array.byteLength)
  return bytes(a).equals(bytes(b))
}
