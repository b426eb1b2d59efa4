// Half precision, which this Node.js has no arrays for: 1 bit of sign, 5 of exponent, 10 of fraction.

/** To the nearest, ties to even; beyond 65504 infinite. */
export function toHalf(values: Float32Array, out: Uint16Array): void {
  const bits = new Uint32Array(values.buffer, values.byteOffset, values.length)
  for (let i = 0; i < bits.length; i++) {
    const word = bits[i] as number
    const sign = (word >>> 16) & 0x8000
    const rest = word & 0x7fffffff
    out[i] = sign | halfOf(rest)
  }
}

/** Of a float32 without its sign. */
function halfOf(word: number): number {
  if (word > 0x7f800000) return 0x7e00 // NaN
  if (word >= 0x477ff000) return 0x7c00 // rounds to 65536 or more
  const exponent = word >>> 23
  // Below 2^-14 a half has no leading one, and ever fewer bits.
  const dropped = exponent >= 113 ? 13 : 126 - exponent
  if (dropped > 24) return 0
  const fraction = exponent >= 113 ? word - (112 << 23) : (word & 0x7fffff) | 0x800000
  const odd = (fraction >>> dropped) & 1
  return (fraction + (1 << (dropped - 1)) - 1 + odd) >>> dropped
}

/** The 65536 numbers of half precision, by their bits. */
export function halfTable(): Float32Array {
  return Float32Array.from({ length: 65536 }, (_, bits) => {
    const exponent = (bits >> 10) & 31
    const fraction = bits & 1023
    const sign = bits & 0x8000 ? -1 : 1
    if (exponent === 31) return fraction === 0 ? sign * Number.POSITIVE_INFINITY : Number.NaN
    if (exponent === 0) return sign * fraction * 2 ** -24
    return sign * (1024 + fraction) * 2 ** (exponent - 25)
  })
}
