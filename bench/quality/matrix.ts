// Products of matrices in float64. V8 keeps at most 15 numbers in registers, so a tile of 4 by 2 sums
// (8 sums, 6 factors) is computed at a time; factors are first copied to where they are read in order.

/** A matrix in row-major memory, or its transpose: element (i, j) is `data[i * row + j * column]`. */
export interface Factor {
  data: Float64Array
  row: number
  column: number
}

const blockSize = 256 // terms of a sum whose factors are copied at a time: 10 kB for 4 rows and 2 columns

/** Copies `count` rows of `width` from row `first` on, term by term; rows beyond `rows` are zero. */
function pack(
  out: Float64Array,
  at: number,
  { data, row, column }: Factor,
  [first, width, rows]: readonly [first: number, width: number, rows: number],
  [begin, end]: readonly [begin: number, end: number],
): void {
  for (let r = 0; r < width; r++) {
    const isInside = first + r < rows
    let from = (first + r) * row + begin * column
    let to = at + r
    for (let i = begin; i < end; i++) {
      out[to] = isInside ? (data[from] as number) : 0
      from += column
      to += width
    }
  }
}

const transposed = ({ data, row, column }: Factor): Factor => ({ data, row: column, column: row })

/**
 * c += a · b, with c [m, n] row-major, a [m, k], b [k, n]. Sums have a fixed order.
 *
 * @example
 * addProduct(c, { data: a, row: k, column: 1 }, { data: b, row: n, column: 1 }, [m, n, k])
 */
export function addProduct(
  c: Float64Array,
  a: Factor,
  b: Factor,
  [m, n, k]: readonly [m: number, n: number, k: number],
): void {
  const pairs = Math.ceil(n / 2)
  const packedA = new Float64Array(4 * Math.min(k, blockSize))
  const packedB = new Float64Array(2 * pairs * Math.min(k, blockSize))
  const columns = transposed(b)
  for (let begin = 0; begin < k; begin += blockSize) {
    const block = [begin, Math.min(k, begin + blockSize)] as const
    const terms = block[1] - begin
    for (let j = 0; j < pairs; j++) pack(packedB, j * 2 * terms, columns, [2 * j, 2, n], block)
    for (let i = 0; i < m; i += 4) {
      pack(packedA, 0, a, [i, 4, m], block)
      for (let j = 0; j < pairs; j++) addTile(c, [m, n], [i, 2 * j], packedA, packedB, terms)
    }
  }
}

/** Adds the 4 by 2 sums at (i, j), those of them that are inside c. */
function addTile(
  c: Float64Array,
  [m, n]: readonly [m: number, n: number],
  [i, j]: readonly [i: number, j: number],
  a: Float64Array,
  b: Float64Array,
  terms: number,
): void {
  let [s00, s01, s10, s11, s20, s21, s30, s31] = [0, 0, 0, 0, 0, 0, 0, 0]
  let p = 0
  let q = j * terms
  for (let t = 0; t < terms; t++) {
    const a0 = a[p] as number
    const a1 = a[p + 1] as number
    const a2 = a[p + 2] as number
    const a3 = a[p + 3] as number
    const b0 = b[q] as number
    const b1 = b[q + 1] as number
    s00 += a0 * b0
    s01 += a0 * b1
    s10 += a1 * b0
    s11 += a1 * b1
    s20 += a2 * b0
    s21 += a2 * b1
    s30 += a3 * b0
    s31 += a3 * b1
    p += 4
    q += 2
  }
  const sums = [s00, s01, s10, s11, s20, s21, s30, s31]
  for (let r = 0; r < 4 && i + r < m; r++) {
    for (let s = 0; s < 2 && j + s < n; s++) {
      const at = (i + r) * n + j + s
      c[at] = (c[at] as number) + (sums[2 * r + s] as number)
    }
  }
}
